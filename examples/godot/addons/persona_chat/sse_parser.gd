# Server-sent events out of bytes, in whatever pieces the network hands them over.
# https://html.spec.whatwg.org/multipage/server-sent-events.html
#
# Knows nothing of HTTP or JSON. Only "event" and "data" are read; "id" and "retry" are not used here.
extends Reference

const LF := 10
const CR := 13

var _line := PoolByteArray()
var _after_cr := false
var _event := ""
var _data := PoolStringArray()


# Returns the events that `bytes` complete: an Array of {"event": String, "data": String}.
func feed(bytes: PoolByteArray) -> Array:
	var events := []
	var from := 0
	for at in bytes.size():
		var byte := bytes[at]
		if byte == LF and _after_cr:
			# The second half of a CR LF, whose line has ended already.
			_after_cr = false
			from = at + 1
			continue
		_after_cr = byte == CR
		if byte == LF or byte == CR:
			_keep(bytes, from, at)
			_end_line(events)
			from = at + 1
	_keep(bytes, from, bytes.size())
	return events


func _keep(bytes: PoolByteArray, from: int, to: int) -> void:
	if to > from:
		_line.append_array(bytes.subarray(from, to - 1))


# Bytes become text only here: a piece may end inside a character, a line cannot.
func _end_line(events: Array) -> void:
	var line := _line.get_string_from_utf8()
	_line = PoolByteArray()
	if line.empty():
		if _data.size() > 0:
			var event := _event if _event != "" else "message"
			events.append({"event": event, "data": _data.join("\n")})
		_event = ""
		_data = PoolStringArray()
		return
	var colon := line.find(":")
	var field := line if colon < 0 else line.left(colon)
	var value := "" if colon < 0 else line.substr(colon + 1)
	if value.begins_with(" "):
		value = value.substr(1)
	# A line that begins with a colon is a comment: its field is empty, and matches nothing.
	match field:
		"event":
			_event = value
		"data":
			_data.append(value)
