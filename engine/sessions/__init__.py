"""What the engine remembers: every player's state with every NPC, and the turns that led there.

A session's version counts up with everything that happens to it (a turn, an undo, a reset, a
loaded save file) and never comes back, so whoever still holds an older version is told so.
Knows nothing of models, NPC files or what a state means.

    store.py      `SessionStore`: the calls, each of them one transaction
    rows.py       reading and moving one session's row under its version
    values.py     what goes in and comes out: ids, stored sessions and turns, their JSON
    savefile.py   the game's save file and its strict check
    database.py   tables, connections, and what to do when the database fails
"""

from engine.sessions.savefile import (
    MAX_SAVE_CHARS,
    MAX_SAVED_SESSIONS,
    MAX_SAVED_VERSION,
    SAVE_FORMAT,
    SavedSession,
    SaveFile,
    parse_save,
)
from engine.sessions.store import SessionStore
from engine.sessions.values import MAX_ID, StoredSession, StoredTurn, body_hash

__all__ = [
    "MAX_ID",
    "MAX_SAVED_SESSIONS",
    "MAX_SAVED_VERSION",
    "MAX_SAVE_CHARS",
    "SAVE_FORMAT",
    "SaveFile",
    "SavedSession",
    "SessionStore",
    "StoredSession",
    "StoredTurn",
    "body_hash",
    "parse_save",
]
