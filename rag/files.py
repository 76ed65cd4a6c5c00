"""The index's files on disk: are they free, sound and still the same, and deleting them.

Looks at Chroma's SQLite file with the standard library, because Chroma itself waits minutes for a
locked file and meets a damaged page only when it needs it. Knows nothing of Chroma's calls, of
collections or documents.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from uuid import UUID

from rag.errors import KnowledgeCorrupt, KnowledgeUnavailable

DATABASE = "chroma.sqlite3"

LOCK_SECONDS = 3.0
"""How long a call waits for a file that another process holds, before it gives up."""

# Two libraries in one process do not see each other's SQLite locks, and one of them closing the
# file drops the other's (sqlite.org/howtocorrupt.html, 2.2). So one call at a time for the process.
ONE_AT_A_TIME = threading.RLock()


def try_lock(database: Path) -> None:
    """Take the lock for writing and free it; waits `LOCK_SECONDS` at most.

    Raises:
        sqlite3.Error: locked by another program, cannot be opened, or not a database.
    """
    with closing(_connect(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def check_pages(database: Path) -> None:
    """Raise KnowledgeCorrupt if SQLite finds a damaged page, which Chroma would meet only later."""
    with closing(_connect(database)) as connection:
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    # A Python built without full-text search cannot look into Chroma's text table.
    if verdict != "ok" and "no such module" not in verdict:
        raise KnowledgeCorrupt(f"{database}: the knowledge index is damaged ({verdict})")


def file_id(file: Path) -> tuple[int, int] | None:
    """Return what tells a file from a later one of its name, or None where there is none.

    Only looks at the file's entry: opening and closing it would drop Chroma's locks.
    """
    try:
        entry = file.stat()
    except OSError:
        return None
    return entry.st_dev, entry.st_ino


def delete_files(path: Path) -> None:
    """Delete what Chroma keeps in `path`: its database and its folders, which are named by UUIDs.

    Raises:
        KnowledgeUnavailable: something could not be deleted.
    """
    try:
        with ONE_AT_A_TIME:
            for entry in path.iterdir():
                if entry.name.startswith(DATABASE):
                    entry.unlink()
                elif entry.is_dir() and _is_uuid(entry.name):
                    shutil.rmtree(entry)
    except OSError as exc:
        raise KnowledgeUnavailable(
            f"{path}: the damaged knowledge index cannot be deleted ({exc}); delete the folder"
        ) from exc


def _connect(database: Path) -> sqlite3.Connection:
    # mode=rw does not create the file, which would hide that it is gone.
    uri = f"{database.as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
