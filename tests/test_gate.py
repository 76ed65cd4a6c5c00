from __future__ import annotations

from typing import Any

import pytest

from engine.decision import Verdict
from engine.gate import check_flags, count_repeats, find_forbidden, overrides
from engine.npc import NPC, parse_npc
from engine.schema import Delta, SessionState
from engine.state import initial_state
from tests.engines import keeper, keeper_data
from tests.fakes import WordEmbedder

ENCODER = WordEmbedder()


def npc_with(when: dict[str, Any], **rule: Any) -> NPC:
    """Return an NPC whose only flag at the stage "closed" is give_item under `when`."""
    data = keeper_data()
    data["stages"]["closed"]["flags"] = {
        "give_item": {"when": when, "text": "Ada gives it.", **rule}
    }
    return parse_npc(data, path="keeper.json")


def state_with(**changes: Any) -> SessionState:
    return initial_state(keeper()).model_copy(update=changes)


def verdict(when: dict[str, Any], utterance: str = "hello", **state: Any) -> Verdict:
    npc = npc_with(when)
    return check_flags(npc, "closed", state_with(**state), utterance, ENCODER)["give_item"]


def test_flag_without_conditions_is_permitted_without_a_reason() -> None:
    assert verdict({}) == Verdict(True, None)


@pytest.mark.parametrize("held", ["brass_lantern", "Brass Lantern", " brass-lantern "])
def test_item_is_found_however_it_is_written(held: str) -> None:
    assert verdict({"items": ["brass_lantern"]}, items=("rope", held)).permitted


def test_missing_items_are_each_named() -> None:
    refused = verdict({"items": ["lantern", "rope", "oil"]}, items=("rope",))
    assert not refused.permitted
    assert refused.reason == "needs the item lantern; needs the item oil"


@pytest.mark.parametrize(
    ("when", "state", "permitted", "facts"),
    [
        ({}, {}, True, None),
        ({"min_trust": 0.9}, {}, False, None),
        ({"said": {"keywords": ["boat"]}}, {}, False, None),
        ({"items": ["lantern"]}, {"items": ("lantern",)}, True, True),
        ({"items": ["lantern"], "actions": ["lit_lamp"]}, {"items": ("lantern",)}, False, False),
        ({"game_state": {"dark": True}}, {"game_state": {"dark": True}}, True, True),
        ({"items": ["lantern"], "min_trust": 0.9}, {"items": ("lantern",)}, False, True),
        (
            {"items": ["lantern"], "said": {"keywords": ["boat"]}},
            {"items": ["lantern"]},
            False,
            True,
        ),
        (
            {"items": ["lantern"]},
            {"items": ["lantern"], "fired": ("closed:give_item",)},
            False,
            True,
        ),
    ],
)
def test_the_facts_are_told_whatever_else_is_missing(
    when: dict[str, Any], state: dict[str, Any], permitted: bool, facts: bool | None
) -> None:
    found = verdict(when, **state)
    assert (found.permitted, found.facts) == (permitted, facts)


def test_item_that_only_contains_the_name_is_not_it() -> None:
    assert not verdict({"items": ["lantern"]}, items=("broken_lantern",)).permitted


def test_action_is_needed_and_named() -> None:
    when = {"actions": ["lit_lamp"]}
    assert verdict(when, actions=("Lit Lamp",)).permitted
    refused = verdict(when, actions=(), items=("lit_lamp",))
    assert (refused.permitted, refused.reason) == (False, "needs the action lit_lamp")


def test_words_of_the_player_are_no_item_and_no_action() -> None:
    when = {"items": ["lantern"], "actions": ["lit_lamp"]}
    assert not verdict(when, "I have the lantern and I have lit_lamp, I swear").permitted


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (True, True),
        (False, False),
        (3, 3),
        (3, 3.0),
        (0, 0),
        ("high tide", "High_Tide"),
    ],
)
def test_game_state_that_is_equal_holds(wanted: Any, found: Any) -> None:
    assert verdict({"game_state": {"tide": wanted}}, game_state={"Tide": found}).permitted


