from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from engine.fallback import authored_line, fallback_line
from engine.npc import NPC, parse_npc, read_npc
from engine.schema import FLAGS, HistoryTurn, SessionState
from engine.state import initial_state
from tests.engines import SHIPPED, SILVIA, keeper, keeper_data, shipped
from tests.fakes import WordEmbedder

ENCODER = WordEmbedder()


def state_of(npc: NPC, **changes: Any) -> SessionState:
    return initial_state(npc).model_copy(update=changes)


def having_said(*lines: str) -> tuple[HistoryTurn, ...]:
    return tuple(HistoryTurn(player="…", npc=line) for line in lines)


def npc_with_turns(*turns: dict[str, Any]) -> NPC:
    data = keeper_data()
    data["stages"]["closed"]["turns"] = list(turns)
    return parse_npc(data, path="keeper.json")


def test_fallback_line_is_chosen_by_what_it_suits() -> None:
    npc = keeper()
    state = state_of(npc)
    assert fallback_line(npc, state, "did not hear the words", ENCODER) == (
        "The wind took your words."
    )
    assert fallback_line(npc, state, "a question she cannot answer", ENCODER) == "Ask the sea."


def test_fallback_line_suits_the_mood_where_meaning_does_not_tell() -> None:
    npc = keeper()
    said = "xyzzy"
    assert fallback_line(npc, state_of(npc), said, ENCODER) == "The wind took your words."
    assert fallback_line(npc, state_of(npc, npc_mood="Bitter"), said, ENCODER) == "Ask the sea."


def test_fallback_line_is_not_said_twice_in_a_row() -> None:
    npc = keeper()
    state = state_of(npc, history=having_said("The wind took your words."))
    assert fallback_line(npc, state, "did not hear the words", ENCODER) == "Ask the sea."


def test_fallback_line_is_found_where_every_line_was_said() -> None:
    npc = keeper()
    state = state_of(npc, history=having_said("The wind took your words.", "Ask the sea."))
    assert fallback_line(npc, state, "did not hear the words", ENCODER) == (
        "The wind took your words."
    )


def test_fallback_line_of_another_stage_serves_a_stage_without_any() -> None:
    data = keeper_data()
    data["stages"]["open"]["fallback"] = data["stages"]["any"].pop("fallback")
    npc = parse_npc(data, path="keeper.json")
    assert fallback_line(npc, state_of(npc), "hello", ENCODER) in {
        "The wind took your words.",
        "Ask the sea.",
    }


def test_authored_line_is_the_nearest_in_meaning() -> None:
    npc = keeper()
    assert authored_line(npc, state_of(npc), "what about that storm", (), ENCODER) == "It passes."


def test_authored_line_of_a_granted_flag_speaks_of_it() -> None:
    npc = keeper()
    assert authored_line(npc, state_of(npc), "the key", ["give_item"], ENCODER) == "Take the key."


def test_authored_line_never_promises_what_was_not_granted() -> None:
    npc = keeper()
    line = authored_line(npc, state_of(npc), "Give me the key.", (), ENCODER)
    assert line == "Not for words alone."


def test_authored_line_prefers_the_turn_with_all_that_fired() -> None:
    npc = npc_with_turns(
        {"player": "the key", "npc": "Only the key.", "flags": ["give_item"]},
        {"player": "x", "npc": "Key and tale.", "flags": ["give_item", "npc_main_story"]},
        {"player": "the key", "npc": "Nothing."},
    )
    fired = ["npc_main_story", "give_item"]
    assert authored_line(npc, state_of(npc), "the key", fired, ENCODER) == "Key and tale."


def test_authored_line_without_a_turn_that_fits_is_a_fallback_line() -> None:
    npc = npc_with_turns({"player": "the key", "npc": "Take it.", "flags": ["give_item"]})
    assert authored_line(npc, state_of(npc), "the key", (), ENCODER) in {
        "The wind took your words.",
        "Ask the sea.",
    }


def test_authored_line_suits_the_mood_between_turns_alike_in_meaning() -> None:
    npc = npc_with_turns(
        {"player": "good morning", "npc": "Is it?", "emotion": "bitter"},
        {"player": "good morning", "npc": "It is.", "emotion": "calm"},
    )
    for mood, line in (("calm", "It is."), ("bitter", "Is it?")):
        assert authored_line(npc, state_of(npc, npc_mood=mood), "good morning", (), ENCODER) == line


def test_authored_line_that_was_just_said_gives_way() -> None:
    npc = keeper()
    state = state_of(npc, history=having_said("It  passes."))
    assert authored_line(npc, state, "What about the storm?", (), ENCODER) != "It passes."


def test_authored_line_is_the_same_every_time() -> None:
    npc = shipped().get(SILVIA, "ko")
    lines = {authored_line(npc, state_of(npc), "사진이에요", (), ENCODER) for _ in range(3)}
    assert len(lines) == 1


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.name)
def test_no_shipped_line_promises_what_did_not_fire(path: Path) -> None:
    npc = read_npc(path)
    for stage in npc.quest_stages:
        turns = npc.stage(stage).turns
        promised: dict[str, list[frozenset[str]]] = {}
        for turn in turns:
            promised.setdefault(turn.npc, []).append(frozenset(turn.flags))
        state = state_of(npc, quest_stage=stage)
        for size in (0, 1, 2):
            for fired in combinations(FLAGS, size):
                tempting = next((turn.player for turn in turns if turn.flags), "hello")
                line = authored_line(npc, state, tempting, fired, ENCODER)
                kinds = promised.get(line, [frozenset()])
                assert any(kind <= set(fired) for kind in kinds), (stage, fired, line)
