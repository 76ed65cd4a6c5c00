from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConflictError, InvalidRequest, StateStoreError
from engine.schema import GenParams, HistoryTurn, TurnRequest, parse_request
from engine.sessions import (
    MAX_SAVE_CHARS,
    SAVE_FORMAT,
    SessionStore,
    StoredSession,
    body_hash,
    parse_save,
)
from tests.writer_process import NPC, PLAYER, STEP, result_at, state_at

ROOT = Path(__file__).resolve().parent.parent
HASH = "a" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[SessionStore]:
    with SessionStore(f"sqlite:///{path}") as opened:
        yield opened


def commit(store: SessionStore, base: int, **changes: Any) -> str:
    """Commit the turn that leads from version `base` to the next, and return its turn_id."""
    turn_id = changes.pop("turn_id", f"turn-{base + 1}")
    who = {"player_id": changes.pop("player_id", PLAYER), "npc_id": changes.pop("npc_id", NPC)}
    turn = {
        "turn_id": turn_id,
        "body_hash": HASH,
        "text": f"words {base + 1}",
        "result": result_at(base + 1, turn_id=turn_id, **who),
        "before": state_at(base),
        "after": state_at(base + 1),
        "base_version": base,
    }
    store.commit(**who, **{**turn, **changes})
    return turn_id


def everything(path: Path) -> list[Any]:
    """Return every row of the database, read past the store."""
    with closing(sqlite3.connect(path)) as conn:
        return [
            conn.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()
            for name in ("sessions", "turns")
        ]


def run_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as conn:
        for statement in statements:
            conn.execute(statement)
        conn.commit()


# Turns


def test_player_never_met_has_version_zero_and_no_state(store: SessionStore) -> None:
    assert store.load(PLAYER, NPC) == StoredSession(None, 0)
    assert store.transcript(PLAYER, NPC) == []


def test_committed_turn_is_there_after_reopening(store: SessionStore, path: Path) -> None:
    after = state_at(1).model_copy(
        update={
            "history": (HistoryTurn(player="안녕하세요", npc="Hm. 😀"),),
            "game_state": {"met": True, "gold": 3, "heat": 0.5, "name": "5"},
            "fired": ("start:give_item",),
        }
    )
    commit(store, 0, after=after, text="안녕하세요")
    store.close()
    with SessionStore(f"sqlite:///{path}") as again:
        assert again.load(PLAYER, NPC) == StoredSession(after, 1)
        assert again.find_turn(PLAYER, NPC, "turn-1", HASH) == result_at(1, turn_id="turn-1")
        assert [turn.text for turn in again.transcript(PLAYER, NPC)] == ["안녕하세요"]


def test_sessions_of_other_players_and_npcs_are_apart(store: SessionStore) -> None:
    commit(store, 0)
    commit(store, 0, player_id="p2")
    commit(store, 0, npc_id="baker")
    commit(store, 1, npc_id="baker")
    assert store.load(PLAYER, NPC).version == 1
    assert store.load("p2", NPC).version == 1
    assert store.load(PLAYER, "baker").version == 2


def test_repeated_turn_returns_stored_result(store: SessionStore) -> None:
    turn_id = commit(store, 0)
    commit(store, 1)
    assert store.find_turn(PLAYER, NPC, turn_id, HASH) == result_at(1, turn_id=turn_id)
    assert store.find_turn(PLAYER, NPC, "another", HASH) is None
    assert store.find_turn("p2", NPC, turn_id, HASH) is None


def test_turn_id_with_another_body_is_conflict(store: SessionStore) -> None:
    turn_id = commit(store, 0)
    with pytest.raises(ConflictError, match="already used") as caught:
        store.find_turn(PLAYER, NPC, turn_id, "b" * 64)
    assert caught.value.field == "turn_id"


def test_turn_id_committed_twice_is_conflict_and_changes_nothing(
    store: SessionStore, path: Path
) -> None:
    commit(store, 0)
    before = everything(path)
    for base in (0, 1):
        with pytest.raises(ConflictError) as caught:
            commit(store, base, turn_id="turn-1")
        assert caught.value.field == "turn_id"
    assert everything(path) == before


