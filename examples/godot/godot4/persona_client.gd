# The client for Godot 4.2 or newer, in one file. NOT RUN HERE: no Godot 4 was at
# hand; a parser for its GDScript (gdtoolkit 4) reads it, and no more is known. The tested one is
# ../addons/persona_chat (Godot 3), which has the same methods and signals and says more of why.
#
#     client.say("Good evening.", {"items": ["lantern"]})
#     var save: Dictionary = await client.save_minds()
extends Node

signal state_known(state: Dictionary)
signal text_grew(text: String)
signal action_granted(action: Dictionary)
signal turn_done(result: Dictionary)
signal turn_failed(code: String, message: String, retryable: bool)

@export var server_url := "http://127.0.0.1:7860"
@export var npc_id := ""
@export var player_id := ""
# Seconds of silence after which a try counts as broken.
@export var patience := 60.0
@export var tries := 5

# Both belong in the save file: the turn without an answer, and the ids of all effects that happened.
var pending := {}
var taken := {}

var _calls: Array[GradioCall] = []
var _playing := false
var _tried := 0
var _retry_at_ms := -1
var _state_told := false


func _init() -> void:
	process_mode = Node.PROCESS_MODE_ALWAYS


func say(text: String, context := {}) -> String:
	if not pending.is_empty():
		push_error("the last turn has no answer yet: wait for it, or call retry()")
		return ""
	pending = {
		"text": text,
		"npc_id": npc_id,
		"player_id": player_id,
		"context": context.duplicate(true),
		"turn_id": Crypto.new().generate_random_bytes(16).hex_encode(),
	}
	retry()
	return pending.turn_id


func retry() -> void:
	if pending.is_empty() or _playing:
		return
	_playing = true
	_tried = 0
	_state_told = false
	_try()


func save_minds() -> Dictionary:
	return await request("save", {"player_id": player_id})


func load_minds(save: Dictionary) -> Dictionary:
	return await request("load", {"data": save})


func request(call_name: String, arguments := {}) -> Dictionary:
	var answer: Dictionary = await _start(call_name, arguments).finished
	return answer


func _process(_delta: float) -> void:
	if _retry_at_ms >= 0 and Time.get_ticks_msec() >= _retry_at_ms:
		_retry_at_ms = -1
		_try()
	for each: GradioCall in _calls.duplicate():
		each.poll()
		if each.done():
			_calls.erase(each)


func _start(call_name: String, arguments: Dictionary) -> GradioCall:
	var started := GradioCall.new(server_url, call_name, arguments, patience)
	_calls.append(started)
	return started


func _try() -> void:
	_tried += 1
	var turn := _start("ask_stream", pending)
	turn.generating.connect(_on_generating)
	turn.finished.connect(_on_answer)


func _on_generating(value: Dictionary) -> void:
	if value.has("delta") and not value.has("text"):
		_tell_state(value)
	elif value.has("text") and not value.has("delta"):
		text_grew.emit(value.text)


func _on_answer(answer: Dictionary) -> void:
	if answer.has("error"):
		_on_error(answer.error)
		return
	_playing = false
	pending = {}
	_tell_state(answer)
	text_grew.emit(answer.text)
	for action: Dictionary in answer.meta.actions:
		if not taken.has(action.effect_id):
			taken[action.effect_id] = true
			action_granted.emit(action)
	turn_done.emit(answer)


func _on_error(error: Dictionary) -> void:
	if error.retryable and _tried < tries:
		_retry_at_ms = Time.get_ticks_msec() + 500 * _tried
		return
	_playing = false
	if not error.retryable:
		pending = {}
	turn_failed.emit(error.code, error.message, error.retryable)


func _tell_state(state: Dictionary) -> void:
	if not _state_told:
		_state_told = true
		state_known.emit(state)


