# Checks of the event parser, the JSON reader and the ledger, without an engine:
#     godot3-server --path examples/godot -s tests/test_parser.gd
# The exit code is the number of checks that failed.
extends SceneTree

const EffectLedger := preload("res://addons/persona_chat/effect_ledger.gd")
const JsonText := preload("res://addons/persona_chat/json_text.gd")
const SseParser := preload("res://addons/persona_chat/sse_parser.gd")

const KOREAN := "안녕하세요, 실비아. 🙂"

var _failed := 0


func _initialize() -> void:
	_split_at_every_byte()
	_byte_by_byte()
	_line_ends()
	_fields()
	_json()
	_ledger()
	print("%d failed" % _failed)
	quit(_failed)


func _split_at_every_byte() -> void:
	var bytes := (
		"event: generating\ndata: %s\n\n: beat\n\nevent: complete\ndata: done\n\n" % KOREAN
	).to_utf8()
	var expected := [
		{"event": "generating", "data": KOREAN}, {"event": "complete", "data": "done"}
	]
	var whole := true
	for cut in range(1, bytes.size()):
		var parser := SseParser.new()
		var events := parser.feed(bytes.subarray(0, cut - 1))
		events += parser.feed(bytes.subarray(cut, bytes.size() - 1))
		whole = whole and _same(events, expected)
	_check(whole, "two events, one Korean, split at every byte")


func _byte_by_byte() -> void:
	var parser := SseParser.new()
	var events := []
	for byte in ("data: %s\r\n\r\n" % KOREAN).to_utf8():
		events += parser.feed(PoolByteArray([byte]))
	_check(_same(events, [{"event": "message", "data": KOREAN}]), "one byte at a time")


func _line_ends() -> void:
	var expected := [{"event": "e", "data": "one\ntwo"}, {"event": "message", "data": "three"}]
	for end in ["\n", "\r\n", "\r"]:
		var stream: String = "event: e\ndata: one\ndata: two\n\ndata: three\n\n".replace("\n", end)
		var events := SseParser.new().feed(stream.to_utf8())
		_check(_same(events, expected), "lines that end with %s" % to_json(end))


func _fields() -> void:
	_check(_read("event: e\n\n").empty(), "an event without data is none")
	_check(_read("data: cut").empty(), "an event without its empty line waits")
	_check(_same(_read("data:x\n\n"), [{"event": "message", "data": "x"}]), "no space is needed")
	_check(
		_same(_read("data:  x\nid: 1\n\n"), [{"event": "message", "data": " x"}]),
		"one space is taken off, unknown fields are passed over"
	)
	_check(_same(_read("data\n\n"), [{"event": "message", "data": ""}]), "data may be empty")


func _json() -> void:
	var json := JsonText.new()
	_check(json.read('["\\ud83d\\ude42\\uD83D\\uDE42 \\ud55c"]') == ["🙂🙂 한"], "emoji escapes")
	_check(json.read('["\\\\\\ud83d\\ude42"]') == ["\\🙂"], "an emoji after a backslash")
	_check(
		json.read('["\\\\ud83d\\\\ude42"]') == ["\\ud83d\\ude42"], "what only looks like an emoji"
	)
	_check(json.read("<html>") == null, "what is no JSON is null")
	var odd := "a\nb\u000bc\u0002d\\ve\\"
	var written := '["a\\nb\\u000bc\\u0002d\\\\ve\\\\"]'
	_check(json.write([odd]) == written, "control characters are escaped")
	_check(json.read(written) == [odd], "and come back")


func _ledger() -> void:
	var ledger := EffectLedger.new()
	var ring := {"effect_id": "e1", "value": "ring"}
	var key := {"effect_id": "e2", "value": "key"}
	_check(_same(ledger.take([ring, ring]), [ring]), "an effect happens once in a turn")
	_check(_same(ledger.take([ring, key]), [key]), "and once in the game")
	var saved = parse_json(to_json(ledger.to_list()))
	var loaded := EffectLedger.new()
	loaded.take([{"effect_id": "e3"}])
	loaded.from_list(saved)
	_check(loaded.take([ring, key]).empty(), "what a save file lists has happened")
	_check(loaded.take([{"effect_id": "e3"}]).size() == 1, "what came after it has not")


func _read(stream: String) -> Array:
	return SseParser.new().feed(stream.to_utf8())


# Godot 3 compares dictionaries by identity; their text is compared instead.
func _same(left, right) -> bool:
	return to_json(left) == to_json(right)


func _check(right: bool, what: String) -> void:
	print("%s  %s" % ["ok  " if right else "FAIL", what])
	if not right:
		_failed += 1
