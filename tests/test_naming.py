"""What is handed over in the game is named in words."""

from __future__ import annotations

from typing import Any

import pytest

from engine.naming import missing_sentence, names, spoken_names
from engine.npc import NPC, FlagRule, parse_npc
from tests.engines import SHIPPED, keeper_data
from training.oracle import training_registry


def keeper_with(turns: list[dict[str, Any]] | None = None, **rule: Any) -> NPC:
    data = keeper_data()
    stage = data["stages"]["closed"]
    stage["flags"]["give_item"] |= {"value": "brass_key", **rule}
    stage["turns"] = turns or []
    return parse_npc(data, path="keeper.json")


def missing(npc: NPC, line: str, *fired: str) -> str:
    return missing_sentence(npc, "closed", fired or ("give_item",), line)


def test_a_line_that_names_the_item_lacks_nothing():
    assert missing(keeper_with(), "Mind the Brass KEY, it sticks.") == ""
    assert missing(keeper_with(), "The key is yours.") == ""


def test_nothing_is_added_where_nothing_is_handed_over():
    assert missing(keeper_with(), "Good evening.", "give_hint") == ""


def test_the_rules_own_sentence_comes_first():
    turn = {"player": "May I?", "npc": "Take the key.", "flags": ["give_item"]}
    npc = keeper_with([turn], closing="There, the key. Don't drop it.")
    assert missing(npc, "It was his.") == "There, the key. Don't drop it."


def test_an_authored_turn_gives_the_sentence_that_names_it():
    turns = [
        {"player": "May I?", "npc": "Key and tale. Sit.", "flags": ["give_item", "give_hint"]},
        {"player": "The key?", "npc": "Well. Take the key, then! Go.", "flags": ["give_item"]},
    ]
    assert missing(keeper_with(turns), "It was his.") == "Take the key, then!"


def test_without_any_the_sentence_is_plain():
    assert missing(keeper_with(), "It was his.") == "Here, take the brass key."


def test_names_of_its_own_count_and_those_of_the_value_no_longer():
    rule = FlagRule(text="…", value="halvars_pipe", names=("Halvar's pipe", "briar"))
    assert spoken_names(rule) == ("halvar's pipe", "briar")
    assert names("His old BRIAR. Keep it dry.", rule)
    assert not names("Keep the pipes dry.", rule)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_every_npc_can_name_what_it_hands_over(language):
    found = 0
    for npc in training_registry(SHIPPED).all():
        for stage in npc.quest_stages:
            rule = npc.stage(stage).flags.get("give_item")
            if npc.language == language and rule and rule.value:
                found += 1
                sentence = missing_sentence(npc, stage, ("give_item",), "…")
                assert language == "ko" or names(sentence, rule), (npc.id, stage)
    assert found