# Post the arguments, get an event id, read that event's stream.
class GradioCall:
	extends RefCounted

	signal generating(value: Dictionary)
	signal finished(answer: Dictionary)

	enum Step { POST, STREAM, DONE }

	var _base: String
	var _path: String
	var _body: String
	var _patience_ms: int
	var _heard_ms: int
	var _step := Step.POST
	var _http: HTTPClient
	var _sent := false
	var _code := 0
	var _received := PackedByteArray()
	var _events := SseParser.new()

	func _init(url: String, call_name: String, arguments: Dictionary, patience: float) -> void:
		_base = url.rstrip("/")
		var rest := _after_scheme()
		var prefix := "" if rest.find("/") < 0 else rest.substr(rest.find("/"))
		_path = prefix + "/gradio_api/call/v2/" + call_name
		_body = _written(arguments)
		_patience_ms = int(patience * 1000.0)
		_connect()

	# Escapes the control characters that Godot leaves as they are, or writes as "\v".
	func _written(arguments: Dictionary) -> String:
		var text := JSON.stringify(arguments)
		for code in range(1, 32):
			text = text.replace(String.chr(code), "\\u%04x" % code)
		text = text.replace("\\\\", String.chr(1)).replace("\\v", "\\u000b")
		return text.replace(String.chr(1), "\\\\")

	func done() -> bool:
		return _step == Step.DONE

	func poll() -> void:
		if _step == Step.DONE:
			return
		if Time.get_ticks_msec() - _heard_ms > _patience_ms:
			_broken("nothing came from %s for too long" % _base)
			return
		_http.poll()
		match _http.get_status():
			HTTPClient.STATUS_RESOLVING, HTTPClient.STATUS_CONNECTING, HTTPClient.STATUS_REQUESTING:
				pass
			HTTPClient.STATUS_CONNECTED:
				if _sent:
					_code = _http.get_response_code()
					_response_ended()
				else:
					_send()
			HTTPClient.STATUS_BODY:
				_code = _http.get_response_code()
				_read()
			HTTPClient.STATUS_DISCONNECTED:
				if _code != 0:
					_response_ended()
				else:
					_broken("%s closed the line" % _base)
			_:
				_broken("no engine answers at %s" % _base)

	func _after_scheme() -> String:
		return _base.trim_prefix("https://").trim_prefix("http://")

	func _connect() -> void:
		_http = HTTPClient.new()
		_sent = false
		_code = 0
		_heard_ms = Time.get_ticks_msec()
		var secure := _base.begins_with("https://")
		var authority := _after_scheme().split("/")[0].split(":")
		var port := 443 if secure else 80
		if authority.size() > 1:
			port = authority[1].to_int()
		_http.connect_to_host(authority[0], port, TLSOptions.client() if secure else null)

	func _send() -> void:
		_sent = true
		if _step == Step.POST:
			var headers := PackedStringArray(["Content-Type: application/json"])
			_http.request(HTTPClient.METHOD_POST, _path, headers, _body)
		else:
			var headers := PackedStringArray(["Accept: text/event-stream"])
			_http.request(HTTPClient.METHOD_GET, _path, headers)

	func _read() -> void:
		while _step != Step.DONE and _http.get_status() == HTTPClient.STATUS_BODY:
			var bytes := _http.read_response_body_chunk()
			if bytes.is_empty():
				return
			_heard_ms = Time.get_ticks_msec()
			if _step == Step.POST or _code != 200:
				_received.append_array(bytes)
				continue
			for event: Dictionary in _events.feed(bytes):
				_take(event)

	func _take(event: Dictionary) -> void:
		if _step == Step.DONE:
			return
		var data: Variant = JSON.parse_string(event.data)
		var value: Variant = data[0] if data is Array and data.size() > 0 else null
		match event.event:
			"generating":
				if value is Dictionary:
					generating.emit(value)
			"complete":
				if value is Dictionary:
					_finish(value)
				else:
					_broken("%s sent what is no answer" % _base)
			"error":
				_broken("the call failed at %s: %s" % [_base, event.data])

	func _response_ended() -> void:
		var answer: Variant = JSON.parse_string(_received.get_string_from_utf8())
		_received.clear()
		if _code == 200 and _step == Step.POST and answer is Dictionary and answer.has("event_id"):
			_step = Step.STREAM
			_path += "/" + str(answer.event_id)
			_connect()
		elif _code == 200:
			_broken("the answer of %s ended early" % _base)
		elif answer is Dictionary and answer.get("error") is Dictionary:
			_finish(answer)
		else:
			var passes := _code >= 500 or _code == 429 or _code == 408
			_fail("http_%d" % _code, "%s answered with HTTP status %d" % [_base, _code], passes)

	func _broken(message: String) -> void:
		_fail("unreachable", message, true)

	func _fail(code: String, message: String, retryable: bool) -> void:
		var error := {"code": code, "message": message, "retryable": retryable, "field": null}
		_finish({"error": error})

	func _finish(answer: Dictionary) -> void:
		_step = Step.DONE
		_http.close()
		finished.emit(answer)


# Keeps bytes until a line is whole, so that no character is cut.
class SseParser:
	extends RefCounted

	var _line := PackedByteArray()
	var _after_cr := false
	var _event := ""
	var _data := PackedStringArray()

	func feed(bytes: PackedByteArray) -> Array[Dictionary]:
		var events: Array[Dictionary] = []
		var from := 0
		for at in bytes.size():
			var byte := bytes[at]
			if byte == 10 and _after_cr:
				_after_cr = false
				from = at + 1
				continue
			_after_cr = byte == 13
			if byte == 10 or byte == 13:
				_line.append_array(bytes.slice(from, at))
				_end_line(events)
				from = at + 1
		_line.append_array(bytes.slice(from))
		return events

	func _end_line(events: Array[Dictionary]) -> void:
		var line := _line.get_string_from_utf8()
		_line.clear()
		if line.is_empty():
			if not _data.is_empty():
				var event := _event if _event != "" else "message"
				events.append({"event": event, "data": "\n".join(_data)})
			_event = ""
			_data.clear()
			return
		var colon := line.find(":")
		var field := line if colon < 0 else line.left(colon)
		var value := "" if colon < 0 else line.substr(colon + 1).trim_prefix(" ")
		match field:
			"event":
				_event = value
			"data":
				_data.append(value)
