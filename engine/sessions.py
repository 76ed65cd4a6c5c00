"""What the engine remembers: every player's state with every NPC, and the turns that led there.

A session's version counts up with everything that happens to it (a turn, an undo, a reset, a
loaded save file) and never comes back, so whoever still holds an older version is told so.
Knows nothing of models, NPC files or what a state means.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    QueuePool,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    false,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError

from engine.errors import ConflictError, InvalidRequest, StateStoreError
from engine.schema import (
    MAX_NAME,
    Name,
    SessionState,
    TurnRequest,
    TurnResult,
    Value,
    first_complaint,
)

logger = logging.getLogger(__name__)

SAVE_FORMAT: Final = "persona-chat-engine/save"
MAX_ID = 128
MAX_SAVED_SESSIONS = 1000
MAX_SAVE_CHARS = 16_000_000
MAX_SAVED_VERSION = 10**9  # far above any real one, and far below where the column overflows

_VERSION_LIMIT = 2**63 - 1  # of a BIGINT column; no session gets near it

ValueT = TypeVar("ValueT", bound=Value)

_WRITES = "sessions_write"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

_METADATA = MetaData()
_SESSIONS = Table(
    "sessions",
    _METADATA,
    Column("player_id", String(MAX_ID), primary_key=True),
    Column("npc_id", String(MAX_NAME), primary_key=True),
    Column("state", Text, nullable=True),  # NULL: forgotten; the row stays to keep the version
    Column("version", BigInteger, nullable=False),
)
_TURNS = Table(
    "turns",
    _METADATA,
    # SQLite numbers rows by itself only where the type is INTEGER to the letter.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("player_id", String(MAX_ID), nullable=False),
    Column("npc_id", String(MAX_NAME), nullable=False),
    Column("turn_id", String(MAX_ID), nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("state_before", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("player_id", "npc_id", "turn_id"),
    Index("turns_in_order", "player_id", "npc_id", "version"),
    # Deferred: a turn is written before the session that it moves, and a player's first turn
    # before there is one.
    ForeignKeyConstraint(
        ["player_id", "npc_id"],
        ["sessions.player_id", "sessions.npc_id"],
        deferrable=True,
        initially="DEFERRED",
    ),
    sqlite_autoincrement=True,
)

_ADVICE: tuple[tuple[str, str], ...] = (
    (
        "not a database|malformed",
        "The session database is damaged, or the file is something else. Stop the program, then "
        "move the file away (a new one is made) or put a backup in its place.",
    ),
    (
        "unable to open|readonly|read-only|permission denied",
        "The session database cannot be opened for writing. Give the program write access to its "
        "folder, or set DATA_DIR or DATABASE_URL to another place.",
    ),
    (
        "is locked",
        "Another program is holding the session database. Try again in a moment.",
    ),
    (
        "disk is full|no space left",
        "The disk with the session database is full. Make room, then try again.",
    ),
    (
        "no such column|no such table|has no column|does not exist",
        "The session database was made by another version or another program. Set DATABASE_URL "
        "to a database of this version, or to a new one.",
    ),
)
_ADVICE_OTHERWISE = (
    "The session database failed. Try again with the same turn_id; if it goes on, the reason is "
    "in the log."
)


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


def _whole(value: Any) -> Any:
    """Take 7.0 for 7: a save file may have gone through a JSON writer that knows only floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class SavedSession(Value):
    """One NPC's memory of the player, as a save file carries it."""

    state: SessionState
    version: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MAX_SAVED_VERSION)]