@pytest.mark.parametrize("base", [-1, 0, 1, 3, 2**63 - 2, 2**80])
def test_stale_version_is_conflict_and_changes_nothing(
    store: SessionStore, path: Path, base: int
) -> None:
    commit(store, 0)
    commit(store, 1)
    before = everything(path)
    result = result_at(1, turn_id="late")
    meta = result.meta.model_copy(update={"version": base + 1})
    with pytest.raises(ConflictError) as caught:
        store.commit(
            player_id=PLAYER,
            npc_id=NPC,
            turn_id="late",
            body_hash=HASH,
            text="words",
            result=result.model_copy(update={"meta": meta}),
            before=state_at(0),
            after=state_at(1),
            base_version=base,
        )
    assert caught.value.field == "expected_version"
    assert everything(path) == before


@pytest.mark.parametrize("turns_before", [0, 1])
def test_failure_between_the_two_writes_leaves_neither(
    store: SessionStore, path: Path, turns_before: int
) -> None:
    for base in range(turns_before):
        commit(store, base)
    before = everything(path)
    run_sql(
        path,
        *(
            # The trigger fails only once the turn's row is there, so it proves the order as well.
            f"CREATE TRIGGER fail_{verb} BEFORE {verb} ON sessions "
            f"WHEN (SELECT count(*) FROM turns) = {turns_before + 1} "
            "BEGIN SELECT no_such_function(); END"
            for verb in ("INSERT", "UPDATE")
        ),
    )
    with pytest.raises(StateStoreError):
        commit(store, turns_before)
    assert everything(path) == before
    run_sql(path, "DROP TRIGGER fail_INSERT", "DROP TRIGGER fail_UPDATE")
    commit(store, turns_before)
    assert store.load(PLAYER, NPC) == StoredSession(state_at(turns_before + 1), turns_before + 1)


def test_result_of_another_turn_is_refused(store: SessionStore) -> None:
    with pytest.raises(ValueError, match="version 1"):
        commit(store, 0, result=result_at(2, turn_id="turn-1"))
    with pytest.raises(ValueError, match="turn-1"):
        commit(store, 0, result=result_at(1, turn_id="other"))
    assert store.load(PLAYER, NPC).version == 0


def test_state_that_could_not_be_read_back_is_not_stored(store: SessionStore) -> None:
    for update in (
        {"game_state": {"heat": float("nan")}},
        {"items": ("nail",) * 65},
        {"location": "\ud800"},
    ):
        with pytest.raises(InvalidRequest) as caught:
            commit(store, 0, after=state_at(1).model_copy(update=update))
        assert str(caught.value.field).startswith("state")
    assert store.load(PLAYER, NPC).version == 0


def test_utterance_with_characters_no_database_takes_is_kept_readable(store: SessionStore) -> None:
    commit(store, 0, text="a\0b\ud800c'; DROP TABLE turns; --")
    (turn,) = store.transcript(PLAYER, NPC)
    assert turn.text == "a\ufffdb\ufffdc'; DROP TABLE turns; --"


@pytest.mark.parametrize("bad", ["", "x" * 129, "a\0b", "\ud800", None, 7])
def test_bad_id_is_invalid_request(store: SessionStore, bad: Any) -> None:
    for call in (
        lambda: store.load(bad, NPC),
        lambda: store.reset(PLAYER, bad),
        lambda: store.find_turn(PLAYER, NPC, bad, HASH),
        lambda: store.save(bad),
    ):
        with pytest.raises(InvalidRequest):
            call()


def test_transcript_is_in_order_and_limit_keeps_the_newest(store: SessionStore) -> None:
    for base in range(12):
        commit(store, base)
    turns = store.transcript(PLAYER, NPC)
    assert [turn.result.meta.version for turn in turns] == list(range(1, 13))
    assert [turn.text for turn in store.transcript(PLAYER, NPC, limit=2)] == [
        "words 11",
        "words 12",
    ]


# Body hash


def request(**fields: Any) -> TurnRequest:
    return parse_request(**{"text": "hi", "npc_id": NPC, "player_id": PLAYER, **fields})


