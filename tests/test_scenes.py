"""The five scenes of the original project's test set, played from start to end.

The file lies beside the repository and not in it; without it there is nothing to play.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engine.loader import PRETRAINED
from engine.npc import load_folder
from engine.pipeline import DialogueEngine
from engine.schema import FLAGS, TurnRequest, TurnResult, parse_request
from engine.service import EngineService
from engine.text import hangul_share, has_words
from engine.weights import BaseFiles
from tests.engines import ALL_FIRE, ROOT, SHIPPED, Workshop, settings_for, steady

SCENES_FILE = ROOT.parent / "shared" / "reference" / "test_cases.json"
REGISTRY = load_folder(SHIPPED)

pytestmark = pytest.mark.skipif(not SCENES_FILE.exists(), reason="the scenes are not here")


def read_scenes() -> list[TurnRequest]:
    """Return the scenes as requests; none where the file is not here."""
    if not SCENES_FILE.exists():
        return []
    cases = json.loads(SCENES_FILE.read_text(encoding="utf-8"))
    return [scene(case["input"], player_id=f"scene-{number}") for number, case in enumerate(cases)]


def scene(given: dict[str, Any], player_id: str) -> TurnRequest:
    """Translate one case of the file into a request."""
    texts = [message["text"] for message in given["context"]]
    return parse_request(
        text=given["player_utterance"],
        npc_id=given["npc_id"],
        player_id=player_id,
        context={
            **given["tags"],
            "location": given["npc_location"],
            "items": given["player_state"]["items"],
            "actions": given["player_state"]["actions"],
            "dialogue_history": [
                {"player": player, "npc": npc}
                for player, npc in zip(texts[::2], texts[1::2], strict=True)
            ],
        },
        gen_params={"max_new_tokens": 16, "seed": 7},
    )


SCENES = read_scenes()
each_scene = pytest.mark.parametrize("asked", SCENES, ids=[scene.npc_id for scene in SCENES])


def check_result(asked: TurnRequest, result: TurnResult) -> None:
    """Assert what holds of every scene, whatever the model."""
    meta = result.meta
    spoken = "ko" if "ko" in REGISTRY.languages(asked.npc_id) else "en"
    assert (meta.route, meta.route_reason, meta.language) == ("main", None, spoken)
    assert has_words(result.text)
    if meta.line == "authored":
        assert (hangul_share(result.text) > 0.5) == (spoken == "ko")
    assert tuple(result.flags) == FLAGS
    for flag, detail in meta.flags_detail.items():
        assert detail.fired == result.flags[flag]
        assert (detail.reason is None) == detail.fired
        assert detail.probability is not None
        assert detail.threshold is not None
        assert detail.permitted or not detail.fired
    assert [action.flag for action in meta.actions] == [
        flag for flag in FLAGS if result.flags[flag]
    ]
    assert all(action.source == "exact" and action.text for action in meta.actions)
    assert meta.quest_stage == asked.context.quest_stage
    assert meta.state_before.trust == asked.context.trust
    assert meta.state.trust == pytest.approx(meta.state_before.trust + result.delta.trust)
    assert abs(result.delta.trust) <= 0.15 + 1e-9


def check_scene(asked: TurnRequest, result: TurnResult) -> None:
    """Assert what the state of the scene forbids, whatever the model reads."""
    details = result.meta.flags_detail
    if asked.npc_id == "mother_abandoned_factory":
        # The player has not been in the factory, and the picture is another than the one she knows.
        reason = str(details["give_item"].reason)
        assert "needs the item photo_forgotten_party" in reason
        assert "needs the action visited_factory" in reason
        assert "needs the action visited_factory" in str(details["npc_main_story"].reason)
    if not asked.context.items and not asked.context.actions:
        assert not result.flags["give_item"]
        assert not result.flags["quest_stage_change"]


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DialogueEngine]:
    """An engine whose model would fire every flag."""
    with Workshop(tmp_path_factory.mktemp("scenes")) as lab:
        yield lab.engine(REGISTRY, steady(trust=0.1, shifts=ALL_FIRE))


@each_scene
def test_scene_is_played_by_a_model_that_would_grant_everything(
    eager: DialogueEngine, asked: TurnRequest
) -> None:
    result = eager.ask(asked)
    check_result(asked, result)
    check_scene(asked, result)
    for detail in result.meta.flags_detail.values():
        assert detail.fired == detail.permitted


@each_scene
def test_scene_goes_on_from_what_it_left_behind(eager: DialogueEngine, asked: TurnRequest) -> None:
    player = f"{asked.player_id}-goes-on"
    first = eager.ask(asked.model_copy(update={"player_id": player}))
    second = eager.ask(
        parse_request(
            text="고마워요.",
            npc_id=asked.npc_id,
            player_id=player,
            gen_params={"max_new_tokens": 8, "seed": 7},
        )
    )
    assert second.meta.quest_stage == first.meta.next_quest_stage
    assert second.meta.state_before == first.meta.state
    held = eager.session(player, asked.npc_id)
    assert held["location"] == asked.context.location
    sent = asked.context.dialogue_history or ()
    said = [turn["player"] for turn in held["history"]]
    assert said[: len(sent)] == [turn.player for turn in sent]
    assert said[len(sent) + 1 :] == ["고마워요."]


def test_every_scene_is_of_an_npc_that_is_shipped() -> None:
    assert len(SCENES) == 5
    assert {asked.npc_id for asked in SCENES} <= set(REGISTRY.by_id)


# --- with the shipped model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineService]:
    """The program as it is shipped: embedded base, pretrained bundle, embedded embedder."""
    if not PRETRAINED.is_dir():
        pytest.skip("heads/pretrained is not there yet")
    real_base: BaseFiles = request.getfixturevalue("real_base")
    settings = settings_for(
        tmp_path_factory.mktemp("served"),
        npc_dir=SHIPPED,
        model_cache=real_base.path.parent,
        max_prompt_tokens=1536,
        max_text_tokens=512,
    )
    service = EngineService(settings)
    service.load()
    assert service.status()["reason"] is None
    yield service
    service.close()


@pytest.mark.real
@each_scene
def test_scene_is_played_by_the_shipped_model(served: EngineService, asked: TurnRequest) -> None:
    result = served.engine.ask(asked)
    check_result(asked, result)
    check_scene(asked, result)
    assert result.meta.line == ("authored" if result.meta.language == "ko" else "generated")


@pytest.mark.real
def test_shipped_model_plays_a_scene_the_same_for_two_players(served: EngineService) -> None:
    one, two = (
        served.engine.ask(SCENES[-1].model_copy(update={"player_id": player}))
        for player in ("first", "second")
    )
    assert (one.text, one.flags, one.delta) == (two.text, two.flags, two.delta)