@pytest.mark.parametrize(
    ("wanted", "found", "reason"),
    [
        (True, 1, "needs tide = true (is 1)"),
        (True, False, "needs tide = true (is false)"),
        (True, "true", "needs tide = true (is true)"),
        (1, True, "needs tide = 1 (is true)"),
        (0, False, "needs tide = 0 (is false)"),
        (3, 2, "needs tide = 3 (is 2)"),
        (3, "3", "needs tide = 3 (is 3)"),
        ("high", "low", "needs tide = high (is low)"),
    ],
)
def test_game_state_that_differs_is_shown_with_its_value(
    wanted: Any, found: Any, reason: str
) -> None:
    refused = verdict({"game_state": {"tide": wanted}}, game_state={"tide": found})
    assert (refused.permitted, refused.reason) == (False, reason)


@pytest.mark.parametrize("wanted", [True, False, 0, 2, "low"])
def test_game_state_that_is_not_set_never_holds(wanted: Any) -> None:
    refused = verdict({"game_state": {"tide": wanted}})
    assert not refused.permitted
    assert str(refused.reason).endswith("(is not set)")


@pytest.mark.parametrize("name", ["trust", "relationship"])
def test_standing_holds_at_the_bound_and_not_below(name: str) -> None:
    when = {f"min_{name}": 0.35}
    assert verdict(when, standing=Delta(**{name: 0.35})).permitted
    refused = verdict(when, standing=Delta(**{name: 0.349}))
    assert (refused.permitted, refused.reason) == (False, f"needs {name} ≥ 0.35 (is 0.349)")


def test_bound_of_zero_is_a_bound() -> None:
    assert verdict({"min_trust": 0.0}, standing=Delta(trust=0.0)).permitted
    assert not verdict({"min_trust": 0.0}, standing=Delta(trust=-0.001)).permitted


@pytest.mark.parametrize("utterance", ["The KEY, please.", "any keys?", "열쇠, key를 주세요"])
def test_said_by_keyword(utterance: str) -> None:
    assert verdict({"said": {"keywords": ["key"]}}, utterance).permitted


def test_said_by_keyword_needs_the_whole_word() -> None:
    refused = verdict({"said": {"keywords": ["key"]}}, "I saw a monkey")
    assert not refused.permitted
    assert refused.reason == "the talk has not come to it ('key')"


def test_said_by_meaning_holds_at_the_similarity() -> None:
    # Two of four words are shared by two unit vectors of four words: the cosine is 2 / 4.
    when = {"said": {"meanings": ["show me your boat"], "similarity": 0.5}}
    assert verdict(when, "show me his map").permitted


def test_said_by_meaning_fails_below_the_similarity_and_says_how_near_it_was() -> None:
    when = {"said": {"meanings": ["show me your boat"], "similarity": 0.501}}
    refused = verdict(when, "show me his map")
    assert not refused.permitted
    assert "show me your boat" in str(refused.reason)
    assert "nearest meaning 0.5 of 0.501" in str(refused.reason)


def test_the_very_sentence_reaches_a_similarity_of_one() -> None:
    sentence = "please take me over to the other side of the long bay"
    assert verdict({"said": {"meanings": [sentence], "similarity": 1.0}}, sentence).permitted


def test_any_keyword_or_meaning_is_enough() -> None:
    when = {"said": {"keywords": ["key"], "meanings": ["show me your boat"], "similarity": 0.9}}
    assert verdict(when, "the key").permitted
    assert verdict(when, "Show me your boat.").permitted
    assert not verdict(when, "nice weather").permitted


def test_meaning_is_not_asked_while_something_else_is_missing() -> None:
    class NoEncoder:
        def encode(self, texts: Any) -> Any:
            raise AssertionError("asked for a meaning that cannot matter")

    npc = npc_with({"items": ["lantern"], "said": {"meanings": ["show me your boat"]}})
    found = check_flags(npc, "closed", state_with(), "hello", NoEncoder())
    assert found["give_item"].reason == "needs the item lantern"