class SaveFile(Value):
    """Everything that the NPCs remember of one player. `model_dump(mode="json")` is its file."""

    format: Literal["persona-chat-engine/save"]
    schema_version: Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1)]
    player_id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    sessions: Annotated[dict[Name, SavedSession], Field(max_length=MAX_SAVED_SESSIONS)]


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
        raise _refusal(exc, root="save") from exc
    for npc_id in save.sessions:
        _check_ids(player_id=save.player_id, npc_id=npc_id)
    return save


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
        self._closed = False
        place = "DATABASE_URL"
        engine: Engine | None = None
        try:
            parsed = make_url(url)
            place = _place(parsed)
            engine = _make_engine(parsed, busy_timeout_s)
            self._engine = engine
            self._writer = engine.execution_options(**{_WRITES: True})
            _create_tables(self._writer)
        except ImportError as exc:
            raise StateStoreError(
                f"{place}: the driver for this database is not installed ({exc.name}). "
                "For Postgres: pip install 'psycopg[binary]' and write postgresql+psycopg://…"
            ) from exc
        except (SQLAlchemyError, OSError) as exc:
            if engine is not None:
                engine.dispose()
            raise StateStoreError(f"{place}: {_opening_advice(exc)}") from exc

    def load(self, player_id: str, npc_id: str) -> StoredSession:
        """Return the player's session with the NPC; version 0 and no state if they never met."""
        _check_ids(player_id=player_id, npc_id=npc_id)
        columns = select(_SESSIONS.c.state, _SESSIONS.c.version)
        with self._transaction(self._engine) as conn:
            row = conn.execute(columns.where(*_of(_SESSIONS, player_id, npc_id))).one_or_none()
        if row is None:
            return StoredSession(None, 0)
        state = None if row.state is None else _read(SessionState, row.state)
        return StoredSession(state, row.version)

    def find_turn(
        self, player_id: str, npc_id: str, turn_id: str, body_hash: str
    ) -> TurnResult | None:
        """Return the stored answer to a turn that was already committed, else None.

        Raises:
            ConflictError: the turn_id was used for a turn with another body.
        """
        _check_ids(player_id=player_id, npc_id=npc_id, turn_id=turn_id)
        query = select(_TURNS.c.body_hash, _TURNS.c.result).where(
            *_of(_TURNS, player_id, npc_id), _TURNS.c.turn_id == turn_id
        )
        with self._transaction(self._engine) as conn:
            row = conn.execute(query).one_or_none()
        if row is None:
            return None
        if row.body_hash != body_hash:
            raise ConflictError(
                f"turn_id {turn_id!r} was already used for another utterance or context; "
                "give every new turn a new turn_id",
                field="turn_id",
            )
        return _read(TurnResult, row.result)

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
        _check_ids(player_id=player_id, npc_id=npc_id, turn_id=turn_id)
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
            "text": _UNSTORABLE.sub("\ufffd", text),
            "result": _dump(result, "result"),
            "state_before": _dump(before, "state"),
            "version": version,
        }
        state = _dump(after, "state")
        if not 0 <= base_version < _VERSION_LIMIT:
            raise _moved_on(npc_id)
        with self._transaction(self._writer) as conn:
            _insert_turn(conn, turn)
            _put_session(conn, player_id, npc_id, state, base=base_version, version=version)

    def undo(self, player_id: str, npc_id: str) -> StoredSession:
        """Take the last turn back: its state before holds again, under a new version.

        Raises:
            InvalidRequest: there is no turn to take back.
        """
        _check_ids(player_id=player_id, npc_id=npc_id)
        query = select(_TURNS.c.seq, _TURNS.c.state_before).where(*_of(_TURNS, player_id, npc_id))
        with self._transaction(self._writer) as conn:
            base = _locked_version(conn, player_id, npc_id)
            last = conn.execute(query.order_by(_TURNS.c.version.desc()).limit(1)).one_or_none()
            if last is None:
                raise InvalidRequest("there is no turn to take back with this NPC", field="npc_id")
            state = _read(SessionState, last.state_before)
            conn.execute(delete(_TURNS).where(_TURNS.c.seq == last.seq))
            _put_session(conn, player_id, npc_id, last.state_before, base=base, version=base + 1)
        return StoredSession(state, base + 1)

    def reset(self, player_id: str, npc_id: str) -> StoredSession:
        """Make the NPC forget the player: no state, no turns.

        The version goes up all the same (even if they never met), so a turn that is still under
        way cannot land after the reset.
        """
        _check_ids(player_id=player_id, npc_id=npc_id)
        with self._transaction(self._writer) as conn:
            base = _locked_version(conn, player_id, npc_id)
            conn.execute(delete(_TURNS).where(*_of(_TURNS, player_id, npc_id)))
            _put_session(conn, player_id, npc_id, None, base=base, version=base + 1)
        return StoredSession(None, base + 1)

    def transcript(
        self, player_id: str, npc_id: str, *, limit: int | None = None
    ) -> list[StoredTurn]:
        """Return the committed turns, oldest first; with `limit`, only that many of the newest."""
        _check_ids(player_id=player_id, npc_id=npc_id)
        query = (
            select(_TURNS.c.text, _TURNS.c.result)
            .where(*_of(_TURNS, player_id, npc_id))
            .order_by(_TURNS.c.version.desc())
            .limit(limit)
        )
        with self._transaction(self._engine) as conn:
            rows = conn.execute(query).all()
        return [StoredTurn(row.text, _read(TurnResult, row.result)) for row in reversed(rows)]

    def save(self, player_id: str) -> SaveFile:
        """Return what all NPCs remember of the player, ready for the game's own save file."""
        _check_ids(player_id=player_id)
        query = (
            select(_SESSIONS.c.npc_id, _SESSIONS.c.state, _SESSIONS.c.version)
            .where(_SESSIONS.c.player_id == player_id, _SESSIONS.c.state.is_not(None))
            .order_by(_SESSIONS.c.npc_id)
        )
        with self._transaction(self._engine) as conn:
            rows = conn.execute(query).all()
        # Not validated: a version above what a file may bring in must still be let out.
        sessions = {
            row.npc_id: SavedSession.model_construct(
                state=_read(SessionState, row.state), version=row.version
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
            npc_id: _dump(saved.state, f"sessions.{npc_id}.state")
            for npc_id, saved in save.sessions.items()
        }
        versions: dict[str, int] = {}
        with self._transaction(self._writer) as conn:
            stored = _locked_versions(conn, player_id)
            conn.execute(delete(_TURNS).where(_TURNS.c.player_id == player_id))
            for npc_id in sorted({*stored, *states}):
                base = stored.get(npc_id, 0)
                saved = save.sessions.get(npc_id)
                versions[npc_id] = max(base, saved.version if saved else 0) + 1
                _put_session(
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
        self._closed = True
        self._engine.dispose()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        """Commit at the end of the block, or roll back all of it and translate the error."""
        if self._closed:
            raise StateStoreError("the session store is closed; start the program again")
        try:
            with engine.begin() as conn:
                yield conn
        except SQLAlchemyError as exc:
            logger.error("session database: %s", _driver_words(exc))
            raise StateStoreError(_advice(exc)) from exc


def _make_engine(url: URL, busy_timeout_s: float) -> Engine:
    # hide_parameters keeps what players wrote out of logs and error messages.
    options: dict[str, Any] = {"hide_parameters": True, "pool_pre_ping": True}
    if url.get_backend_name() != "sqlite":
        return create_engine(url, **options)
    words = url.render_as_string()
    if not url.database or ":memory:" in words or "mode=memory" in words:
        # One connection for all threads: every other would see an empty database of its own.
        options |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
    elif not url.database.startswith("file:"):
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"check_same_thread": False}, **options)
    _govern_sqlite(engine, round(busy_timeout_s * 1000))
    return engine


