from __future__ import annotations

from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.npc import parse_npc
from engine.schema import Context, Delta, HistoryTurn, SessionState
from engine.state import after_turn, initial_state, merge_context
from tests.engines import keeper, keeper_data

NPC = keeper()


def state_with(**changes: Any) -> SessionState:
    return initial_state(NPC).model_copy(update=changes)


def after(state: SessionState, **changes: Any) -> SessionState:
    given: dict[str, Any] = {
        "utterance": "Hello",
        "line": "Hm.",
        "delta": Delta(),
        "fired": (),
        "history_turns": 3,
    }
    return after_turn(state, NPC, **{**given, **changes})


def test_stranger_starts_with_the_npcs_defaults() -> None:
    state = initial_state(NPC)
    assert (state.quest_stage, state.location, state.npc_mood) == ("closed", "rock", "calm")
    assert state.standing == Delta(trust=0.1, relationship=0.05)
    assert (state.items, state.history, state.fired, state.said) == ((), (), (), ())


@pytest.mark.parametrize(("style", "expected"), [("", "neutral"), ("x" * 200, "x" * 64)])
def test_any_style_that_an_npc_file_may_hold_makes_a_state(style: str, expected: str) -> None:
    data = keeper_data()
    data["persona"]["style"] = style
    state = initial_state(parse_npc(data, path="keeper.json"))
    assert SessionState.model_validate(state.model_dump()).style == expected


def test_empty_context_changes_nothing() -> None:
    state = state_with(items=("rope",), spent=Delta(trust=0.2))
    assert merge_context(state, Context(), NPC) == state


def test_what_the_game_sends_wins_and_the_rest_stays() -> None:
    state = state_with(items=("rope",), actions=("rang_bell",), npc_mood="sad")
    merged = merge_context(
        state, Context(items=("lantern",), trust=0.12345, location="gallery"), NPC
    )
    assert merged.items == ("lantern",)
    assert merged.location == "gallery"
    assert merged.standing == Delta(trust=0.123, relationship=0.05)
    assert (merged.actions, merged.npc_mood) == (("rang_bell",), "sad")


def test_empty_list_from_the_game_empties() -> None:
    state = state_with(
        items=("rope",), game_state={"a": 1}, history=(HistoryTurn(player="a", npc="b"),)
    )
    merged = merge_context(state, Context(items=(), game_state={}, dialogue_history=()), NPC)
    assert (merged.items, merged.game_state, merged.history) == ((), {}, ())


def test_zero_from_the_game_is_a_value() -> None:
    state = state_with(standing=Delta(trust=0.5, relationship=0.5))
    merged = merge_context(state, Context(trust=0.0, relationship=0.0), NPC)
    assert merged.standing == Delta()


def test_new_stage_from_the_game_starts_with_nothing_spent() -> None:
    state = state_with(spent=Delta(trust=0.4))
    assert merge_context(state, Context(quest_stage="open"), NPC).spent == Delta()
    assert merge_context(state, Context(quest_stage="closed"), NPC).spent == Delta(trust=0.4)


@pytest.mark.parametrize("stage", ["nowhere", "any"])
def test_stage_that_the_npc_does_not_have_is_refused(stage: str) -> None:
    with pytest.raises(InvalidRequest, match="closed, open") as caught:
        merge_context(state_with(), Context(quest_stage=stage), NPC)
    assert caught.value.field == "context.quest_stage"


def test_session_at_a_stage_that_the_file_lost_goes_on_at_the_default() -> None:
    state = state_with(quest_stage="gone", spent=Delta(trust=0.3))
    merged = merge_context(state, Context(), NPC)
    assert (merged.quest_stage, merged.spent) == ("closed", Delta())


def test_turn_moves_standing_and_counts_what_was_spent() -> None:
    state = after(state_with(spent=Delta(trust=0.1)), delta=Delta(trust=0.05, relationship=-0.1))
    assert state.standing == Delta(trust=0.15, relationship=-0.05)
    assert state.spent == Delta(trust=0.15, relationship=-0.1)


def test_turn_remembers_the_talk_up_to_the_limit() -> None:
    state = state_with()
    for count in range(5):
        state = after(state, utterance=f"Word {count}", line=f"Line {count}")
    assert [turn.player for turn in state.history] == ["Word 2", "Word 3", "Word 4"]
    assert state.said[-1] == "word 4"
    assert after(state, history_turns=0).history == ()


def test_turn_remembers_a_bounded_number_of_utterances() -> None:
    state = state_with()
    for count in range(50):
        state = after(state, utterance=f"word {count}")
    assert len(state.said) == 20
    assert state.said[-1] == "word 49"


def test_flag_that_fired_is_remembered_once() -> None:
    state = after(after(state_with(), fired=["give_item"]), fired=["give_item"])
    assert state.fired == ("closed:give_item",)


def test_quest_stage_change_moves_the_stage_and_starts_its_range_anew() -> None:
    state = after(
        state_with(spent=Delta(trust=0.4)), delta=Delta(trust=0.1), fired=["quest_stage_change"]
    )
    assert (state.quest_stage, state.spent) == ("open", Delta())
    assert state.fired == ("closed:quest_stage_change",)


def test_state_after_long_texts_can_be_stored() -> None:
    state = after(state_with(), utterance="ß" * 5000, line="x" * 5000)
    assert SessionState.model_validate_json(state.model_dump_json()) == state


def test_states_are_left_as_they_were() -> None:
    state = state_with()
    before = state.model_dump()
    after(state, delta=Delta(trust=0.5), fired=["quest_stage_change"])
    merge_context(state, Context(items=("rope",), quest_stage="open"), NPC)
    assert state.model_dump() == before