def test_body_hash_ignores_ids_version_and_key_order() -> None:
    one = request(context={"trust": 0.5, "game_state": {"a": 1, "b": 2}})
    two = request(
        context={"game_state": {"b": 2, "a": 1}, "trust": 0.5},
        gen_params={"temperature": GenParams().temperature},
        turn_id="t",
        expected_version=3,
    )
    assert body_hash(one) == body_hash(two)
    assert len(body_hash(one)) == 64


def test_body_hash_differs_by_text_context_and_sampling() -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"text": "hi "},
        {"text": "안녕"},
        {"context": {"trust": 0.5}},
        {"context": {"game_state": {"a": 1}}},
        {"context": {"game_state": {"a": True}}},
        {"gen_params": {"seed": 1}},
    ]
    assert len({body_hash(request(**body)) for body in bodies}) == len(bodies)


# Threads and processes


def test_of_threads_with_one_base_version_exactly_one_wins(store: SessionStore) -> None:
    racers = 8
    for base in range(5):
        start = threading.Barrier(racers)

        def race(number: int, base: int = base, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                commit(store, base, turn_id=f"turn-{base}-{number}")
            except ConflictError as conflict:
                return str(conflict.field)
            return "won"

        with ThreadPoolExecutor(racers) as pool:
            outcomes = sorted(pool.map(race, range(racers)))
        assert outcomes == ["expected_version"] * (racers - 1) + ["won"]
        assert store.load(PLAYER, NPC).version == base + 1
    assert len(store.transcript(PLAYER, NPC)) == 5


def test_stores_opening_a_new_database_at_once_all_work(path: Path) -> None:
    openers = 6
    start = threading.Barrier(openers)

    def open_and_commit(number: int) -> int:
        start.wait()
        with SessionStore(f"sqlite:///{path}") as mine:
            commit(mine, 0, player_id=f"p{number}")
            return mine.load(f"p{number}", NPC).version

    with ThreadPoolExecutor(openers) as pool:
        assert list(pool.map(open_and_commit, range(openers))) == [1] * openers


def test_readers_go_on_while_another_process_writes(store: SessionStore, path: Path) -> None:
    commit(store, 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.load(PLAYER, NPC).version == 1
        other.execute("ROLLBACK")


def test_database_held_too_long_by_another_process_is_plain_error(path: Path) -> None:
    with SessionStore(f"sqlite:///{path}", busy_timeout_s=0.05) as impatient:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StateStoreError, match="Try again in a moment"):
                commit(impatient, 0)
            other.execute("ROLLBACK")
        commit(impatient, 0)
        assert impatient.load(PLAYER, NPC).version == 1


def test_sqlite_connections_are_durable_and_checked(store: SessionStore) -> None:
    with store._database._engine.connect() as conn:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 2, 1, 10_000]


def test_memory_database_is_one_for_all_threads() -> None:
    with SessionStore("sqlite://") as store, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: commit(store, 0, player_id=f"p{n}"), range(8)))
        assert [store.load(f"p{n}", NPC).version for n in range(8)] == [1] * 8


# Undo and reset


def test_undo_restores_state_before_under_a_new_version(store: SessionStore) -> None:
    commit(store, 0)
    commit(store, 1)
    assert store.undo(PLAYER, NPC) == StoredSession(state_at(1), 3)
    assert store.load(PLAYER, NPC) == StoredSession(state_at(1), 3)
    assert len(store.transcript(PLAYER, NPC)) == 1
    with pytest.raises(ConflictError):
        commit(store, 2, turn_id="stale")
    commit(store, 3, turn_id="turn-2")
    assert store.load(PLAYER, NPC).version == 4
    assert [turn.result.meta.turn_id for turn in store.transcript(PLAYER, NPC)] == [
        "turn-1",
        "turn-2",
    ]


def test_undo_goes_back_to_the_start_and_then_says_so(store: SessionStore, path: Path) -> None:
    for base in range(3):
        commit(store, base)
    states = [store.undo(PLAYER, NPC).state for _ in range(3)]
    assert states == [state_at(2), state_at(1), state_at(0)]
    before = everything(path)
    for player in (PLAYER, "stranger"):
        with pytest.raises(InvalidRequest, match="no turn to take back"):
            store.undo(player, NPC)
    assert everything(path) == before


