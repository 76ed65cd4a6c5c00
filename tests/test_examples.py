"""The examples, played against the app with the tiny model (every permitted flag fires there)."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.npc import load_folder
from engine.state import initial_state
from examples.python_game.__main__ import SCRIPT, is_command, main, obey
from examples.python_game.game import Game, Turn, load_game, save_game
from examples.python_game.link import Engine, Refused, Silent
from examples.python_game.world import ROOMS, START
from tests.app_process import ROOT, call, served, wait_ready
from tests.app_process import start as start_app
from tests.app_process import stop as stop_app
from tests.test_client import CALLS

NODE_SERVER = ROOT / "examples" / "node_server"
NPC = "mother_abandoned_factory"
LIKED = {"trust": 0.9, "relationship": 0.9}
NOBODY = "http://127.0.0.1:9"


def trusted(player: str) -> dict[str, Any]:
    """Return the mind of an NPC that trusts the player."""
    state = initial_state(load_folder(ROOT / "npc_configs").get(NPC)).model_dump(mode="json")
    sessions = {NPC: {"state": {**state, "standing": LIKED}, "version": 1}}
    return {**call(served(), "save", player_id=player), "sessions": sessions}


def played(script: str, save: Path, capsys: pytest.CaptureFixture[str]) -> str:
    file = save.with_suffix(".txt")
    file.write_text(script, encoding="utf-8")
    assert main(["--url", served(), "--script", str(file), "--save", str(save)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def liked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The game says how far it is trusted: the tiny model's deltas, which are random, do not matter."""
    say = Game.say

    def said(game: Game, text: str) -> Turn:
        turn = say(game, text)
        game.pending = replace(turn, context={**turn.context, **LIKED})
        return game.pending

    monkeypatch.setattr(Game, "say", said)


@pytest.mark.usefixtures("liked")
def test_the_shipped_script_ends_with_what_was_granted_in_hand(tmp_path, capsys):
    told = played(SCRIPT.read_text(encoding="utf-8"), tmp_path / "save.json", capsys)
    last = told.strip().splitlines()[-1]
    assert last == "You have: photo forgotten party, gold necklace, mended sword."
    assert told.count("takes off the gold necklace") == 1
    assert told.count("lays the mended sword") == 1
    assert "Not yet" not in told
    assert "[trust +" in told


def test_what_the_conditions_do_not_permit_stays_with_the_npc(tmp_path, capsys):
    lines = "I found this photograph of the party.\ntake photo\ngo nowhere\ndo crawl\nlook\n"
    told = played(lines, tmp_path / "save.json", capsys)
    assert "takes off the gold necklace" not in told
    assert "There is no 'photo' here." in told
    assert "There is no way to 'nowhere'" in told
    assert "Not yet; talk first." in told
    assert told.endswith("You have: nothing.\n")


def test_loading_brings_game_and_minds_back(tmp_path, capsys):
    save = tmp_path / "save.json"
    played("do search\nGood evening.\nsave\nGood night.\ngo village\nload\n", save, capsys)
    game, minds = load_game(save)
    assert (game.room, game.items) == (START, ["photo_forgotten_party"])
    assert game.stages == {NPC: "in_progress"}
    stood = call(served(), "session", player_id=game.player_id, npc_id=NPC)
    assert [turn["player"] for turn in stood["history"]] == ["Good evening."]
    assert minds["sessions"][NPC]["state"]["standing"] == stood["standing"]


def test_a_pending_turn_is_part_of_the_save_file(tmp_path):
    game = Game("p")
    turn = game.say("Hello.")
    save_game(tmp_path / "save.json", game, {})
    assert load_game(tmp_path / "save.json")[0].pending == turn


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"game": {}, "minds": {}}', "no JSON"])
def test_a_file_that_is_no_save_file_is_told_and_the_game_goes_on(tmp_path, capsys, text):
    save = tmp_path / "save.json"
    save.write_text(text, encoding="utf-8")
    game = Game("p")
    assert obey(game, Engine("", connect=Line), "load", save) is game
    assert "is no save file of this game" in capsys.readouterr().out


