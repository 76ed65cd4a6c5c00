"""The public calls as games reach them: through `gradio_client`, curl, fetch and plain HTTP."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from engine.npc import load_folder
from engine.ui.scene import parse_game_state, presets_of
from engine.ui.snippets import all_snippets
from tests.app_process import ROOT, call, endless_lines, served

NPC = "mother_abandoned_factory"
SHORT = {"max_new_tokens": 4}
CALLS = {
    "/ask",
    "/ask_stream",
    "/predict_main",
    "/npcs",
    "/status",
    "/reload",
    "/save",
    "/load",
    "/session",
    "/undo",
    "/forget",
    "/explain",
    "/documents",
    "/model_card",
    "/prompt",
    "/threshold",
    "/threshold_save",
    "/threshold_try",
    "/npc_file",
    "/npc_new",
    "/npc_check",
    "/npc_try",
    "/npc_save",
    "/npc_mend",
    "/npc_delete",
    "/npc_backup",
    "/npc_export",
    "/npc_import",
    "/scenes",
    "/scenes_run",
    "/scene_record",
}


@pytest.fixture(scope="module")
def url() -> str:
    return served()


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture
def player() -> str:
    return f"p-{uuid.uuid4().hex[:8]}"


def ask(client: Client, player: str, text: str = "Hello there.", **more: Any) -> dict[str, Any]:
    given = {"gen_params": SHORT, **more}
    result: dict[str, Any] = client.predict(
        text=text, npc_id=NPC, player_id=player, api_name="/ask", **given
    )
    return result


def test_api_page_lists_exactly_the_public_calls(client):
    listed = client.view_api(return_format="dict", print_info=False)
    assert set(listed["named_endpoints"]) == CALLS
    assert not listed["unnamed_endpoints"]


def test_api_page_tells_names_types_and_purpose(client):
    listed = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    asked = {one["parameter_name"]: one for one in listed["/ask"]["parameters"]}
    assert list(asked)[:3] == ["text", "npc_id", "player_id"]
    assert asked["text"]["python_type"]["type"] == "str"
    assert asked["context"]["python_type"]["type"] == "dict(str, Any)"
    assert [name for name, one in asked.items() if not one["parameter_has_default"]] == [
        "text",
        "npc_id",
        "player_id",
    ]
    assert all(one["description"] for one in listed.values())
    assert listed["/ask_stream"]["returns"][0]["python_type"]["type"] == "dict(str, Any)"


def test_three_arguments_are_enough(client, player):
    result = client.predict("Hello there.", NPC, player, api_name="/ask")
    assert result["text"]
    assert set(result["delta"]) == {"trust", "relationship"}
    assert result["meta"]["version"] == 1
    assert result["meta"]["player_id"] == player
    assert result["meta"]["route"] == "main"


def test_no_answer_holds_what_the_client_takes_for_a_file(client, player):
    assert "path" not in ask(client, player)["meta"]


def test_a_flag_fires_when_the_game_meets_its_conditions(client, player):
    npc = load_folder(ROOT / "npc_configs").get(NPC)
    preset = next(one for one in presets_of(npc) if one.key == "in_progress · give_item")
    context = {**preset.values, "game_state": parse_game_state(preset.values["game_state"])}
    result = ask(client, player, preset.words, context=context)
    assert result["flags"]["give_item"] is True
    assert [act["flag"] for act in result["meta"]["actions"]].count("give_item") == 1


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"npc_id": "nobody"}, "unknown_npc", "npc_id"),
        ({"text": ""}, "invalid_request", "text"),
        ({"text": "   "}, "invalid_request", "text"),
        ({"text": "a" * 1001}, "invalid_request", "text"),
        ({"text": 3}, "invalid_request", "text"),
        ({"player_id": ["p"]}, "invalid_request", "player_id"),
        ({"context": [1]}, "invalid_request", "context"),
        ({"context": {"truts": 1}}, "invalid_request", "context.truts"),
        ({"context": {"trust": 2}}, "invalid_request", "context.trust"),
        ({"context": {"quest_stage": "nowhere"}}, "invalid_request", "context.quest_stage"),
        ({"gen_params": {"temperature": 9}}, "invalid_request", "gen_params.temperature"),
        ({"gen_params": "hot"}, "invalid_request", "gen_params"),
        ({"expected_version": "one"}, "invalid_request", "expected_version"),
        ({"expected_version": 41}, "conflict", "expected_version"),
    ],
)
def test_a_bad_call_is_answered_with_code_field_and_plain_words(
    client, player, change, code, field
):
    given = {"text": "Hello.", "npc_id": NPC, "player_id": player, **change}
    error = client.predict(**given, api_name="/ask")["error"]
    assert (error["code"], error["field"]) == (code, field)
    assert "Traceback" not in error["message"]
    stood = client.predict(player_id=player, npc_id=NPC, api_name="/session")
    assert stood["version"] == 0


def test_a_repeated_turn_is_not_played_twice(client, player):
    first = ask(client, player, turn_id="t1")
    assert ask(client, player, turn_id="t1") == first
    other = ask(client, player, "Something else.", turn_id="t1")
    assert other["error"]["code"] == "conflict"


def test_stream_tells_the_state_before_the_growing_line(client, url, player):
    with endless_lines(url):  # a random model may say nothing that is a word
        job = client.submit("Hello there.", NPC, player, api_name="/ask_stream")
        deadline = time.monotonic() + 60
        while len(job.outputs()) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    job.result()
    state, *growing, last = job.outputs()
    assert "text" not in state
    assert set(state["flags"]) == set(last["flags"])
    lines = [event["text"] for event in growing if set(event) == {"text"}]
    assert len(lines) >= 2
    assert all(len(a) < len(b) for a, b in itertools.pairwise(lines))
    assert {"text", "delta", "flags", "meta"} <= set(last)
    assert last["delta"] == state["delta"]


def test_stream_tells_an_error_as_its_only_event(client, player):
    job = client.submit("", NPC, player, api_name="/ask_stream")
    job.result()
    assert {event["error"]["field"] for event in job.outputs()} == {"text"}


def test_a_caller_that_leaves_a_stream_does_not_hold_up_the_player(client, url, player):
    path = f"{url}/gradio_api/call/v2/ask_stream"
    body = {"text": "Hello.", "npc_id": NPC, "player_id": player}
    event = httpx.post(path, json=body).json()["event_id"]
    with httpx.stream("GET", f"{path}/{event}", timeout=30) as stream:
        next(stream.iter_lines())
    assert ask(client, player, "Are you still there?")["text"]


def test_a_caller_that_leaves_a_stream_frees_its_place(url, player):
    path = f"{url}/gradio_api/call/v2/ask_stream"
    body = {"text": "Hello.", "npc_id": NPC, "player_id": player}
    body["gen_params"] = {"max_new_tokens": 256}  # far longer than this test waits
    with endless_lines(url):
        event = httpx.post(path, json=body).json()["event_id"]
        with httpx.stream("GET", f"{path}/{event}", timeout=30) as stream:
            lines = stream.iter_lines()
            while '"text"' not in next(lines):
                pass
        deadline = time.monotonic() + 20
        while (load := call(url, "status")["load"])["writing"] and time.monotonic() < deadline:
            time.sleep(0.1)
    assert load["writing"] == load["waiting"] == 0


def test_predict_main_runs_a_ready_prompt(client):
    given = {"npc_id": NPC, "persona_tags": {"mood": "calm"}, "gen_params": SHORT}
    prompt = "<SYS>You are Silvia.<PLAYER>Hello.<STATE>"
    result = client.predict(prompt=prompt, **given, api_name="/predict_main")
    assert set(result) == {"text", "delta", "flags"}
    assert all(0 <= p <= 1 for p in result["flags"].values())
    bad = client.predict(prompt="no markers", **given, api_name="/predict_main")
    assert bad["error"]["code"] == "bad_prompt"


def test_npcs_and_status_and_reload(client):
    listed = client.predict(api_name="/npcs")["npcs"]
    assert NPC in [one["npc_id"] for one in listed]
    assert client.predict(api_name="/status")["ready"] is True
    assert client.predict(api_name="/reload")["reloaded"] is True


def test_save_load_session_undo_and_forget(client, player):
    def stands() -> dict[str, Any]:
        found: dict[str, Any] = client.predict(player, NPC, api_name="/session")
        return found

    after = ask(client, player)["meta"]["state"]
    save = client.predict(player, api_name="/save")
    assert stands()["standing"] == after
    assert client.predict(player, NPC, api_name="/undo")["history"] == []
    again = client.predict(player, NPC, api_name="/undo")
    assert again["error"]["code"] == "invalid_request"
    assert client.predict(save, api_name="/load")["npcs"] == [NPC]
    assert stands()["standing"] == after
    client.predict(player, NPC, api_name="/forget")
    assert stands()["history"] == []
    assert "error" in client.predict({"not": "a save"}, api_name="/load")


def test_eight_clients_at_once_keep_apart_and_status_answers_meanwhile(client, url, player):
    answered = threading.Event()

    def play(number: int) -> tuple[str, int]:
        own = Client(url, verbose=False)
        result = ask(own, f"{player}-{number}", f"I am player {number}.")
        return result["meta"]["player_id"], result["meta"]["version"]

    with ThreadPoolExecutor(8) as pool:
        played = [pool.submit(play, number) for number in range(8)]
        if client.predict(api_name="/status")["ready"]:
            answered.set()
        results = [one.result() for one in played]
    assert answered.is_set()
    assert sorted(results) == [(f"{player}-{number}", 1) for number in range(8)]


def test_plain_http_tells_a_misspelt_argument(url, player):
    path = f"{url}/gradio_api/call/v2/ask"
    body = {"text": "Hello.", "npc_id": NPC, "player_id": player}
    missing = httpx.post(path, json={"text": "Hello.", "npc_id": NPC})
    assert missing.status_code == 422
    assert missing.json()["error"]["field"] == "player_id"
    unknown = httpx.post(path, json={**body, "persona": 1})
    assert unknown.status_code == 422
    assert unknown.json()["error"]["field"] == "persona"
    nowhere = httpx.post(f"{url}/gradio_api/call/v2/aks", json=body)
    assert nowhere.status_code == 404
    assert nowhere.json()["error"]["code"] == "invalid_request"


def test_plain_http_takes_named_fields_and_leaves_out_the_rest(url, player):
    result = call(url, "ask", text="Hello.", npc_id=NPC, player_id=player, gen_params=SHORT)
    assert result["meta"]["version"] == 1


NASTY = 'It\'s "me" & <b>$HOME</b> `ls` \\ 안녕 \u2028 100%'


@pytest.fixture
def snippets(url, player) -> dict[str, str]:
    arguments = {
        "text": NASTY,
        "npc_id": NPC,
        "player_id": player,
        "context": {"quest_stage": "in_progress", "items": ["it's"], "game_state": {"open": True}},
        "gen_params": SHORT,
    }
    return all_snippets(url, arguments)


def ran(command: list[str], tmp_path: Path) -> str:
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def heard(client: Client, player: str) -> dict[str, Any]:
    """Return the one turn that the engine remembers of the player, checked against the snippet."""
    session: dict[str, Any] = client.predict(player, NPC, api_name="/session")
    assert session["items"] == ["it's"]
    assert session["game_state"] == {"open": True}
    (turn,) = session["history"]
    assert turn["player"] == NASTY.replace("\u2028 ", "")
    line: dict[str, Any] = turn
    return line


def test_python_snippet_works_when_pasted(client, player, snippets, tmp_path):
    (tmp_path / "snippet.py").write_text(snippets["python"], encoding="utf-8")
    out = ran([sys.executable, "-X", "utf8", "snippet.py"], tmp_path)
    assert heard(client, player)["npc"] in out


def test_curl_snippet_works_when_pasted(client, player, snippets, tmp_path):
    if not shutil.which("curl") or not shutil.which("bash"):
        pytest.skip("needs curl and bash")
    out = ran(["bash", "-c", snippets["curl"]], tmp_path)
    (data,) = [line for line in out.splitlines() if line.startswith("data: [{")]
    assert json.loads(data.removeprefix("data: "))[0]["text"] == heard(client, player)["npc"]


def test_fetch_snippet_works_when_pasted(client, player, snippets, tmp_path):
    if not shutil.which("node"):
        pytest.skip("needs node")
    (tmp_path / "snippet.mjs").write_text(snippets["fetch"], encoding="utf-8")
    out = ran(["node", "snippet.mjs"], tmp_path)
    assert heard(client, player)["npc"] in out
