# A dialogue: the NPC's name, the line as it grows, where the player stands, and what was granted.
#
# Knows nothing of HTTP; the node "Client" does the talking. As shipped, the player has what Silvia asks
# for; a game sets `items` and `actions` from its own state, and applies actions where it keeps that.
extends Control

# What the player has, and has done, by the names in the NPC's file.
export(Array, String) var items := ["photo_forgotten_party"]
export(Array, String) var actions := ["visited_factory"]
# Godot's built-in font has Latin letters only: Korean needs a font that has Hangul.
export(Font) var font

onready var client := $Client
onready var _name: Label = $Margin/Rows/Name
onready var _line: Label = $Margin/Rows/Line
onready var _trust: ProgressBar = $Margin/Rows/Standing/Trust
onready var _relationship: ProgressBar = $Margin/Rows/Standing/Relationship
onready var _granted: ItemList = $Margin/Rows/Granted
onready var _input: LineEdit = $Margin/Rows/Say/Text
onready var _again: Button = $Margin/Rows/Say/Again
onready var _notice: Label = $Margin/Rows/Notice


func _ready() -> void:
	if font != null:
		theme = Theme.new()
		theme.default_font = font
	if client.player_id == "":
		# A game keeps this id in its save file: it is what the NPC knows the player by.
		client.player_id = "godot-" + Crypto.new().generate_random_bytes(6).hex_encode()
	_listen(true)
	_introduce()


# Asks who the NPC is and where the player stands with it.
func _introduce() -> void:
	var answer = yield(client.request("npcs"), "completed")
	for npc in answer.get("npcs", []):
		if npc.npc_id == client.npc_id:
			_name.text = npc.name
			if _line.text == "":
				_line.text = npc.greeting
	var who := {"player_id": client.player_id, "npc_id": client.npc_id}
	var session = yield(client.request("session", who), "completed")
	if session.has("error"):
		_notice.text = session.error.message
	elif client.pending.empty():
		_show_standing(session.standing)


func _on_Text_text_entered(text: String) -> void:
	if text.strip_edges() == "" or not client.pending.empty():
		return
	_listen(false)
	_input.clear()
	_line.text = "..."
	client.say(text, {"items": items, "actions": actions})


func _on_Again_pressed() -> void:
	_listen(false)
	client.retry()


func _on_Client_state_known(state: Dictionary) -> void:
	_show_standing(state.meta.state)


func _on_Client_text_grew(text: String) -> void:
	_line.text = text


func _on_Client_action_granted(action: Dictionary) -> void:
	_granted.add_item(action.text if action.text != "" else action.flag)
	if action.flag == "give_item" and action.value != null and not items.has(action.value):
		items.append(action.value)


func _on_Client_turn_done(_result: Dictionary) -> void:
	_listen(true)


# A turn that may have been played must be finished before anything else is said, or what it granted
# would be lost; so there is only the button.
func _on_Client_turn_failed(_code: String, message: String, retryable: bool) -> void:
	_listen(not retryable)
	_notice.text = message
	_again.visible = retryable


func _listen(yes: bool) -> void:
	_input.editable = yes
	_again.visible = false
	_notice.text = ""
	if yes:
		_input.grab_focus()


func _show_standing(standing: Dictionary) -> void:
	_trust.value = standing.trust
	_relationship.value = standing.relationship
