# Which effects have happened in this game: each action is applied once, however often its turn is seen.
#
# An action's `effect_id` is the same on every retry of a turn. The ledger belongs in the game's save
# file, beside what `save_minds` returned.
extends Reference

var _taken := {}


# Returns those of `actions` that have not happened yet, and counts them as happened.
func take(actions: Array) -> Array:
	var fresh := []
	for action in actions:
		if not _taken.has(action.effect_id):
			_taken[action.effect_id] = true
			fresh.append(action)
	return fresh


# Returns the ids of all that has happened, for a save file.
func to_list() -> Array:
	return _taken.keys()


# Replaces all that has happened by what `to_list` returned.
func from_list(effect_ids: Array) -> void:
	_taken.clear()
	for effect_id in effect_ids:
		_taken[effect_id] = true
