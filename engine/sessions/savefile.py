"""The save file: all that the NPCs remember of one player, for the game's own saves.

It comes back from outside and may have been edited, so it is checked as strictly as a call.
Knows nothing of the database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from engine.errors import InvalidRequest
from engine.schema import Name, SessionState, Value, whole_number
from engine.sessions.values import MAX_ID, check_ids, refusal

SAVE_FORMAT: Final = "persona-chat-engine/save"
MAX_SAVED_SESSIONS = 1000
MAX_SAVE_CHARS = 16_000_000
MAX_SAVED_VERSION = 10**9  # far above any real one, and far below where the column overflows


class SavedSession(Value):
    """One NPC's memory of the player, as a save file carries it."""

    state: SessionState
    version: Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=MAX_SAVED_VERSION)]


class SaveFile(Value):
    """Everything that the NPCs remember of one player. `model_dump(mode="json")` is its file."""

    format: Literal["persona-chat-engine/save"]
    schema_version: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=1)]
    player_id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    sessions: Annotated[dict[Name, SavedSession], Field(max_length=MAX_SAVED_SESSIONS)]


def parse_save(data: Mapping[str, Any]) -> SaveFile:
    """Check a save file strictly: a number in quotes or a misspelt key is refused.

    Raises:
        InvalidRequest: naming the field at fault.
    """
    if not isinstance(data, Mapping):
        raise InvalidRequest("save: must be one JSON object", field="save")
    try:
        text = json.dumps(dict(data), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest("save: holds something that is not JSON", field="save") from exc
    if len(text) > MAX_SAVE_CHARS:
        raise InvalidRequest(
            f"save: is longer than {MAX_SAVE_CHARS} characters; a real one is far shorter",
            field="save",
        )
    try:
        save = SaveFile.model_validate_json(text, strict=True)
    except ValidationError as exc:
        raise refusal(exc, root="save") from exc
    for npc_id in save.sessions:
        check_ids(player_id=save.player_id, npc_id=npc_id)
    return save
