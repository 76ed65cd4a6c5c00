"""A process that commits turns until it is killed: the victim of the kill test.

Reads lines from stdin. For each, it forks a writer (so that Python is started once and not at
every kill), which commits turns one after the other and prints a turn's version only once `commit`
has returned. Lines on stdout: "pid N", then versions, then "ended" once the writer is dead.

Run as: python -m tests.writer_process DATABASE_URL
"""

from __future__ import annotations

import os
import sys

from engine.schema import Delta, Meta, ModelInfo, SessionState, Timings, TurnResult
from engine.sessions import SessionStore

PLAYER = "p1"
NPC = "smith"
STEP = 1e-5


def state_at(count: int) -> SessionState:
    """Return a state whose trust tells how many turns led to it."""
    return SessionState(
        quest_stage="start",
        location="forge",
        npc_mood="calm",
        player_reputation="unknown",
        style="plain",
        standing=Delta(trust=round(count * STEP, 5)),
    )


def result_at(
    version: int, *, turn_id: str, player_id: str = PLAYER, npc_id: str = NPC
) -> TurnResult:
    """Return the answer of a turn that leads to `version`."""
    meta = Meta(
        npc_id=npc_id,
        player_id=player_id,
        turn_id=turn_id,
        version=version,
        route="main",
        language="en",
        line="generated",
        quest_stage="start",
        next_quest_stage="start",
        state_before=state_at(version - 1).standing,
        state=state_at(version).standing,
        flags_detail={},
        model=ModelInfo(base="tiny", bundle="tiny"),
        seed=7,
        timings_ms=Timings(),
    )
    return TurnResult(
        text=f"line {version}", delta=Delta(trust=STEP), flags={"give_item": False}, meta=meta
    )


def say(words: str) -> None:
    """Write one line in one piece; a kill cannot leave half of it in the pipe."""
    os.write(sys.stdout.fileno(), f"{words}\n".encode())


def write_turns(url: str) -> None:
    """Commit turns for ever, from wherever the database stands."""
    store = SessionStore(url)
    version = store.load(PLAYER, NPC).version
    while True:
        turn_id = f"turn-{version + 1}"
        store.commit(
            player_id=PLAYER,
            npc_id=NPC,
            turn_id=turn_id,
            body_hash="0" * 64,
            text=f"words {version + 1}",
            result=result_at(version + 1, turn_id=turn_id),
            before=state_at(version),
            after=state_at(version + 1),
            base_version=version,
        )
        version += 1
        say(str(version))


def main() -> None:
    """Fork one writer per line on stdin and wait for its death."""
    url = sys.argv[1]
    while sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            write_turns(url)
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("ended")


if __name__ == "__main__":
    main()
