# One call by Gradio's HTTP protocol: post the arguments, get an event id, read that event's stream.
#
#     POST /gradio_api/call/v2/NAME            the arguments as a JSON object → {"event_id": "…"}
#     GET  /gradio_api/call/v2/NAME/EVENT_ID   event: generating, data: [value so far]
#                                              event: complete,   data: [value]
#
# Whoever owns it calls `poll` every frame; it never blocks. Each request has its own connection, since
# a proxy may close one between the two. Failures of the line come in the form of the engine's errors.
# Knows nothing of turns.
extends Reference

signal generating(value)
# The last value, or {"error": {"code", "message", "retryable", "field"}}; comes exactly once.
signal finished(answer)

const JsonText := preload("json_text.gd")
const SseParser := preload("sse_parser.gd")

enum Step { POST, STREAM, DONE }

var _base: String
var _secure: bool
var _host: String
var _port: int
var _path: String
var _body: String
var _patience_ms: int
var _heard_ms: int
var _step: int = Step.POST
var _http: HTTPClient
var _sent := false
var _code := 0
var _received := PoolByteArray()
var _events := SseParser.new()
var _json := JsonText.new()


# `url` is the page's address, `patience` the seconds of silence after which the line counts as broken.
func _init(url: String, name: String, arguments: Dictionary, patience: float) -> void:
	_base = url.rstrip("/")
	_read_address()
	# A server behind a prefix ("https://host/npc") has it before every path.
	_path = _prefix() + "/gradio_api/call/v2/" + name
	_body = _json.write(arguments)
	_patience_ms = int(patience * 1000.0)
	_connect()


# Goes on as far as it can without waiting.
func poll() -> void:
	if _step == Step.DONE:
		return
	if OS.get_ticks_msec() - _heard_ms > _patience_ms:
		_broken("nothing came from %s in %d s" % [_base, _patience_ms / 1000])
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


func _read_address() -> void:
	_secure = _base.begins_with("https://")
	var authority := _after_scheme().split("/")[0].split(":")
	_host = authority[0]
	_port = 443 if _secure else 80
	if authority.size() > 1:
		_port = int(authority[1])


func _prefix() -> String:
	var slash := _after_scheme().find("/")
	return "" if slash < 0 else _after_scheme().substr(slash)


func _after_scheme() -> String:
	return _base.trim_prefix("https://").trim_prefix("http://")


func _connect() -> void:
	_http = HTTPClient.new()
	_sent = false
	_code = 0
	_heard_ms = OS.get_ticks_msec()
	_http.connect_to_host(_host, _port, _secure, _secure)


func _send() -> void:
	_sent = true
	if _step == Step.POST:
		_http.request(HTTPClient.METHOD_POST, _path, ["Content-Type: application/json"], _body)
	else:
		_http.request(HTTPClient.METHOD_GET, _path, ["Accept: text/event-stream"])


func _read() -> void:
	while _step != Step.DONE and _http.get_status() == HTTPClient.STATUS_BODY:
		var bytes := _http.read_response_body_chunk()
		if bytes.size() == 0:
			return
		_heard_ms = OS.get_ticks_msec()
		if _step == Step.POST or _code != 200:
			_received.append_array(bytes)
			continue
		for event in _events.feed(bytes):
			_take(event)


func _take(event: Dictionary) -> void:
	if _step == Step.DONE:
		return
	var data = _json.read(event.data)
	var value = data[0] if data is Array and data.size() > 0 else null
	match event.event:
		"generating":
			if value is Dictionary:
				emit_signal("generating", value)
		"complete":
			if value is Dictionary:
				_finish(value)
			else:
				_broken("%s sent what is no answer" % _base)
		"error":
			_broken("the call failed at %s: %s" % [_base, event.data])
		# Anything else is a heartbeat: the server works, and that was noted when its bytes came.


func _response_ended() -> void:
	var answer = _json.read(_received.get_string_from_utf8())
	_received = PoolByteArray()
	if _code == 200 and _step == Step.POST and answer is Dictionary and answer.has("event_id"):
		_step = Step.STREAM
		_path += "/" + String(answer.event_id)
		_connect()
	elif _code == 200:
		_broken("the answer of %s ended early" % _base)
	elif answer is Dictionary and answer.get("error") is Dictionary:
		_finish(answer)
	else:
		# Too much to do, or a proxy whose server is away, passes; what is refused is refused again.
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
	emit_signal("finished", answer)
