"""The session database: its tables, its connections, and what to say when it fails.

SQLite by default, and whatever else SQLAlchemy speaks. Knows nothing of turns or save files beyond
the columns that hold them.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    event,
    false,
    make_url,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError

from engine.errors import StateStoreError
from engine.schema import MAX_NAME
from engine.sessions.values import MAX_ID

logger = logging.getLogger(__name__)

_WRITES = "sessions_write"

_METADATA = MetaData()
SESSIONS = Table(
    "sessions",
    _METADATA,
    Column("player_id", String(MAX_ID), primary_key=True),
    Column("npc_id", String(MAX_NAME), primary_key=True),
    Column("state", Text, nullable=True),  # NULL: forgotten; the row stays to keep the version
    Column("version", BigInteger, nullable=False),
)
TURNS = Table(
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


class Database:
    """The opened database. A SQLite file and its folders are made if missing.

    Args:
        url: SQLAlchemy URL.
        busy_timeout_s: how long to wait for another process that writes (SQLite only).

    Raises:
        StateStoreError: it cannot be opened; says what to do.
    """

    def __init__(self, url: str | URL, busy_timeout_s: float) -> None:
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

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """Commit at the end of the block, or roll back all of it and translate the error.

        A block that is to change something must say so: SQLite then takes its write lock at once.

        Raises:
            StateStoreError: the database failed, or is closed.
        """
        if self._closed:
            raise StateStoreError("the session store is closed; start the program again")
        try:
            with (self._writer if write else self._engine).begin() as conn:
                yield conn
        except SQLAlchemyError as exc:
            logger.error("session database: %s", _driver_words(exc))
            raise StateStoreError(_advice(exc)) from exc

    def close(self) -> None:
        """Give all connections back; every later transaction is refused."""
        self._closed = True
        self._engine.dispose()


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
            _set_pragma(dbapi_connection, pragma, busy_timeout_ms / 1000)

    def begin(conn: Connection) -> None:
        # A writer takes the write lock at once: two that both read first and then wanted to
        # write would wait for each other.
        writes = conn.get_execution_options().get(_WRITES, False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)


def _set_pragma(dbapi_connection: Any, pragma: str, patience_s: float) -> None:
    """Set a pragma; where another connection is in the way, try again for `patience_s` seconds.

    SQLite does not wait by itself while several connections turn a new file to WAL: it answers
    "locked" at once (https://www.sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY").
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            dbapi_connection.execute(f"PRAGMA {pragma}").close()
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() >= deadline:
                raise
        time.sleep(0.01)


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
        for table in (SESSIONS, TURNS):
            # Changes no row, but fails where a column is missing or nothing may be written.
            conn.execute(update(table).where(false()).values({c.name: c for c in table.c}))


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