def test_reset_forgets_but_never_reuses_a_version(store: SessionStore) -> None:
    commit(store, 0)
    commit(store, 1)
    assert store.reset(PLAYER, NPC) == StoredSession(None, 3)
    assert store.load(PLAYER, NPC) == StoredSession(None, 3)
    assert store.transcript(PLAYER, NPC) == []
    assert store.find_turn(PLAYER, NPC, "turn-1", HASH) is None
    for stale in (0, 1, 2):
        with pytest.raises(ConflictError):
            commit(store, stale, turn_id="stale")
    with pytest.raises(InvalidRequest):
        store.undo(PLAYER, NPC)
    commit(store, 3)
    assert store.load(PLAYER, NPC) == StoredSession(state_at(4), 4)


def test_reset_before_the_first_turn_stops_a_turn_under_way(store: SessionStore) -> None:
    assert store.reset(PLAYER, NPC).version == 1
    with pytest.raises(ConflictError):
        commit(store, 0)
    assert store.load(PLAYER, NPC) == StoredSession(None, 1)


# Save files


def save_dict(store: SessionStore, player_id: str = PLAYER) -> dict[str, Any]:
    return json.loads(json.dumps(store.save(player_id).model_dump(mode="json")))


def test_save_file_carries_all_npcs_of_one_player(store: SessionStore) -> None:
    commit(store, 0)
    commit(store, 0, npc_id="baker")
    commit(store, 0, npc_id="miller")
    store.reset(PLAYER, "miller")
    commit(store, 0, player_id="p2")
    save = save_dict(store)
    assert (save["format"], save["schema_version"], save["player_id"]) == (SAVE_FORMAT, 1, PLAYER)
    assert sorted(save["sessions"]) == ["baker", NPC]
    assert save["sessions"][NPC]["version"] == 1


def test_loaded_save_replaces_everything_of_its_player(store: SessionStore) -> None:
    commit(store, 0)
    commit(store, 0, player_id="p2")
    save = save_dict(store)
    commit(store, 1)
    commit(store, 0, npc_id="baker")
    loaded = store.load_save(save)
    assert store.load(PLAYER, NPC) == StoredSession(state_at(1), 3)
    assert store.load(PLAYER, "baker") == StoredSession(None, 2)
    assert loaded == store.save(PLAYER)
    assert store.transcript(PLAYER, NPC) == []
    assert store.load("p2", NPC) == StoredSession(state_at(1), 1)
    assert len(store.transcript("p2", NPC)) == 1
    with pytest.raises(ConflictError):
        commit(store, 2)


def test_save_loads_into_another_database_past_its_own_version(
    store: SessionStore, tmp_path: Path
) -> None:
    for base in range(4):
        commit(store, base)
    save = save_dict(store)
    save["sessions"][NPC]["version"] = 4.0
    with SessionStore(f"sqlite:///{tmp_path / 'other.sqlite3'}") as other:
        other.load_save(save)
        assert other.load(PLAYER, NPC) == StoredSession(state_at(4), 5)


def test_empty_save_makes_all_npcs_forget(store: SessionStore) -> None:
    commit(store, 0)
    store.load_save(
        {"format": SAVE_FORMAT, "schema_version": 1, "player_id": PLAYER, "sessions": {}}
    )
    assert store.load(PLAYER, NPC) == StoredSession(None, 2)


