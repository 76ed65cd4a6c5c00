# Plays the example without a window, against a running engine, and checks what comes:
#     godot3-server --path examples/godot -s run_headless.gd -- URL NPC PLAYER
# Each argument may be left out. The exit code is the number of checks that failed.
extends SceneTree

const PersonaClient := preload("res://addons/persona_chat/persona_client.gd")
const Dialogue := preload("res://dialogue/dialogue.tscn")

const SILVIA := "mother_abandoned_factory"
const PHOTO := "I found this photograph of the party. Please look at it. Is this Jason?"
const FOUND := {
	"items": ["photo_forgotten_party"], "actions": ["visited_factory"], "trust": 0.45
}
# After this long something hangs, and the run ends as failed.
const LIMIT_SECONDS := 240.0

var _client
var _failed := 0
# What the client has told of the present turn: names of signals in order, each once in a row.
var _told := []
var _texts := []
var _granted := []
var _error := {}
var _result := {}


func _initialize() -> void:
	# Without a screen to wait for, frames would follow each other as fast as the processor goes.
	Engine.target_fps = 60
	create_timer(LIMIT_SECONDS).connect("timeout", self, "_on_limit")
	_run()


func _run():
	var given := _arguments()
	_client = PersonaClient.new()
	_client.server_url = given[0]
	_client.npc_id = given[1]
	_client.player_id = given[2]
	for name in ["state_known", "text_grew", "action_granted", "turn_done"]:
		_client.connect(name, self, "_on_told", [name])
	_client.connect("turn_failed", self, "_on_failed")
	root.add_child(_client)
	if yield(_wait_ready(), "completed"):
		yield(_play(), "completed")
	print("%d failed" % _failed)
	_client.queue_free()
	yield(self, "idle_frame")
	quit(_failed)


func _arguments() -> Array:
	var given := ["http://127.0.0.1:7860", SILVIA, "godot-" + _random()]
	var all := Array(OS.get_cmdline_args())
	if all.has("--"):
		var own := all.slice(all.find("--") + 1, all.size() - 1)
		for i in min(own.size(), given.size()):
			given[i] = own[i]
	return given


func _wait_ready():
	for _second in 120:
		var status = yield(_client.request("status"), "completed")
		if status.get("ready", false):
			print("%s serves %s" % [_client.server_url, status.base])
			return true
		if status.has("error"):
			_check(false, status.error.message)
			return false
		yield(create_timer(1.0), "timeout")
	_check(false, "the engine is ready")
	return false


func _play():
	yield(_turn("Good evening. May I stand here with you for a while?", {}), "completed")
	var second = yield(_turn(PHOTO, FOUND), "completed")
	var granted := _granted.duplicate()
	if _client.npc_id == SILVIA:
		_check(granted.has("gold_necklace"), "the necklace is granted for the photograph")
	yield(_same_turn_again(second), "completed")
	yield(_turn("고마워요, 실비아. 🙂", {}), "completed")
	yield(_unknown_npc(), "completed")
	yield(_save_and_load(), "completed")


func _turn(text: String, context: Dictionary):
	_forget_told()
	print("\nplayer: %s" % text)
	var turn_id: String = _client.say(text, context)
	var turn: Dictionary = _client.pending.duplicate(true)
	yield(_answered(), "completed")
	if not _error.empty():
		_check(false, "a turn is answered: %s" % _error.message)
		return turn
	var order := PoolStringArray(_told).join(" → ")
	_check(_told[0] == "state_known" and _told[1] == "text_grew", order)
	_check(_told.back() == "turn_done", "the line grew in %d steps" % _texts.size())
	turn.result = _result
	_check(turn.result.meta.turn_id == turn_id, "the turn has the id that was sent")
	print("%s: %s" % [turn.npc_id, turn.result.text])
	return turn


# As after a broken line: the engine returns what it stored, and nothing happens twice.
func _same_turn_again(turn: Dictionary):
	_forget_told()
	print("\nthe same turn again")
	if not turn.has("result"):
		return yield(self, "idle_frame")
	var before = turn.result
	turn.erase("result")
	_client.pending = turn
	_client.retry()
	yield(_answered(), "completed")
	_check(_error.empty() and _result.text == before.text, "the same words come back")
	_check(_granted.empty(), "nothing is granted again")


