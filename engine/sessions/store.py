"""The session store: load, commit, undo, reset, transcript, save and load of a save file.

Knows nothing of SQL dialects, NPC files or what a state means.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sqlalchemy import URL, delete, select

from engine.errors import ConflictError, InvalidRequest
from engine.schema import SessionState, TurnResult
from engine.sessions.database import SESSIONS, TURNS, Database
from engine.sessions.rows import (
    insert_turn,
    locked_version,
    locked_versions,
    moved_on,
    of,
    put_session,
)
from engine.sessions.savefile import SAVE_FORMAT, SavedSession, SaveFile, parse_save
from engine.sessions.values import (
    StoredSession,
    StoredTurn,
    check_ids,
    dump,
    read,
    storable,
)

_VERSION_LIMIT = 2**63 - 1  # of a BIGINT column; no session gets near it


class SessionStore:
    """Sessions and turns in one database; every call is one transaction.

    Safe to share between threads, and its database between processes. Every method raises
    `StateStoreError` where the database fails (nothing is changed then) and `InvalidRequest` for
    an id that cannot be one.

    Args:
        url: SQLAlchemy URL. A SQLite file and its folders are made if missing.
        busy_timeout_s: how long a call waits for another process that writes (SQLite only).

    Raises:
        StateStoreError: the database cannot be opened; says what to do.
    """

    def __init__(self, url: str | URL, *, busy_timeout_s: float = 10.0) -> None:
        self._database = Database(url, busy_timeout_s)

    def load(self, player_id: str, npc_id: str) -> StoredSession:
        """Return the player's session with the NPC; version 0 and no state if they never met."""
        check_ids(player_id=player_id, npc_id=npc_id)
        columns = select(SESSIONS.c.state, SESSIONS.c.version)
        with self._database.transaction() as conn:
            row = conn.execute(columns.where(*of(SESSIONS, player_id, npc_id))).one_or_none()
        if row is None:
            return StoredSession(None, 0)
        state = None if row.state is None else read(SessionState, row.state)
        return StoredSession(state, row.version)

    def find_turn(
        self, player_id: str, npc_id: str, turn_id: str, body_hash: str
    ) -> TurnResult | None:
        """Return the stored answer to a turn that was already committed, else None.

        Raises:
            ConflictError: the turn_id was used for a turn with another body.
        """
        check_ids(player_id=player_id, npc_id=npc_id, turn_id=turn_id)
        query = select(TURNS.c.body_hash, TURNS.c.result).where(
            *of(TURNS, player_id, npc_id), TURNS.c.turn_id == turn_id
        )
        with self._database.transaction() as conn:
            row = conn.execute(query).one_or_none()
        if row is None:
            return None
        if row.body_hash != body_hash:
            raise ConflictError(
                f"turn_id {turn_id!r} was already used for another utterance or context; "
                "give every new turn a new turn_id",
                field="turn_id",
            )
        return read(TurnResult, row.result)

    def commit(
        self,
        *,
        player_id: str,
        npc_id: str,
        turn_id: str,
        body_hash: str,
        text: str,
        result: TurnResult,
        before: SessionState,
        after: SessionState,
        base_version: int,
    ) -> None:
        """Store a turn and the state it leads to, both or neither.

        Args:
            player_id: who spoke.
            npc_id: to whom.
            turn_id: unique for this player and NPC.
            body_hash: of the request, see `body_hash`.
            text: the utterance, for the transcript.
            result: the answer; `result.meta` must carry the ids and version `base_version + 1`.
            before: the state that `undo` goes back to.
            after: the state that the next turn starts from.
            base_version: the version `load` gave; the turn counts only if it still holds.

        Raises:
            ConflictError: field "turn_id": this turn was committed already; field
                "expected_version": something else happened to the session since it was loaded.
            InvalidRequest: a value that could not be read back once stored.
            ValueError: `result.meta` speaks of another turn (a mistake in the calling code).
        """
        check_ids(player_id=player_id, npc_id=npc_id, turn_id=turn_id)
        version = base_version + 1
        meta = result.meta
        stated = (meta.player_id, meta.npc_id, meta.turn_id, meta.version)
        if stated != (player_id, npc_id, turn_id, version):
            raise ValueError(f"result.meta is not of turn {turn_id!r} with version {version}")
        turn = {
            "player_id": player_id,
            "npc_id": npc_id,
            "turn_id": turn_id,
            "body_hash": body_hash,
            "text": storable(text),
            "result": dump(result, "result"),
            "state_before": dump(before, "state"),
            "version": version,
        }
        state = dump(after, "state")
        if not 0 <= base_version < _VERSION_LIMIT:
            raise moved_on(npc_id)
        with self._database.transaction(write=True) as conn:
            insert_turn(conn, turn)
            put_session(conn, player_id, npc_id, state, base=base_version, version=version)

    def undo(self, player_id: str, npc_id: str) -> StoredSession:
        """Take the last turn back: its state before holds again, under a new version.

        Raises:
            InvalidRequest: there is no turn to take back.
        """
        check_ids(player_id=player_id, npc_id=npc_id)
        query = select(TURNS.c.seq, TURNS.c.state_before).where(*of(TURNS, player_id, npc_id))
        with self._database.transaction(write=True) as conn:
            base = locked_version(conn, player_id, npc_id)
            last = conn.execute(query.order_by(TURNS.c.version.desc()).limit(1)).one_or_none()
            if last is None:
                raise InvalidRequest("there is no turn to take back with this NPC", field="npc_id")
            state = read(SessionState, last.state_before)
            conn.execute(delete(TURNS).where(TURNS.c.seq == last.seq))
            put_session(conn, player_id, npc_id, last.state_before, base=base, version=base + 1)
        return StoredSession(state, base + 1)

    def reset(self, player_id: str, npc_id: str) -> StoredSession:
        """Make the NPC forget the player: no state, no turns.

        The version goes up all the same (even if they never met), so a turn that is still under
        way cannot land after the reset.
        """
        check_ids(player_id=player_id, npc_id=npc_id)
        with self._database.transaction(write=True) as conn:
            base = locked_version(conn, player_id, npc_id)
            conn.execute(delete(TURNS).where(*of(TURNS, player_id, npc_id)))
            put_session(conn, player_id, npc_id, None, base=base, version=base + 1)
        return StoredSession(None, base + 1)

    def transcript(
        self, player_id: str, npc_id: str, *, limit: int | None = None
    ) -> list[StoredTurn]:
        """Return the committed turns, oldest first; with `limit`, only that many of the newest."""
        check_ids(player_id=player_id, npc_id=npc_id)
        query = (
            select(TURNS.c.text, TURNS.c.result)
            .where(*of(TURNS, player_id, npc_id))
            .order_by(TURNS.c.version.desc())
            .limit(limit)
        )
        with self._database.transaction() as conn:
            rows = conn.execute(query).all()
        return [StoredTurn(row.text, read(TurnResult, row.result)) for row in reversed(rows)]

    def save(self, player_id: str) -> SaveFile:
        """Return what all NPCs remember of the player, ready for the game's own save file."""
        check_ids(player_id=player_id)
        query = (
            select(SESSIONS.c.npc_id, SESSIONS.c.state, SESSIONS.c.version)
            .where(SESSIONS.c.player_id == player_id, SESSIONS.c.state.is_not(None))
            .order_by(SESSIONS.c.npc_id)
        )
        with self._database.transaction() as conn:
            rows = conn.execute(query).all()
        # Not validated: a version above what a file may bring in must still be let out.
        sessions = {
            row.npc_id: SavedSession.model_construct(
                state=read(SessionState, row.state), version=row.version
            )
            for row in rows
        }
        return SaveFile.model_construct(
            format=SAVE_FORMAT, schema_version=1, player_id=player_id, sessions=sessions
        )

    def load_save(self, data: Mapping[str, Any]) -> SaveFile:
        """Put a save file in place of all that the NPCs remember of its player, all or nothing.

        NPCs that the file does not name forget the player; the player's turns are dropped. Every
        version goes up past both the stored and the saved one.

        Returns:
            The file with the versions that now hold.

        Raises:
            InvalidRequest: the file is at fault; names the field.
            ConflictError: a turn came in between; load again.
        """
        save = parse_save(data)
        player_id = save.player_id
        states = {
            npc_id: dump(saved.state, f"sessions.{npc_id}.state")
            for npc_id, saved in save.sessions.items()
        }
        versions: dict[str, int] = {}
        with self._database.transaction(write=True) as conn:
            stored = locked_versions(conn, player_id)
            conn.execute(delete(TURNS).where(TURNS.c.player_id == player_id))
            for npc_id in sorted({*stored, *states}):
                base = stored.get(npc_id, 0)
                saved = save.sessions.get(npc_id)
                versions[npc_id] = max(base, saved.version if saved else 0) + 1
                put_session(
                    conn,
                    player_id,
                    npc_id,
                    states.get(npc_id),
                    base=base,
                    version=versions[npc_id],
                )
        sessions = {
            npc_id: saved.model_copy(update={"version": versions[npc_id]})
            for npc_id, saved in save.sessions.items()
        }
        return save.model_copy(update={"sessions": sessions})

    def close(self) -> None:
        """Give all connections back; every later call raises `StateStoreError`."""
        self._database.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
