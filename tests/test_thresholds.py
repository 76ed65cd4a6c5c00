"""A flag's threshold as designers weigh it: what it costs, which scenes it flips, an override."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import Api
from engine.service import EngineService
from engine.ui import tables
from engine.ui.plots import Line, plot
from heads.bundle import load_bundle, save_bundle
from tests.engines import ALL_FIRE, KEEPER, Workshop, ask
from training.metrics import reliability

ASK = "Give me the key."
OPEN = {
    "items": ["lantern"],
    "actions": ["lit_lamp"],
    "game_state": {"tide_low": True},
    "trust": 0.5,
}
GIVING = (KEEPER, "closed", "give_item")
CURVES = {
    "flags": {"give_item": [[0.2, 0.5, 1.0], [0.5, 0.75, 0.9], [0.9, None, 0.0]]},
    "reliability": [[0.1, 0.12, 40], [0.8, 0.7, 12]],
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


@pytest.fixture
def service(lab: Workshop) -> EngineService:
    folder = lab.bundle(shifts=dict.fromkeys(ALL_FIRE, 2.0))
    bundle = load_bundle(folder)
    info = replace(bundle.info, metrics={"test": {"curves": CURVES}})
    save_bundle(replace(bundle, info=info), folder)
    return lab.service(bundle=str(folder))


@pytest.fixture
def api(service: EngineService) -> dict[str, Any]:
    return Api(service).calls()


def test_a_threshold_is_told_with_what_others_cost(api):
    told = api["threshold"](*GIVING)
    assert (told["threshold"], told["override"]) == (told["bundle"], None)
    assert told["curve"] == CURVES["flags"]["give_item"]
    drawn = tables.cost_view(told, 0.52, "en")
    assert "precision 0.75, recall 0.90" in drawn
    assert drawn.count("<svg") == 2
    assert "precision –" in tables.cost_view(told, 0.99, "en")
    assert "no curve" in tables.cost_view({**told, "curve": []}, 0.5, "en")


def test_scenes_that_another_threshold_flips_are_found_and_nothing_is_changed(api, service):
    ask(service.engine, ASK, context=OPEN)
    api["scene_record"]("p1", KEEPER, "", "the key")
    flipped = api["threshold_try"](*GIVING, 1.0)["flips"]
    assert [(one["scene"], one["passes"]) for one in flipped] == [(f"{KEEPER}: the key", False)]
    assert "below the threshold 1" in flipped[0]["reason"]
    assert "FAIL" in tables.flips_view({"flips": flipped}, "en")
    assert api["threshold_try"](*GIVING, 0.1)["flips"] == []
    assert api["threshold"](*GIVING)["override"] is None


def test_an_override_is_written_served_and_taken_back(api, service, lab):
    before = api["npc_file"](KEEPER)["npc"]
    told = api["threshold_save"](*GIVING, 0.97654)
    assert (told["saved"], told["threshold"]) == (f"{KEEPER}.json", 0.977)
    rule = api["npc_file"](KEEPER)["npc"]["stages"]["closed"]["flags"]["give_item"]
    assert rule["threshold"] == 0.977
    detail = ask(service.engine, ASK, context=OPEN).meta.flags_detail["give_item"]
    assert detail.threshold == 0.977
    api["threshold_save"](*GIVING)
    assert api["npc_file"](KEEPER)["npc"] == before
    assert api["threshold"](*GIVING)["override"] is None


def test_trying_and_saving_are_the_owners(lab):
    api = Api(lab.service(admin_token="owner")).calls()
    for refused in (
        api["threshold_try"](*GIVING, 0.5),
        api["threshold_save"](*GIVING, 0.5),
        api["threshold_save"](*GIVING, 0.5, None, "guess"),
    ):
        assert refused["error"]["code"] == "not_allowed"
    assert api["threshold_save"](*GIVING, 0.5, None, "owner")["threshold"] == 0.5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"npc_id": "nobody"}, "npc_id"),
        ({"quest_stage": "any"}, "quest_stage"),
        ({"flag": "give_hint"}, "flag"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": True}, "threshold"),
    ],
)
def test_bad_input_is_told_with_its_field(api, changes, field):
    given = {"npc_id": KEEPER, "quest_stage": "closed", "flag": "give_item", "threshold": 0.5}
    assert api["threshold_save"](**{**given, **changes})["error"]["field"] == field


def test_an_npc_without_scenes_says_so(api):
    assert "no scenes" in api["threshold_try"](*GIVING, 0.5)["error"]["message"]


def test_plots_are_escaped_and_read_out():
    drawn = plot(
        "<b>", "x", [Line("a&b", [(0, 0), (1, 1)], "pc-line1"), Line("none", [], "x")], 0.5
    )
    assert "<b>" not in drawn
    assert 'aria-label="&lt;b&gt;: a&amp;b"' in drawn
    assert "pc-mark" in drawn


def test_reliability_is_kept_a_bin():
    said, came, count = reliability(np.array([True, False]), np.array([0.95, 0.91]))
    assert (said, came, count) == ([pytest.approx(0.93)], [0.5], [2])


def test_shipped_bundle_tells_curves_of_every_flag():
    metrics = json.loads(Path("heads/pretrained/bundle.json").read_text())["metrics"]
    assert set(metrics["test"]["curves"]["flags"]) == set(metrics["test"]["per_flag"])