func _unknown_npc():
	_forget_told()
	print("\na turn with nobody")
	var npc: String = _client.npc_id
	_client.npc_id = "nobody"
	_client.say("Hello?")
	yield(_answered(), "completed")
	_client.npc_id = npc
	_check(_error.get("code") == "unknown_npc", String(_error.get("message")))
	_check(_error.get("retryable") == false and _client.pending.empty(), "it is not sent again")


func _save_and_load():
	print("\nsave, one line more in the dialogue scene, load")
	var save = yield(_client.save_minds(), "completed")
	_check(save.has("sessions"), "saved")
	var turns: int = yield(_history(), "completed").size()
	_check(turns == 3, "the NPC remembers %d turns" % turns)
	yield(_dialogue_scene(), "completed")
	turns = yield(_history(), "completed").size()
	_check(turns == 4, "and %d after the scene" % turns)
	# Through a file's text, as a game would keep it.
	var loaded = yield(_client.load_minds(parse_json(to_json(save))), "completed")
	_check(loaded.get("loaded") == true, "loaded: %s" % to_json(loaded))
	var history = yield(_history(), "completed")
	_check(history.size() == 3, "the NPC remembers %d turns again" % history.size())
	_check(history.back().player == "고마워요, 실비아. 🙂", "Korean and emoji came back whole")


# Types a line and presses Enter, as a player does.
func _dialogue_scene():
	var scene := Dialogue.instance()
	var client = scene.get_node("Client")
	client.server_url = _client.server_url
	client.npc_id = _client.npc_id
	client.player_id = _client.player_id
	client.connect("turn_done", self, "_on_told", ["turn_done"])
	client.connect("turn_failed", self, "_on_failed")
	root.add_child(scene)
	_forget_told()
	var input: LineEdit = scene.get_node("Margin/Rows/Say/Text")
	input.text = "Please tell me about your son."
	var enter := InputEventKey.new()
	enter.scancode = KEY_ENTER
	enter.pressed = true
	Input.parse_input_event(enter)
	yield(_answered(), "completed")
	var line: Label = scene.get_node("Margin/Rows/Line")
	_check(_error.empty() and line.text == _result.text, "the scene shows: %s" % line.text)
	var trust: float = scene.get_node("Margin/Rows/Standing/Trust").value
	var stands: float = _result.meta.state.trust
	_check(abs(trust - stands) < 0.001, "the bar shows a trust of %.3f" % trust)
	var shown: String = scene.get_node("Margin/Rows/Name").text
	_check(shown != "", "the scene names the NPC: %s" % shown)
	_check(input.text == "" and input.editable, "the text field waits for the next line")
	scene.queue_free()
	yield(self, "idle_frame")


func _history():
	var who := {"player_id": _client.player_id, "npc_id": _client.npc_id}
	var session = yield(_client.request("session", who), "completed")
	return session.get("history", [])


# Waits for the end of a turn, good or bad.
func _answered():
	yield(self, "idle_frame")
	while not _told.has("turn_done") and _error.empty():
		yield(self, "idle_frame")


func _on_told(value, name: String) -> void:
	if _told.empty() or _told.back() != name:
		_told.append(name)
	match name:
		"text_grew":
			_texts.append(value)
		"state_known":
			var state: Dictionary = value.meta.state
			var delta: Dictionary = value.delta
			print("  trust %+.3f → %.3f" % [delta.trust, state.trust], ", ", _fired(value.flags))
		"action_granted":
			_granted.append(value.value)
			print("  granted: %s" % value.text)
		"turn_done":
			_result = value


func _on_failed(code: String, message: String, retryable: bool) -> void:
	_error = {"code": code, "message": message, "retryable": retryable}


func _on_limit() -> void:
	print("FAIL  nothing more came; told of the last turn: %s" % [_told])
	quit(1)


func _forget_told() -> void:
	_told = []
	_texts = []
	_granted = []
	_error = {}


func _fired(flags: Dictionary) -> String:
	var fired := PoolStringArray()
	for flag in flags:
		if flags[flag]:
			fired.append(flag)
	return "fired: " + (fired.join(", ") if fired.size() > 0 else "nothing")


func _random() -> String:
	return Crypto.new().generate_random_bytes(6).hex_encode()


func _check(right: bool, what: String) -> void:
	print("  %s  %s" % ["ok  " if right else "FAIL", what])
	if not right:
		_failed += 1
