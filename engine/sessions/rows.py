"""Reading and moving one session's row, under the version it must still have.

Every function works inside the caller's transaction. Knows nothing of what a state holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from engine.errors import ConflictError
from engine.sessions.database import SESSIONS, TURNS


def of(table: Table, player_id: str, npc_id: str) -> tuple[Any, Any]:
    """Return the conditions that pick the rows of one player with one NPC."""
    return table.c.player_id == player_id, table.c.npc_id == npc_id


def locked_version(conn: Connection, player_id: str, npc_id: str) -> int:
    """Return the session's version (0 without one) and keep others from changing it."""
    query = select(SESSIONS.c.version).where(*of(SESSIONS, player_id, npc_id))
    return conn.execute(query.with_for_update()).scalar_one_or_none() or 0


def locked_versions(conn: Connection, player_id: str) -> dict[str, int]:
    """Do as `locked_version` for all NPCs of a player, in one order so as not to deadlock."""
    query = select(SESSIONS.c.npc_id, SESSIONS.c.version).where(SESSIONS.c.player_id == player_id)
    rows = conn.execute(query.order_by(SESSIONS.c.npc_id).with_for_update())
    return {row.npc_id: row.version for row in rows}


def insert_turn(conn: Connection, turn: Mapping[str, Any]) -> None:
    """Write a turn's row.

    Raises:
        ConflictError: there is one for this turn_id already.
    """
    try:
        conn.execute(insert(TURNS), turn)
    except IntegrityError as exc:
        raise ConflictError(
            f"turn_id {turn['turn_id']!r} was already committed; ask for its stored result",
            field="turn_id",
        ) from exc


def put_session(
    conn: Connection, player_id: str, npc_id: str, state: str | None, *, base: int, version: int
) -> None:
    """Write a session that is at version `base` (0: has no row yet) and move it to `version`.

    Raises:
        ConflictError: it is no longer at `base`.
    """
    try:
        if base == 0:
            key = {"player_id": player_id, "npc_id": npc_id}
            conn.execute(insert(SESSIONS), {**key, "state": state, "version": version})
            return
        changed = conn.execute(
            update(SESSIONS)
            .where(*of(SESSIONS, player_id, npc_id), SESSIONS.c.version == base)
            .values(state=state, version=version)
        )
    except IntegrityError as exc:
        raise moved_on(npc_id) from exc
    if changed.rowcount != 1:
        raise moved_on(npc_id)


def moved_on(npc_id: str) -> ConflictError:
    """Return the refusal of a change that was made for an older version."""
    return ConflictError(
        f"the session with {npc_id!r} has moved on since it was read; read it again and retry",
        field="expected_version",
    )
