"""Trying an NPC out as it is written: the same turn, and nothing that is served or saved changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.api import Api
from engine.npc import parse_npc
from engine.rehearsal import Rehearsals
from engine.schema import parse_request
from engine.service import EngineService
from tests.engines import ALL_FIRE, KEEPER, Workshop

ASK = "Give me the key."
OPEN = {
    "quest_stage": "closed",
    "items": ["lantern"],
    "actions": ["lit_lamp"],
    "game_state": {"tide_low": True},
    "trust": 0.5,
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


@pytest.fixture
def service(lab: Workshop) -> EngineService:
    return lab.service(bundle=str(lab.bundle(shifts=dict.fromkeys(ALL_FIRE, 2.0))))


@pytest.fixture
def api(service: EngineService) -> dict[str, Any]:
    return Api(service).calls()


def keeper(api: dict[str, Any], **rule: Any) -> dict[str, Any]:
    npc: dict[str, Any] = api["npc_file"](KEEPER)["npc"]
    npc["stages"]["closed"]["flags"]["give_item"].update(rule)
    return npc


def action(result: dict[str, Any]) -> tuple[str, str]:
    [found] = [one for one in result["meta"]["actions"] if one["flag"] == "give_item"]
    return found["value"], found["text"]


def test_an_unsaved_change_is_played_and_the_served_npc_stays(api):
    changed = keeper(api, value="oil_can", text="Odo hands over the oil can.")
    played = api["npc_try"](changed, ASK, context=OPEN)
    assert action(played["result"]) == ("oil_can", "Odo hands over the oil can.")
    served = api["ask"](ASK, KEEPER, "p1", OPEN)
    assert action(served)[0] != "oil_can"
    assert api["npc_file"](KEEPER)["npc"] != changed
    assert api["session"]("rehearsal", KEEPER)["version"] == 0


def test_a_rehearsal_goes_on_while_the_npc_changes(api):
    first = api["npc_try"](keeper(api), "Good evening.", context={"trust": 0.5})
    changed = keeper(api, text="Odo hands over something else.")
    second = api["npc_try"](changed, ASK, first["stage"], OPEN)
    assert second["stage"] == first["stage"]
    assert second["result"]["meta"]["version"] == 2
    assert action(second["result"])[1] == "Odo hands over something else."


def test_an_npc_that_nobody_serves_can_be_tried(api):
    fresh = api["npc_new"]("Mira")["npc"]
    assert api["npc_try"](fresh, "Hello there.")["result"]["text"]
    assert api["ask"]("Hello there.", fresh["id"], "p1")["error"]["field"] == "npc_id"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"npc": {"id": "x"}}, "persona"),
        ({"npc": "mira"}, "npc"),
        ({"text": "  "}, "text"),
        ({"stage": "nothing-like-it"}, "stage"),
        ({"context": {"trust": 7}}, "context.trust"),
    ],
)
def test_bad_input_is_named(api, given, field):
    told = api["npc_try"](**{"npc": keeper(api), "text": ASK, **given})
    assert told["error"]["field"] == field


def test_a_rehearsal_is_one_npcs(api):
    first = api["npc_try"](keeper(api), "Good evening.")
    fresh = api["npc_new"]("Mira")["npc"]
    assert api["npc_try"](fresh, "Hello.", first["stage"])["error"]["field"] == "stage"


def test_the_least_recently_used_stage_goes_first_and_leaves_no_files(service):
    npc = parse_npc(keeper(Api(service).calls()), path=KEEPER)
    request = parse_request(text="Hello.", npc_id=KEEPER, player_id="x")
    stages = Rehearsals(lambda: service.engine.parts, max_text_chars=99, history_turns=2, most=2)
    try:
        first, _ = stages.play(npc, request)
        second, _ = stages.play(npc, request)
        folder = stages._stages[second].folder
        stages.play(npc, request, first)
        stages.play(npc, request)
        assert next(iter(stages._stages)) == first
        assert not folder.exists()
        with pytest.raises(ValueError, match="begin a new one"):
            stages.play(npc, request, second)
        kept = [stage.folder for stage in stages._stages.values()]
    finally:
        stages.close()
    assert not any(folder.exists() for folder in kept)


def test_a_first_turn_that_fails_leaves_no_stage(service):
    npc = parse_npc(keeper(Api(service).calls()), path=KEEPER)
    request = parse_request(text="x" * 100, npc_id=KEEPER, player_id="x")
    stages = Rehearsals(lambda: service.engine.parts, max_text_chars=99, history_turns=2)
    before = set(Path(tempfile.gettempdir()).glob("rehearsal-*"))
    with pytest.raises(ValueError, match="100 characters"):
        stages.play(npc, request)
    assert set(Path(tempfile.gettempdir()).glob("rehearsal-*")) <= before
    assert not stages._stages


def test_many_rehearse_at_once_each_on_a_stage_of_their_own(api):
    npc = keeper(api)

    def talk(number: int) -> list[str]:
        told = api["npc_try"](npc, f"Hello, I am number {number}.")
        return [told["stage"], api["npc_try"](npc, ASK, told["stage"])["stage"]]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(talk, range(8)))
    assert all(first == second for first, second in found)
    assert len({first for first, _ in found}) == 8