def _govern_sqlite(engine: Engine, busy_timeout_ms: int) -> None:
    """Set up every connection, and begin transactions here instead of in Python's driver.

    The driver by itself begins only at the first write, so a transaction that reads and then
    writes could be refused in the middle. Recipe and reasons: "Enabling Non-Legacy SQLite
    Transactional Modes" in SQLAlchemy's SQLite dialect documentation; it holds for every Python.
    """
    pragmas = (
        f"busy_timeout={busy_timeout_ms}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    )

    def connected(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None
        for pragma in pragmas:
            dbapi_connection.execute(f"PRAGMA {pragma}").close()

    def begin(conn: Connection) -> None:
        # A writer takes the write lock at once: two that both read first and then wanted to
        # write would wait for each other.
        writes = conn.get_execution_options().get(_WRITES, False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)


def _create_tables(engine: Engine) -> None:
    """Make the tables where they are missing; check that they are ours and can be written."""
    try:
        with engine.begin() as conn:
            _METADATA.create_all(conn)
    except (IntegrityError, ProgrammingError):
        # Another machine made them in the same moment; now they are there to be found.
        with engine.begin() as conn:
            _METADATA.create_all(conn)
    with engine.begin() as conn:
        for table in (_SESSIONS, _TURNS):
            # Changes no row, but fails where a column is missing or nothing may be written.
            conn.execute(update(table).where(false()).values({c.name: c for c in table.c}))


def _of(table: Table, player_id: str, npc_id: str) -> tuple[Any, Any]:
    return table.c.player_id == player_id, table.c.npc_id == npc_id


def _locked_version(conn: Connection, player_id: str, npc_id: str) -> int:
    """Return the session's version (0 without one) and keep others from changing it."""
    query = select(_SESSIONS.c.version).where(*_of(_SESSIONS, player_id, npc_id))
    return conn.execute(query.with_for_update()).scalar_one_or_none() or 0


def _locked_versions(conn: Connection, player_id: str) -> dict[str, int]:
    """Do as `_locked_version` for all NPCs of a player, in one order so as not to deadlock."""
    query = select(_SESSIONS.c.npc_id, _SESSIONS.c.version).where(
        _SESSIONS.c.player_id == player_id
    )
    rows = conn.execute(query.order_by(_SESSIONS.c.npc_id).with_for_update())
    return {row.npc_id: row.version for row in rows}


def _insert_turn(conn: Connection, turn: Mapping[str, Any]) -> None:
    try:
        conn.execute(insert(_TURNS), turn)
    except IntegrityError as exc:
        raise ConflictError(
            f"turn_id {turn['turn_id']!r} was already committed; ask for its stored result",
            field="turn_id",
        ) from exc


def _put_session(
    conn: Connection, player_id: str, npc_id: str, state: str | None, *, base: int, version: int
) -> None:
    """Write a session that is at version `base` (0: has no row yet) and move it to `version`."""
    try:
        if base == 0:
            key = {"player_id": player_id, "npc_id": npc_id}
            conn.execute(insert(_SESSIONS), {**key, "state": state, "version": version})
            return
        changed = conn.execute(
            update(_SESSIONS)
            .where(*_of(_SESSIONS, player_id, npc_id), _SESSIONS.c.version == base)
            .values(state=state, version=version)
        )
    except IntegrityError as exc:
        raise _moved_on(npc_id) from exc
    if changed.rowcount != 1:
        raise _moved_on(npc_id)


def _moved_on(npc_id: str) -> ConflictError:
    return ConflictError(
        f"the session with {npc_id!r} has moved on since it was read; read it again and retry",
        field="expected_version",
    )


def _read(kind: type[ValueT], text: str) -> ValueT:
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        place, message = first_complaint(exc)
        logger.error("stored %s cannot be read: %s: %s", kind.__name__, place, message)
        raise StateStoreError(
            "What is stored for this player and NPC was written by another version and cannot be "
            "read. Run that version, or reset this player with this NPC."
        ) from exc


def _dump(value: Value, field: str) -> str:
    """Return `value` as JSON that is sure to be readable again.

    A NaN or an over-long list that gets into the database would lock the player out for good.
    """
    try:
        text = value.model_dump_json()
        type(value).model_validate_json(text)
    except ValidationError as exc:
        raise _refusal(exc, root=field, prefix=f"{field}.") from exc
    except ValueError as exc:
        raise InvalidRequest(f"{field}: cannot be stored: {exc}", field=field) from exc
    return text


def _refusal(exc: ValidationError, *, root: str, prefix: str = "") -> InvalidRequest:
    place, message = first_complaint(exc)
    # A hostile file can have keys of any length; the error must not carry them along.
    field = root if place == "request" else (prefix + place)[:200]
    return InvalidRequest(f"{field}: {message}", field=field)


def _check_ids(**ids: str) -> None:
    for field, value in ids.items():
        most = MAX_NAME if field == "npc_id" else MAX_ID
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise InvalidRequest(f"{field}: must be a text of 1 to {most} characters", field=field)
        if _UNSTORABLE.search(value):
            raise InvalidRequest(f"{field}: holds a character that is no text", field=field)


def _place(url: URL) -> str:
    if url.get_backend_name() == "sqlite" and url.database:
        return url.database
    return url.render_as_string(hide_password=True)


def _driver_words(exc: Exception) -> str:
    return str(exc.orig if isinstance(exc, DBAPIError) else exc)


def _advice(exc: Exception) -> str:
    words = _driver_words(exc).lower()
    return next((say for about, say in _ADVICE if re.search(about, words)), _ADVICE_OTHERWISE)


def _opening_advice(exc: Exception) -> str:
    """Say what to do about a database that cannot be opened; here nobody has a turn to retry."""
    if isinstance(exc, OSError):
        return (
            f"the folder of the session database cannot be made ({exc.strerror}). "
            "Set DATA_DIR or DATABASE_URL to a place that the program may write to."
        )
    advice = _advice(exc)
    if advice is not _ADVICE_OTHERWISE:
        return advice
    return (
        f"the session database cannot be opened ({_driver_words(exc)}). Check DATABASE_URL; "
        "a SQLite file is written sqlite:////absolute/path/sessions.sqlite3"
    )
