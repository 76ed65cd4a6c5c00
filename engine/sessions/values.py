"""What goes into the session store and comes out: ids, stored sessions and turns, their JSON.

Knows nothing of the database.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from engine.errors import InvalidRequest, StateStoreError
from engine.schema import (
    MAX_NAME,
    SessionState,
    TurnRequest,
    TurnResult,
    Value,
    first_complaint,
)

logger = logging.getLogger(__name__)

MAX_ID = 128

ValueT = TypeVar("ValueT", bound=Value)

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class StoredSession:
    """Where a player stands with an NPC.

    `state` is None where there is nothing to remember: never met (version 0), or forgotten since.
    """

    state: SessionState | None
    version: int


@dataclass(frozen=True)
class StoredTurn:
    """A committed turn: what the player said, and the answer."""

    text: str
    result: TurnResult


def body_hash(request: TurnRequest) -> str:
    """Return the SHA-256 (hex) of what a turn asks: its text, context and sampling.

    Neither `turn_id` nor `expected_version` counts, and a default written out is the same as one
    left out, so an honest retry has the same hash.
    """
    body = request.model_dump(
        mode="json", include={"text", "context", "gen_params"}, exclude_defaults=True
    )
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_ids(**ids: str) -> None:
    """Refuse what cannot be an id; the arguments are named like the fields of a request.

    Raises:
        InvalidRequest: naming the field at fault.
    """
    for field, value in ids.items():
        most = MAX_NAME if field == "npc_id" else MAX_ID
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise InvalidRequest(f"{field}: must be a text of 1 to {most} characters", field=field)
        if _UNSTORABLE.search(value):
            raise InvalidRequest(f"{field}: holds a character that is no text", field=field)


def storable(text: str) -> str:
    """Return `text` with a replacement character for whatever no database can hold."""
    return _UNSTORABLE.sub("\ufffd", text)


def read(kind: type[ValueT], text: str) -> ValueT:
    """Return what `dump` made of a value of this kind.

    Raises:
        StateStoreError: another version wrote it; says what to do.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        place, message = first_complaint(exc)
        logger.error("stored %s cannot be read: %s: %s", kind.__name__, place, message)
        raise StateStoreError(
            "What is stored for this player and NPC was written by another version and cannot be "
            "read. Run that version, or reset this player with this NPC."
        ) from exc


def dump(value: Value, field: str) -> str:
    """Return `value` as JSON that is sure to be readable again.

    A NaN or an over-long list that gets into the database would lock the player out for good.

    Raises:
        InvalidRequest: it could not be read back; names `field`.
    """
    try:
        text = value.model_dump_json()
        type(value).model_validate_json(text)
    except ValidationError as exc:
        raise refusal(exc, root=field, prefix=f"{field}.") from exc
    except ValueError as exc:
        raise InvalidRequest(f"{field}: cannot be stored: {exc}", field=field) from exc
    return text


def refusal(exc: ValidationError, *, root: str, prefix: str = "") -> InvalidRequest:
    """Translate pydantic's first complaint; `root` names the field where that names none."""
    place, message = first_complaint(exc)
    # A hostile file can have keys of any length; the error must not carry them along.
    field = root if place == "request" else (prefix + place)[:200]
    return InvalidRequest(f"{field}: {message}", field=field)
