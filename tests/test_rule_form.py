"""The rule editor as values: what it shows of a rule, and what it writes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from engine.npc import parse_npc
from engine.schema import FLAGS
from engine.ui.rule_form import (
    description,
    flag_choices,
    offered,
    rule_values,
    with_rule,
    without_rule,
)

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "npc_configs").glob("*.json"))
SILVIA = json.loads((ROOT / "npc_configs" / "mother_abandoned_factory.json").read_text("utf-8"))


def rewritten(data: dict, stage: str, flag: str, **changes: object) -> dict:
    values = {**rule_values(data, stage, flag), **changes}
    return with_rule(data, stage, flag, description(data, stage), values)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_shown_and_written_back_leaves_a_file_as_it_was(path):
    data = json.loads(path.read_text("utf-8"))
    made = data
    for stage in data["stages"]:
        for flag in FLAGS:
            made = rewritten(made, stage, flag)
    assert made == data


def test_a_condition_is_added_and_the_rest_of_the_rule_kept():
    made = rewritten(
        SILVIA,
        "in_progress",
        "give_item",
        items=["photo_forgotten_party", "music_box"],
        min_relationship=0.2,
        game_state=["night = true", "visits = 3"],
    )
    rule = parse_npc(made, path="x").stage("in_progress").flags["give_item"]
    assert rule.when.items == ("photo_forgotten_party", "music_box")
    assert rule.when.min_relationship == 0.2
    assert rule.when.game_state == {"night": True, "visits": 3}
    old = parse_npc(SILVIA, path="x").stage("in_progress").flags["give_item"]
    assert (rule.examples_positive, rule.when.said) == (old.examples_positive, old.when.said)


def test_a_bound_that_is_emptied_is_no_condition_any_more():
    made = rewritten(SILVIA, "in_progress", "give_item", min_trust=None, keywords=[], meanings="")
    when = made["stages"]["in_progress"]["flags"]["give_item"]["when"]
    assert "min_trust" not in when
    assert "said" not in when


def test_a_rule_and_a_stage_are_made_once_something_is_said_of_them():
    untouched = rewritten(SILVIA, "epilogue", "give_hint")
    assert "epilogue" not in untouched["stages"]
    made = rewritten(SILVIA, "epilogue", "give_hint", text="She tells of the sea.")
    assert made["stages"]["epilogue"]["flags"] == {"give_hint": {"text": "She tells of the sea."}}
    assert "epilogue" in parse_npc(made, path="x").quest_stages
    assert ("give_hint ✓", "give_hint") in flag_choices(made, "epilogue")


def test_a_stage_gets_its_description_without_a_rule():
    made = with_rule(SILVIA, "epilogue", "give_hint", "She left.", rule_values({}, None, None))
    assert made["stages"]["epilogue"] == {"description": "She left."}


def test_a_flag_is_taken_off_its_stage_alone():
    made = without_rule(SILVIA, "in_progress", "give_item")
    expected = deepcopy(SILVIA)
    del expected["stages"]["in_progress"]["flags"]["give_item"]
    assert made == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"min_trust": "much"}, "min_trust"), ({"game_state": ["night"]}, "context.game_state")],
)
def test_what_cannot_be_read_is_named(changes, field):
    with pytest.raises(InvalidRequest) as caught:
        rewritten(SILVIA, "in_progress", "give_item", **changes)
    assert caught.value.field == field


def test_the_pick_lists_offer_what_the_game_asks_for_anywhere():
    found = offered([SILVIA, {"stages": {"x": {"flags": {"give_item": {"when": {"items": 3}}}}}}])
    assert "photo_forgotten_party" in found.items
    assert "visited_factory" in found.actions
    assert "사진" in found.keywords


def test_a_file_of_another_shape_shows_as_empty():
    for broken in ({}, {"stages": []}, {"stages": {"x": 3}}, {"stages": {"x": {"flags": "no"}}}):
        assert rule_values(broken, "x", "give_item")["text"] == ""
        assert flag_choices(broken, "x")[0] == ("give_item", "give_item")