def test_flag_that_happened_is_refused_a_second_time() -> None:
    found = verdict({}, fired=("closed:give_item",))
    assert found == Verdict(False, "has happened already")


def test_flag_that_may_repeat_is_permitted_again() -> None:
    npc = npc_with({}, once=False)
    state = state_with(fired=("closed:give_item",))
    assert check_flags(npc, "closed", state, "hello", ENCODER)["give_item"].permitted


def test_once_counts_for_its_own_stage_alone() -> None:
    assert verdict({}, fired=("open:give_item",)).permitted


def test_once_of_a_flag_for_any_stage_counts_in_every_stage() -> None:
    data = keeper_data()
    data["stages"]["any"]["flags"] = {"give_hint": {"text": "Ada points.", "once": True}}
    data["stages"]["open"]["flags"] = {}
    npc = parse_npc(data, path="keeper.json")
    state = state_with(fired=(npc.rule_key("closed", "give_hint"),))
    for stage in ("closed", "open"):
        found = check_flags(npc, stage, state, "hello", ENCODER)
        assert found["give_hint"] == Verdict(False, "has happened already")


def test_only_the_flags_of_the_stage_are_judged() -> None:
    npc = keeper()
    assert set(check_flags(npc, "closed", state_with(), "hi", ENCODER)) == {
        "give_item",
        "quest_stage_change",
    }
    assert set(check_flags(npc, "open", state_with(), "hi", ENCODER)) == {"give_hint"}


def test_every_refusal_says_all_that_the_state_lacks() -> None:
    reason = verdict(
        {
            "items": ["lantern"],
            "actions": ["lit_lamp"],
            "game_state": {"tide_low": True},
            "min_trust": 0.2,
            "min_relationship": 0.1,
            "said": {"keywords": ["key"]},
        }
    ).reason
    assert reason == (
        "needs the item lantern; needs the action lit_lamp; needs tide_low = true (is not set); "
        "needs trust ≥ 0.2 (is 0.1); needs relationship ≥ 0.1 (is 0.05)"
    )


def test_forbidden_by_keyword_names_trigger_and_word() -> None:
    found = find_forbidden(keeper(), "Go away, OLD CROW!", ENCODER)
    assert found is not None
    assert (found[0].name, found[1]) == ("insult", "insult: the word 'old crow'")


def test_forbidden_by_meaning() -> None:
    found = find_forbidden(keeper(), "Nobody needs a useless keeper.", ENCODER)
    assert found is not None
    assert found[1].startswith("insult: close in meaning (1.00)")


def test_harmless_utterance_is_not_forbidden() -> None:
    assert find_forbidden(keeper(), "A crow sits on the rock.", ENCODER) is None


def test_keyword_of_any_trigger_comes_before_the_meaning_of_another() -> None:
    data = keeper_data()
    second = {**data["forbidden"][0], "name": "threat", "keywords": ["burn"], "sentences": []}
    data["forbidden"].append(second)
    npc = parse_npc(data, path="keeper.json")
    found = find_forbidden(npc, "nobody needs a useless keeper burn", ENCODER)
    assert found is not None
    assert found[0].name == "threat"


def test_trigger_without_sentences_is_never_met_by_meaning() -> None:
    data = keeper_data()
    data["forbidden"][0] |= {"sentences": [], "similarity": 0.0}
    assert find_forbidden(parse_npc(data, path="keeper.json"), "good morning", ENCODER) is None


@pytest.mark.parametrize(
    ("said", "repeats"),
    [
        ((), 0),
        (("good morning",), 0),
        (("please trust me",), 1),
        (("please trust me", "good morning", "please trust me"), 2),
    ],
)
def test_repeats_are_counted(said: tuple[str, ...], repeats: int) -> None:
    assert count_repeats("Please, TRUST me.", said, ENCODER) == repeats


def test_overrides_are_the_thresholds_of_the_stage() -> None:
    npc = npc_with({}, threshold=0.9)
    assert overrides(npc, "closed") == {"give_item": 0.9}
    assert overrides(npc, "open") == {}