def test_nobody_at_the_address_is_told_in_plain_words(capsys):
    assert main(["--url", NOBODY]) == 1
    assert f"no engine answers at {NOBODY}" in capsys.readouterr().err


def test_speech_that_begins_like_a_command_is_speech():
    assert is_command("broken sword")
    assert not is_command("my hand, Silvia")
    assert not is_command("you remember?")
    assert not is_command("")


def answer(effect: str = "e1", item: str = "key") -> dict[str, Any]:
    action = {"flag": "give_item", "value": item, "text": "A key.", "effect_id": effect}
    state = {"trust": 0.1, "relationship": 0.0}
    meta = {"npc_id": NPC, "next_quest_stage": "two", "state": state, "actions": [action]}
    return {"text": "Here.", "delta": {"trust": 0.1, "relationship": 0.0}, "meta": meta}


def test_an_effect_happens_once_however_often_its_turn_is_seen():
    game = Game("p")
    assert "A key." in game.apply(answer())
    assert "A key." not in game.apply(answer(item="lantern"))
    assert game.items == ["key"]
    game.apply(answer("e2", "ring"))
    assert game.items == ["key", "ring"]
    assert game.stages == {NPC: "two"}


BUSY = {"error": {"message": "the queue is full", "retryable": True}}
UNKNOWN = {"error": {"message": "no such NPC", "retryable": False}}