def hostile(change: Any, place: str) -> dict[str, Any]:
    """Return a good save file with the value at the dotted `place` replaced by `change`."""
    save: dict[str, Any] = {
        "format": SAVE_FORMAT,
        "schema_version": 1,
        "player_id": PLAYER,
        "sessions": {
            npc_id: {"state": state_at(3).model_dump(mode="json"), "version": 3}
            for npc_id in ("baker", NPC)
        },
    }
    node = save
    *way, last = place.split(".")
    for step in way:
        node = node[step]
    node[last] = change
    return save


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("another/save", "format"),
        (None, "format"),
        (2, "schema_version"),
        (True, "schema_version"),
        ("1", "schema_version"),
        ("", "player_id"),
        (7, "player_id"),
        ("a\0b", "player_id"),
        ("x" * 129, "player_id"),
        ([], "sessions"),
        ({"smith\ud800": {}}, "sessions"),
        ({"x" * 5000: {}}, "sessions"),
        ({f"npc{n}": {"version": 1} for n in range(1001)}, "sessions"),
        (1, "extra"),
        (1, "sessions.smith.extra"),
        (1, "sessions.smith.state.extra"),
        (-1, "sessions.smith.version"),
        (True, "sessions.smith.version"),
        ("3", "sessions.smith.version"),
        (3.5, "sessions.smith.version"),
        (10**30, "sessions.smith.version"),
        (10**5000, "sessions.smith.version"),
        (None, "sessions.smith.state"),
        ([], "sessions.smith.state"),
        (float("nan"), "sessions.smith.state.standing.trust"),
        (float("inf"), "sessions.smith.state.standing.trust"),
        (1.01, "sessions.smith.state.standing.trust"),
        ("0.5", "sessions.smith.state.standing.trust"),
        (True, "sessions.smith.state.standing.trust"),
        (float("nan"), "sessions.smith.state.game_state.heat"),
        (["a"], "sessions.smith.state.game_state.list"),
        ("sword", "sessions.smith.state.items"),
        (["nail"] * 65, "sessions.smith.state.items"),
        ([1], "sessions.smith.state.items"),
        ("\ud800", "sessions.smith.state.location"),
        (["x" * MAX_SAVE_CHARS], "sessions.smith.state.fired"),
        (b"bytes", "sessions.smith.state.location"),
        (deep(500), "sessions.smith.state.items"),
        (deep(100_000), "sessions.smith.state.items"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)
def test_hostile_save_file_is_refused_and_changes_nothing(
    store: SessionStore, path: Path, change: Any, place: str
) -> None:
    commit(store, 0)
    before = everything(path)
    with pytest.raises(InvalidRequest) as caught:
        store.load_save(hostile(change, place))
    assert everything(path) == before
    assert caught.value.field
    assert len(json.dumps(caught.value.to_payload())) < 1000


@pytest.mark.parametrize("data", [None, [], "text", 7, {}, {1: 2}, {("a",): 1}])
def test_save_that_is_no_save_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest):
        parse_save(data)


def test_hostile_field_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_save(hostile(float("nan"), "sessions.smith.state.standing.trust"))
    assert caught.value.field == "sessions.smith.state.standing.trust"


def test_save_that_fails_in_the_middle_changes_nothing(store: SessionStore, path: Path) -> None:
    commit(store, 0)
    commit(store, 0, npc_id="baker")
    save = save_dict(store)
    before = everything(path)
    run_sql(
        path,
        f"CREATE TRIGGER fail BEFORE UPDATE ON sessions WHEN new.npc_id = '{NPC}' "
        "BEGIN SELECT no_such_function(); END",
    )
    with pytest.raises(StateStoreError):
        store.load_save(save)
    assert everything(path) == before


# Databases that cannot be used


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with SessionStore(f"sqlite:///{tmp_path / 'a' / 'b' / 'c.sqlite3'}") as store:
        commit(store, 0)
    assert (tmp_path / "a" / "b" / "c.sqlite3").is_file()


def test_folder_that_cannot_be_made_is_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateStoreError, match="DATA_DIR or DATABASE_URL"):
        SessionStore(f"sqlite:///{tmp_path / 'file' / 'x.sqlite3'}")


