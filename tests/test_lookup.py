"""What a designer asks of an NPC's documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.api import Api
from engine.errors import InvalidRequest
from engine.lookup import documents, explain, gaps
from engine.npc import load_folder
from engine.schema import FLAGS
from engine.ui import tables
from tests.engines import KEEPER, SHIPPED, Workshop, keeper


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


def test_a_flag_is_explained_with_the_nearest_documents(lab: Workshop) -> None:
    api = Api(lab.service())
    found = api.explain(KEEPER, "closed", "give_item")
    assert (found["source"], found["value"]) == (
        "exact",
        keeper().stage("closed").flags["give_item"].value,
    )
    distances = [hit["distance"] for hit in found["hits"]]
    assert distances == sorted(distances)
    assert {hit["lang"] for hit in found["hits"]} == {"en"}
    assert (
        Api(lab.service()).explain(KEEPER, "closed", "give_item", "", "ko")["hits"][0]["lang"]
        == "ko"
    )
    drawn = tables.meaning_view(found, "en")
    assert found["text"] in drawn


def test_a_flag_or_stage_that_is_not_there_is_named(lab: Workshop) -> None:
    api = Api(lab.service())
    assert api.explain(KEEPER, "nowhere", "give_item")["error"]["field"] == "quest_stage"
    assert api.explain(KEEPER, "closed", "give_gold")["error"]["field"] == "flag"
    assert api.explain("nobody", "closed", "give_item")["error"]["code"] == "unknown_npc"
    assert "error" in api.documents("nobody")


def test_a_flag_that_no_document_explains_says_so(lab: Workshop) -> None:
    engine = lab.engine()
    unexplained = next(flag for flag in FLAGS if flag not in keeper().stage("closed").flags)
    assert engine.parts.knowledge is not None
    found = explain(engine.parts.knowledge, keeper(), "closed", unexplained)
    assert found["source"] in ("none", "nearest", "any_stage")
    with pytest.raises(InvalidRequest):
        explain(engine.parts.knowledge, keeper(), "closed", "")


def test_gaps_name_what_is_missing_and_where_to_mend_it() -> None:
    npc = keeper()
    found = gaps(npc)
    fields = {one["field"] for one in found}
    explained = {flag for stage in npc.quest_stages for flag in npc.stage(stage).flags}
    assert {f"stages.any.flags.{flag}" for flag in FLAGS if flag not in explained} <= fields
    bare = npc.model_copy(update={"lore": ()})
    assert "lore" in {one["field"] for one in gaps(bare)}
    assert all(one["message"] for one in found)
    assert "pc-good" in tables.gaps_view([], "en")


def test_shipped_npcs_describe_every_stage() -> None:
    for npc in load_folder(SHIPPED).all():
        missing = [one for one in gaps(npc) if one["kind"] in ("no_description", "no_lore")]
        assert missing == [], npc.id
        assert len(documents(npc)) > 5


def test_the_card_that_serves_can_be_read(lab: Workshop) -> None:
    card = Api(lab.service()).model_card()
    assert (card["name"], card["card"]) == ("tiny", "# tiny\n")
    assert set(card["thresholds"]) == set(FLAGS)
    figures = {"per_flag": {"give_item": {"positives": 3, "f1": 0.5, "auprc": None}}}
    drawn = tables.figures_view({**card, "metrics": {"test": figures}}, "en")
    assert "0.50" in drawn
    assert "–" in drawn


def test_each_gap_of_a_file_can_be_filled(lab: Workshop) -> None:
    api = Api(lab.service()).calls()
    npc = api["npc_new"]("Mira")["npc"]
    del npc["stages"]["not_started"]["description"]
    del npc["stages"]["not_started"]["flags"]["give_hint"]["value"]
    npc["stages"]["any"]["flags"] = {"npc_action": {"text": "Mira winds a clock."}}
    api["npc_save"](npc)
    found = {one["field"] for one in api["documents"](npc["id"])["gaps"]}
    assert {"lore", "stages.not_started.description", "stages.any.flags.give_item"} <= found
    while gaps := api["documents"](npc["id"])["gaps"]:
        told = api["npc_mend"](npc["id"], gaps[0]["field"], "every_hour")
        assert told.get("saved"), (gaps[0], told)
    stages = api["npc_file"](npc["id"])["npc"]["stages"]
    assert stages["not_started"]["description"] == "every_hour"
    assert stages["not_started"]["flags"]["give_hint"]["value"] == "every_hour"
    action = {"text": "Mira winds a clock.", "value": "every_hour"}
    assert stages["any"]["flags"]["npc_action"] == action
    assert api["npc_mend"](npc["id"], "lore", "More.")["error"]["field"] == "field"