class Line:
    """A client whose jobs give `answers` one after the other; an exception breaks the job."""

    def __init__(self, _url: str = "", *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[dict[str, Any]] = []

    def submit(self, **given: Any) -> Job:
        self.sent.append(given)
        return Job(self.answers.pop(0))


class Job:
    """As much of `gradio_client.Job` as is used; None never ends."""

    def __init__(self, last: Any) -> None:
        self._last = last
        self.cancelled = False

    def done(self) -> bool:
        return self._last is not None

    def outputs(self) -> list[dict[str, Any]]:
        first = {"meta": {}}
        return [first, self._last] if isinstance(self._last, dict) else [first]

    def result(self) -> Any:
        if isinstance(self._last, Exception):
            raise self._last
        return self._last

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.python_game.link.time.sleep", lambda _seconds: None)


@pytest.mark.usefixtures("no_pauses")
def test_a_retry_is_the_same_turn_whatever_broke():
    line = Line("", BUSY, OSError("gone"), None, {**answer()})
    connected: list[str] = []

    def connect(url: str) -> Line:
        connected.append(url)
        return line

    turn = Game("p").say("Hello.")
    grown: list[str] = []
    result = Engine("here", connect, patience=0.0).talk("p", turn, grown.append)
    assert result["text"] == grown[-1] == "Here."
    assert len(line.sent) == 4
    assert all(sent == line.sent[0] for sent in line.sent)
    assert line.sent[0]["turn_id"] == turn.turn_id
    assert connected == ["here"] * 3  # at first, and after each broken line; busy is an answer


@pytest.mark.usefixtures("no_pauses")
def test_a_refused_turn_is_not_tried_again_and_the_game_goes_on(tmp_path, capsys):
    line = Line("", UNKNOWN, answer())
    engine, game = Engine("", lambda _url: line), Game("p")
    with pytest.raises(Refused, match="no such NPC"):
        engine.talk("p", game.say("Hello."), lambda _text: None)
    line.answers.insert(0, UNKNOWN)
    obey(game, engine, "Hello.", tmp_path)
    assert game.pending is None
    obey(game, engine, "Hello again.", tmp_path)
    assert game.items == ["key"]
    assert "(no such NPC)" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pauses")
def test_a_turn_without_an_answer_is_finished_before_the_next(tmp_path, capsys):
    line = Line("", *[BUSY] * 5)
    engine, game = Engine("", lambda _url: line), Game("p")
    obey(game, engine, "First.", tmp_path)
    assert "(the queue is full)" in capsys.readouterr().out
    pending = game.pending
    assert pending is not None
    line.answers = [BUSY] * 5
    with pytest.raises(Silent):
        engine.talk("p", pending, lambda _text: None)
    line.sent, line.answers = [], [answer(), answer("e2", "ring")]
    obey(game, engine, "Second.", tmp_path)
    assert [sent["text"] for sent in line.sent] == ["First.", "Second."]
    assert line.sent[0]["turn_id"] == pending.turn_id
    assert line.sent[1]["context"]["items"] == ["key"]
    assert game.items == ["key", "ring"]


def test_the_world_fits_the_npc_files():
    registry = load_folder(ROOT / "npc_configs")
    npcs = [registry.get(room.npc_id) for room in ROOMS.values()]
    rules = [rule for npc in npcs for stage in npc.quest_stages for rule in _rules(npc, stage)]
    granted = {value for flag, rule in rules if (value := rule.value) and flag == "give_item"}
    facts = {f"{rule.value}_open" for flag, rule in rules if flag == "unlock_hidden_path"}
    facts |= {rule.value for flag, rule in rules if flag == "change_game_state"}
    asked_items = {item for _flag, rule in rules for item in rule.when.items}
    asked_actions = {action for _flag, rule in rules for action in rule.when.actions}
    deeds = [deed for room in ROOMS.values() for deed in room.deeds.values()]
    lying = {item for room in ROOMS.values() for item in room.items}
    lying |= {deed.finds for deed in deeds if deed.finds}
    assert asked_items <= lying | granted
    assert lying <= asked_items
    assert {deed.action for deed in deeds} <= asked_actions
    assert {deed.after for deed in deeds if deed.after} <= facts
    assert all(set(room.ways) <= set(ROOMS) for room in ROOMS.values())


def _rules(npc: Any, stage: str) -> list[tuple[str, Any]]:
    return list(npc.stage(stage).flags.items())


def npm(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["npm", *command], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node server with its packages; skips where they cannot be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"needs node 20 or newer, not {version.strip()}")
    folder = tmp_path_factory.mktemp("node") / "server"
    shutil.copytree(NODE_SERVER, folder, ignore=shutil.ignore_patterns("node_modules", "*.db*"))
    done = npm(folder, "ci", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1")
    unreachable = re.search(
        r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED",
        done.stderr,
    )
    if done.returncode and unreachable:
        pytest.skip(f"the package registry cannot be reached ({unreachable[0]})")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_node_servers_own_tests_pass(installed):
    done = npm(installed, "test")
    assert done.returncode == 0, done.stdout
    assert re.search(r"pass [1-9]", done.stdout), done.stdout


@pytest.fixture(scope="module")
def own_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a copy of the NPC files, which calls may write to."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT / "npc_configs", folder / "npcs")
    process, url = start_app(folder / "data", "--npcs", str(folder / "npcs"))
    try:
        wait_ready(url)
        yield url
    finally:
        stop_app(process)


def node_calls(installed: Path, url: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make calls with the JavaScript client; return the answers with the calls' names."""
    shutil.copy(ROOT / "tests" / "every_call.mjs", installed)
    done = subprocess.run(
        ["node", "every_call.mjs", url],
        cwd=installed,
        input="\n".join(json.dumps(one) for one in calls),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


WHO = {"npc_id": NPC, "player_id": "node"}
RULE = {"npc_id": NPC, "quest_stage": "in_progress", "flag": "give_item"}
PROMPT = "<SYS>You are Silvia.</SYS><PLAYER>Hello.<STATE>"
QUICK = {"gen_params": {"max_new_tokens": 3}}


def good_calls(url: str) -> dict[str, dict[str, Any]]:
    """Return arguments with which each public call succeeds, in an order in which it does."""
    silvia = call(url, "npc_file", npc_id=NPC)["npc"]
    mira = call(url, "npc_new", name="Mira")["npc"]
    file = base64.b64encode(json.dumps(mira).encode()).decode()
    return {
        "/status": {},
        "/npcs": {},
        "/model_card": {},
        "/ask": {**WHO, "text": "Good morning.", **QUICK},
        "/prompt": {**WHO, "text": "Good morning."},
        "/predict_main": {"prompt": PROMPT, "npc_id": NPC, **QUICK},
        "/session": WHO,
        "/scene_record": {**WHO, "name": "a morning"},
        "/save": {"player_id": "node"},
        "/load": {"data": call(url, "save", player_id="somebody")},
        "/undo": WHO,
        "/forget": WHO,
        "/explain": {**RULE, "text": "the photograph"},
        "/documents": {"npc_id": NPC},
        "/threshold": RULE,
        "/threshold_save": {**RULE, "threshold": 0.5},
        "/threshold_try": {**RULE, "threshold": 0.6},
        "/npc_file": {"npc_id": NPC},
        "/npc_new": {"name": "Mira"},
        "/npc_check": {"npc": silvia},
        "/npc_try": {"npc": mira, "text": "Good morning.", **QUICK},
        "/npc_save": {"npc": mira},
        "/npc_mend": {"npc_id": "mira", "field": "lore", "text": "The clock is slow."},
        "/npc_export": {"npc_id": "mira", "form": "yarn"},
        "/npc_delete": {"npc_id": "mira"},
        "/npc_backup": {"npc_id": "mira"},
        "/npc_import": {"content": file},
        "/scenes": {"npc_id": NPC},
        "/scenes_run": {"npc_id": NPC},
        "/reload": {},
    }


def test_every_public_call_answers_the_javascript_client(installed, own_app):
    good = good_calls(own_app)
    assert {*good, "/ask_stream"} == CALLS
    calls = [{"name": name, "given": given} for name, given in good.items()]
    for one in node_calls(installed, own_app, calls):
        assert "error" not in one["answer"], one


BAD_CALLS = {
    "/ask": ({**WHO, "text": ""}, "text"),
    "/ask_stream": ({**WHO, "npc_id": "nobody", "text": "Hi."}, "npc_id"),
    "/prompt": ({**WHO, "text": "Hi.", "context": {"trust": 9}}, "context.trust"),
    "/predict_main": ({"prompt": "no markers", "npc_id": NPC}, None),
    "/session": ({**WHO, "npc_id": "nobody"}, "npc_id"),
    "/undo": ({"npc_id": NPC, "player_id": "never-was-here"}, None),
    "/forget": ({**WHO, "npc_id": "nobody"}, "npc_id"),
    "/save": ({"player_id": ""}, "player_id"),
    "/load": ({"data": {"format": "other"}}, None),
    "/explain": ({**RULE, "flag": "sing"}, "flag"),
    "/documents": ({"npc_id": "nobody"}, "npc_id"),
    "/threshold": ({**RULE, "quest_stage": "epilogue"}, "quest_stage"),
    "/threshold_save": ({**RULE, "threshold": 3}, "threshold"),
    "/threshold_try": ({**RULE, "threshold": -1}, "threshold"),
    "/npc_file": ({"npc_id": "../../etc/passwd"}, "npc_id"),
    "/npc_new": ({"name": " "}, "name"),
    "/npc_check": ({"npc": {"id": "x"}}, "persona"),
    "/npc_try": ({"npc": {"id": "x"}, "text": "Hi."}, "persona"),
    "/npc_save": ({"npc": {"id": "../x"}}, None),
    "/npc_mend": ({"npc_id": NPC, "field": "persona.name", "text": "Sue"}, "field"),
    "/npc_delete": ({"npc_id": "nobody"}, "npc_id"),
    "/npc_backup": ({"npc_id": "nobody"}, "npc_id"),
    "/npc_export": ({"npc_id": NPC, "form": "word"}, "form"),
    "/npc_import": ({"content": "!"}, "content"),
    "/scenes": ({"npc_id": "nobody"}, "npc_id"),
    "/scenes_run": ({"npc_id": "nobody"}, "npc_id"),
    "/scene_record": ({"npc_id": NPC, "player_id": "never-was-here"}, "turn_id"),
}


def test_a_bad_call_answers_the_javascript_client_with_code_field_and_words(installed, own_app):
    calls = [{"name": name, "given": given} for name, (given, _) in BAD_CALLS.items()]
    for one in node_calls(installed, own_app, calls):
        error = one["answer"]["error"]
        assert error["code"] != "internal", one
        assert error["message"], one
        field = BAD_CALLS[one["name"]][1]
        assert field in (None, error["field"]), one


def test_the_javascript_client_hears_the_state_first_then_the_growing_line(installed, own_app):
    asked = {**WHO, "player_id": "stream", "text": "Good morning."}
    [one] = node_calls(
        installed, own_app, [{"name": "/ask_stream", "given": asked, "stream": True}]
    )
    state, *growing, last = one["answer"]
    assert "text" not in state
    assert state["delta"] == last["delta"]
    texts = [event["text"] for event in growing]
    assert texts
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))


def test_eight_javascript_clients_at_once_keep_apart(installed, own_app):
    asked = {**WHO, "player_id": "crowd", "text": "Good morning.", **QUICK}
    [one] = node_calls(installed, own_app, [{"name": "/ask", "given": asked, "times": 8}])
    assert [answer["meta"]["version"] for answer in one["answer"]] == [1] * 8
    assert len({answer["meta"]["turn_id"] for answer in one["answer"]}) == 8


@pytest.fixture
def started(installed, tmp_path) -> Iterator[Callable[[], str]]:
    """Start the Node server on one database, again and again; each call ends the one before."""
    running: list[subprocess.Popen[bytes]] = []

    def end() -> None:
        if running:
            running[0].terminate()
            assert running.pop().wait(timeout=60) == 0

    def start() -> str:
        end()
        log = tmp_path / "server.log"
        env = {"ENGINE_URL": served(), "DATABASE": str(tmp_path / "game.db"), "PORT": "0"}
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["node", "src/main.js"],
                cwd=installed,
                env={**os.environ, **env},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        running.append(process)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            address = re.search(r"^listening at (\S+)$", log.read_text(), re.MULTILINE)
            if address:
                return address[1]
            time.sleep(0.1)
        raise RuntimeError(log.read_text())

    yield start
    end()


def test_the_node_server_grants_once_what_the_engine_decides(started):
    player = f"p-{uuid.uuid4().hex}"
    call(served(), "load", data=trusted(player))
    url = started()
    httpx.post(f"{url}/player/{player}/items", json={"items": ["photo_forgotten_party"]})
    httpx.post(f"{url}/player/{player}/actions", json={"actions": ["visited_factory"]})
    body = {"player_id": player, "npc_id": NPC, "text": "I found this photograph.", "turn_id": "t1"}
    first = httpx.post(f"{url}/talk", json=body, timeout=120)
    assert first.status_code == 200, first.text
    assert "gold_necklace" in [action["value"] for action in first.json()["actions"]]
    url = started()
    again = httpx.post(f"{url}/talk", json=body, timeout=120)
    assert again.json() == first.json()
    stands = httpx.get(f"{url}/player/{player}").json()
    assert stands["items"] == ["photo_forgotten_party", "gold_necklace"]
    session = call(served(), "session", player_id=player, npc_id=NPC)
    assert [turn["player"] for turn in session["history"]] == [body["text"]]
    assert session["standing"]["trust"] == stands["quests"][NPC]["trust"]
    second = httpx.post(
        f"{url}/talk", json={**body, "turn_id": "t2", "text": "Thank you."}, timeout=120
    )
    assert second.json()["player"]["items"] == stands["items"]


def test_the_node_server_hands_the_engines_refusal_on(started):
    body = {"player_id": "p", "npc_id": "nobody", "text": "Hello."}
    refused = httpx.post(f"{started()}/talk", json=body, timeout=120)
    assert refused.status_code == 404
    assert refused.json()["error"]["field"] == "npc_id"
