# Says one line and prints each signal of the client as a line of JSON, for tests with a server that
# breaks on purpose:
#     godot3-server --path examples/godot -s tests/say_once.gd -- URL TEXT TRIES PATIENCE
# The exit code is 0 where the turn is done, 1 where it failed.
extends SceneTree

const PersonaClient := preload("res://addons/persona_chat/persona_client.gd")
const SIGNALS := ["state_known", "text_grew", "action_granted", "turn_done"]

var _client := PersonaClient.new()


func _initialize() -> void:
	Engine.target_fps = 60
	var all := Array(OS.get_cmdline_args())
	var given := all.slice(all.find("--") + 1, all.size() - 1)
	_client.server_url = given[0]
	_client.npc_id = "npc"
	_client.player_id = "player"
	_client.tries = int(given[2])
	_client.patience = float(given[3])
	for name in SIGNALS:
		_client.connect(name, self, "_on_told", [name])
	_client.connect("turn_failed", self, "_on_failed")
	root.add_child(_client)
	_client.say(given[1])


func _on_told(value, name: String) -> void:
	print(to_json({"signal": name, "value": value}))
	if name == "turn_done":
		_end(0)


func _on_failed(code: String, message: String, retryable: bool) -> void:
	var error := {"code": code, "message": message, "retryable": retryable}
	print(to_json({"signal": "turn_failed", "value": error, "pending": _client.pending}))
	_end(1)


func _end(code: int) -> void:
	_client.queue_free()
	yield(self, "idle_frame")
	quit(code)