def test_database_that_cannot_be_written_is_plain_error(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StateStoreError, match="cannot be opened for writing"):
        SessionStore(f"sqlite:///{tmp_path}")
    SessionStore(f"sqlite:///{path}").close()
    with pytest.raises(StateStoreError, match="write access"):
        SessionStore(f"sqlite:///file:{path}?mode=ro&uri=true")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_folder_without_write_access_is_plain_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StateStoreError, match="write access"):
            SessionStore(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    finally:
        tmp_path.chmod(0o700)


def test_file_that_is_no_database_is_plain_error_and_left_alone(path: Path) -> None:
    path.write_bytes(b"these are not the bytes of a database " * 200)
    content = path.read_bytes()
    with pytest.raises(StateStoreError, match="move the file away"):
        SessionStore(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_database_damaged_in_the_middle_is_plain_error(store: SessionStore, path: Path) -> None:
    for base in range(20):
        commit(store, base)
    store.close()
    content = bytearray(path.read_bytes())
    page = 4096
    content[page:] = b"\xff" * (len(content) - page)
    path.write_bytes(content)
    with (
        pytest.raises(StateStoreError, match="damaged"),
        SessionStore(f"sqlite:///{path}") as again,
    ):
        again.load(PLAYER, NPC)


def test_tables_of_another_program_are_plain_error(path: Path) -> None:
    run_sql(path, "CREATE TABLE sessions (id INTEGER PRIMARY KEY, cookie TEXT)")
    with pytest.raises(StateStoreError, match="another version or another program"):
        SessionStore(f"sqlite:///{path}")


def test_state_of_another_version_is_plain_error_and_can_be_reset(
    store: SessionStore, path: Path
) -> None:
    commit(store, 0)
    run_sql(path, "UPDATE sessions SET state = '{\"mana\": 3}'")
    with pytest.raises(StateStoreError, match="reset"):
        store.load(PLAYER, NPC)
    assert store.reset(PLAYER, NPC).version == 2


@pytest.mark.parametrize("url", ["", "nonsense", "mysterydb://host/db", "sqlite://host/db", None])
def test_url_that_is_none_is_plain_error(url: Any) -> None:
    with pytest.raises(StateStoreError, match="DATABASE_URL"):
        SessionStore(url)


def test_password_in_the_url_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes the import fail, whether or not the driver is installed.
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StateStoreError, match="pip install") as caught:
        SessionStore("postgresql+psycopg://user:hunter2@localhost/db")
    assert "hunter2" not in caught.value.message


def test_error_tells_nothing_of_what_players_wrote(
    store: SessionStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_sql(path, "DROP TABLE turns")
    with pytest.raises(StateStoreError) as caught:
        commit(store, 0, text="my secret")
    assert "my secret" not in str(caught.value.__cause__) + caught.value.message + caplog.text


def test_closed_store_says_so(store: SessionStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StateStoreError, match="closed"):
        store.load(PLAYER, NPC)


# Kill


def kill_one_writer(process: subprocess.Popen[str], seconds: float, turns: int) -> int:
    """Start a writer, kill it `seconds` after `turns` turns; return the last that it acknowledged."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    pid, versions = 0, [0]
    while not pid or len(versions) <= turns:
        words = process.stdout.readline().split()
        if words[0] == "pid":
            pid = int(words[1])
        else:
            versions.append(int(words[0]))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    for line in iter(process.stdout.readline, "ended\n"):
        versions.append(int(line))
    return versions[-1]


def check_whole(path: Path, acknowledged: int) -> int:
    """Assert that the database holds all acknowledged turns and no half ones."""
    with SessionStore(f"sqlite:///{path}") as store:
        session = store.load(PLAYER, NPC)
        versions = [turn.result.meta.version for turn in store.transcript(PLAYER, NPC)]
    # At most the one turn that was committed and not yet told.
    assert acknowledged <= session.version <= acknowledged + 1
    assert versions == list(range(1, session.version + 1))
    trust = session.state.standing.trust if session.state else 0.0
    assert round(trust / STEP) == session.version
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return session.version


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_writer_killed_at_any_moment_loses_no_acknowledged_turn(path: Path) -> None:
    moments = random.Random(20240229)
    url = f"sqlite:///{path}"
    SessionStore(url).close()
    version = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.writer_process", url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for number in range(20):
            # Every other one dies at any moment from its start on, the others in the midst of work,
            # however slow the disk is.
            acknowledged = kill_one_writer(process, moments.uniform(0.0, 0.12), 3 * (number % 2))
            version = check_whole(path, max(version, acknowledged))
        assert process.stdin
        process.stdin.close()
    assert process.returncode == 0
    assert version >= 30
