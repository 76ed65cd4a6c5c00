# Talks to one NPC of a Persona Chat Engine: a turn is streamed, retried with its id, applied once.
#
#     client.say("Good evening.", {"items": ["lantern"]})
#
# Signals of a turn, in this order: `state_known` once, `text_grew` again and again, `action_granted`
# for each new action, and last `turn_done`; or `turn_failed` alone.
# Knows nothing of scenes or of what an action changes in the game.
extends Node

# What was decided, before the first word: {"delta", "flags", "meta"}; `meta.state` is where trust and
# relationship stand now, `meta.actions` what will be granted. Show it; apply at `action_granted`.
signal state_known(state)
# The line as far as it is written.
signal text_grew(text)
# An action that has not happened in this game: {"flag", "value", "text", "effect_id", …}.
signal action_granted(action)
# The whole result: {"text", "delta", "flags", "meta"}.
signal turn_done(result)
# Where `retryable`, the turn stays in `pending`: it may have been played, so call `retry`.
signal turn_failed(code, message, retryable)

const EffectLedger := preload("effect_ledger.gd")
const GradioCall := preload("gradio_call.gd")

export(String) var server_url := "http://127.0.0.1:7860"
export(String) var npc_id := ""
# Names the player to the engine; it is not a secret.
export(String) var player_id := ""
# Seconds of silence after which a try counts as broken.
export(float) var patience := 60.0
# How often a turn is sent before it fails; the pauses in between grow by half a second.
export(int) var tries := 5

# What has happened in this game; keep it in the save file.
var ledger := EffectLedger.new()
# The turn that has no answer yet, as it is sent, or {}; keep it in the save file.
var pending := {}

var _calls := []
var _playing := false
var _tried := 0
var _retry_at_ms := -1
var _state_told := false


func _init() -> void:
	# A game that pauses while people talk would otherwise stop hearing the answer.
	pause_mode = PAUSE_MODE_PROCESS


# Says `text` with what the game knows (see the engine's `context`); returns the turn's id.
# While a turn has no answer nothing else can be said: then it returns "".
func say(text: String, context := {}) -> String:
	if not pending.empty():
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


# Sends the pending turn again with its own id: the engine plays it once, or returns what it stored.
func retry() -> void:
	if pending.empty() or _playing:
		return
	_playing = true
	_tried = 0
	_state_told = false
	_try()


# Returns all that the NPCs remember of the player, or {"error": …}:
#     var save = yield(client.save_minds(), "completed")
func save_minds():
	return request("save", {"player_id": player_id})


# Makes the NPCs remember what `save_minds` returned; itself returns {"loaded", …} or {"error": …}.
func load_minds(save: Dictionary):
	return request("load", {"data": save})


# Makes any call of the engine's API and returns its answer, or {"error": …}; wait for it as above.
func request(name: String, arguments := {}):
	return yield(_start(name, arguments), "finished")


func _process(_delta: float) -> void:
	# The clock and not the frames' time: that one stands still in a game that is slowed down.
	if _retry_at_ms >= 0 and OS.get_ticks_msec() >= _retry_at_ms:
		_retry_at_ms = -1
		_try()
	for call in _calls.duplicate():
		call.poll()


func _start(name: String, arguments: Dictionary) -> GradioCall:
	var call := GradioCall.new(server_url, name, arguments, patience)
	_calls.append(call)
	call.connect("finished", self, "_on_call_finished", [weakref(call)])
	return call


func _on_call_finished(_answer: Dictionary, call: WeakRef) -> void:
	_calls.erase(call.get_ref())


func _try() -> void:
	_tried += 1
	var call := _start("ask_stream", pending)
	call.connect("generating", self, "_on_generating")
	call.connect("finished", self, "_on_answer")


# The stream brings the state, then the growing text, then the whole result, which comes once more as
# the answer and is read there.
func _on_generating(value: Dictionary) -> void:
	if value.has("delta") and not value.has("text"):
		_tell_state(value)
	elif value.has("text") and not value.has("delta"):
		emit_signal("text_grew", value.text)


func _on_answer(answer: Dictionary) -> void:
	if answer.has("error"):
		_on_error(answer.error)
		return
	_playing = false
	pending = {}
	_tell_state(answer)
	# The line is whole only now, and on an authored path it comes here for the first time.
	emit_signal("text_grew", answer.text)
	for action in ledger.take(answer.meta.actions):
		emit_signal("action_granted", action)
	emit_signal("turn_done", answer)


func _on_error(error: Dictionary) -> void:
	var retryable: bool = error.retryable
	if retryable and _tried < tries:
		_retry_at_ms = OS.get_ticks_msec() + 500 * _tried
		return
	_playing = false
	if not retryable:
		pending = {}
	emit_signal("turn_failed", error.code, error.message, retryable)


# Once a turn: a second try tells the same again.
func _tell_state(state: Dictionary) -> void:
	if not _state_told:
		_state_told = true
		emit_signal("state_known", state)
