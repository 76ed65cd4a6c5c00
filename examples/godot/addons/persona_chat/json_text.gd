# JSON, with what Godot 3's own reader and writer get wrong.
extends Reference


# Returns the value that `text` holds, or null where it is no JSON.
func read(text: String):
	var parsed := JSON.parse(_joined(text))
	return parsed.result if parsed.error == OK else null


# Returns `value` as JSON. Godot 3 leaves control characters as they are, which JSON forbids, and writes
# one of them as "\v", which JSON does not know; a player can paste them, and a save can hold them.
func write(value) -> String:
	var text := to_json(value)
	for code in range(1, 32):
		text = text.replace(char(code), "\\u%04x" % code)
	# Pairs of backslashes are set aside: the "v" after one is an ordinary letter.
	text = text.replace("\\\\", char(1)).replace("\\v", "\\u000b")
	return text.replace(char(1), "\\\\")


# Puts one character in place of the two escapes (\ud83d\ude42) that an emoji is written with, one for
# each half of its UTF-16 form: Godot 3 would make two broken characters of them.
func _joined(text: String) -> String:
	var done := ""
	var from := 0
	var at := text.find("\\")
	while at >= 0:
		var high := _unit(text, at)
		var low := _unit(text, at + 6)
		if high >= 0xD800 and high < 0xDC00 and low >= 0xDC00 and low < 0xE000:
			done += text.substr(from, at - from)
			done += char(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00)
			from = at + 12
			at = text.find("\\", from)
		else:
			# Past the character that the backslash escapes, which may be another backslash.
			at = text.find("\\", at + 2)
	return done + text.substr(from)


# Returns the UTF-16 unit that an escape at `at` names, or -1 where there is none.
func _unit(text: String, at: int) -> int:
	if text.substr(at, 2) != "\\u":
		return -1
	return ("0x" + text.substr(at + 2, 4)).hex_to_int()
