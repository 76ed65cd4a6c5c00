"""Scenes: files, what is told of a failure, the command line, recording."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.api import Api
from engine.npc import load_folder
from engine.scenes import (
    SceneFile,
    SceneFileError,
    difference,
    read_scenes,
    record,
    run_scenes,
    save_scene,
    table,
)
from engine.scenes.__main__ import FAILED, NOT_RUN, PASSED, main
from engine.scenes.report import as_json, keep, read_last
from engine.schema import Context
from engine.service import EngineService
from engine.ui import tables
from tests.engines import ALL_FIRE, KEEPER, NONE_FIRES, SHIPPED, Workshop, ask, steady, write_npcs
from tests.engines import keeper_data as keeper_file

OPEN = {
    "quest_stage": "closed",
    "items": ["lantern"],
    "actions": ["lit_lamp"],
    "game_state": {"tide_low": True},
    "trust": 0.5,
    "relationship": 0.5,
}
ASK = "May I have the key?"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


def scene(expect: dict[str, Any], name: str = "a scene", say: str = ASK, **state: Any) -> Any:
    return {"name": name, "state": {**OPEN, **state}, "turns": [{"say": say, "expect": expect}]}


def file_of(*scenes: Any, npc_id: str = KEEPER) -> SceneFile:
    return SceneFile.model_validate({"npc_id": npc_id, "scenes": scenes})


def failures(lab: Workshop, expect: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    shifts = changes.pop("shifts", ALL_FIRE)
    engine = lab.engine(
        model=steady(shifts=shifts), name=f"engine-{len(list(lab.folder.iterdir()))}"
    )
    return run_scenes(engine.parts, [file_of(scene(expect, **changes))]).outcomes[0].failures


def test_what_is_as_expected_passes(lab: Workshop) -> None:
    value = keeper_file()["stages"]["closed"]["flags"]["give_item"]["value"]
    expect = {
        "fire": ["give_item"],
        "actions": {"give_item": value},
        "trust": {"min": 0.0, "max": 0.1},
        "route": "main",
    }
    assert failures(lab, expect) == ()


@pytest.mark.parametrize(
    ("expect", "changes", "told"),
    [
        ({"fire": ["give_item"]}, {"items": []}, "give_item did not fire: needs the item lantern"),
        ({"fire": ["give_item"]}, {"shifts": NONE_FIRES}, "below the threshold"),
        ({"not_fire": ["give_item"]}, {}, "give_item fired (probability 1)"),
        ({"actions": {"give_item": "crown"}}, {}, "not crown"),
        ({"trust": {"min": 0.1}}, {}, "trust moved by +0.05, not +0.1 to +1"),
        ({"relationship": {"max": -0.1}}, {}, "relationship moved by +0.04, not -1 to -0.1"),
        ({"route": "forbidden"}, {}, "took the route main, not forbidden"),
        ({"next_quest_stage": "nowhere"}, {}, "not nowhere"),
        ({"present_words": ["☃"]}, {}, "the line does not say '☃'"),
    ],
)
def test_a_failure_says_why(
    lab: Workshop, expect: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    found = failures(lab, expect, **changes)
    assert len(found) == 1
    assert told in found[0]


def test_an_npc_that_is_not_there_fails_its_scenes_alone(lab: Workshop) -> None:
    engine = lab.engine(model=steady(shifts=ALL_FIRE))
    files = [file_of(scene({}), npc_id="nobody"), file_of(scene({"fire": ["give_item"]}))]
    run = run_scenes(engine.parts, files)
    assert [one.passed for one in run.outcomes] == [False, True]
    assert "there is no NPC 'nobody'" in run.outcomes[0].failures[0]


def test_scenes_touch_nobodys_session_and_tell_how_far_they_are(lab: Workshop) -> None:
    engine = lab.engine(model=steady(shifts=ALL_FIRE))
    ask(engine, "Hello.", KEEPER, "scene-0")
    before = engine.session("scene-0", KEEPER)
    told: list[tuple[int, int, str]] = []
    file = file_of(scene({}, "one"), scene({}, "two"))
    first = run_scenes(engine.parts, [file], lambda *at: told.append(at))
    assert engine.session("scene-0", KEEPER) == before
    assert told == [(0, 2, f"{KEEPER}: one"), (1, 2, f"{KEEPER}: two"), (2, 2, "")]
    assert run_scenes(engine.parts, [file]) == first


def test_later_turns_go_on_from_the_first(lab: Workshop) -> None:
    turns = [{"say": words, "expect": {"trust": {"max": 0.0}}} for words in ("Hello.", "And you?")]
    engine = lab.engine()
    many = file_of({"name": "two turns", "state": OPEN, "turns": turns})
    found = run_scenes(engine.parts, [many]).outcomes[0].failures
    assert [one.partition(":")[0] for one in found] == ["turn 1", "turn 2"]


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"npc_id": "../x", "scenes": [scene({})]}, "npc_id"),
        ({"npc_id": KEEPER, "scenes": []}, "scenes"),
        ({"npc_id": KEEPER, "scenes": [scene({}), scene({})]}, "two are called"),
        (
            {"npc_id": KEEPER, "scenes": [scene({"fire": ["give_gold"]})]},
            "unknown flag 'give_gold'",
        ),
        ({"npc_id": KEEPER, "scenes": [scene({"actions": {"gold": "x"}})]}, "unknown flag"),
        (
            {
                "npc_id": KEEPER,
                "scenes": [scene({"fire": ["give_item"], "not_fire": ["give_item"]})],
            },
            "cannot both",
        ),
        ({"npc_id": KEEPER, "scenes": [scene({"trust": {"min": 1, "max": 0}})]}, "above max"),
        ({"npc_id": KEEPER, "scenes": [scene({"fires": []})]}, "check the spelling"),
        ({"npc_id": KEEPER, "scenes": [scene({}, trust=3)]}, "scenes.0.state.trust"),
        ([], "keeper.json"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, data: Any, field: str) -> None:
    path = tmp_path / "keeper.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SceneFileError, match=r"^keeper\.json: ") as caught:
        read_scenes([path])
    assert field in str(caught.value)


def test_shipped_scenes_name_what_there_is() -> None:
    registry = load_folder(SHIPPED)
    files = read_scenes(sorted((SHIPPED / "scenes").glob("*.json")))
    assert {file.npc_id for file in files} == set(registry.by_id)
    for file in files:
        npc = registry.get(file.npc_id)
        assert len(file.scenes) >= 5
        for one in file.scenes:
            stage = one.state.quest_stage or npc.defaults.quest_stage
            assert stage in npc.quest_stages, one.name
            for turn in one.turns:
                assert set(turn.expect.fire) <= set(npc.stage(stage).flags), one.name
                for flag, value in turn.expect.actions.items():
                    assert npc.stage(stage).flags[flag].value == value, one.name


def test_a_recorded_scene_passes_and_is_saved_beside_the_others(
    lab: Workshop, tmp_path: Path
) -> None:
    engine = lab.engine(model=steady(shifts=ALL_FIRE))
    result = ask(engine, ASK, context=OPEN)
    state = Context.model_validate(OPEN)
    made = record("the key is given", state, [(ASK, result)])
    assert made.turns[0].expect.fire
    save_scene(tmp_path / "scenes", KEEPER, made)
    path = save_scene(tmp_path / "scenes", KEEPER, made.model_copy(update={"name": "again"}))
    (file,) = read_scenes([path])
    assert [one.name for one in file.scenes] == ["the key is given", "again"]
    assert run_scenes(engine.parts, [file]).passed
    save_scene(tmp_path / "scenes", KEEPER, made)
    assert len(read_scenes([path])[0].scenes) == 2
    with pytest.raises(SceneFileError):
        save_scene(tmp_path / "scenes", "../keeper", made)
    assert [one.name for one in (tmp_path / "scenes").iterdir()] == [f"{KEEPER}.json"]


# --- the command -----------------------------------------------------------------------------------


def write_scenes(folder: Path, *scenes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{KEEPER}.json"
    path.write_text(json.dumps({"npc_id": KEEPER, "scenes": scenes}), encoding="utf-8")
    return path


def command(lab: Workshop, *arguments: str, load: bool = False) -> int:
    def make() -> EngineService:
        return lab.service(load=load, bundle=str(lab.bundle(shifts=ALL_FIRE)))

    return main(["--last", str(lab.folder / "last.json"), *arguments], make)


def test_the_command_gates_with_its_exit_code_and_tells_what_changed(
    lab: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npcs(lab.folder / "npcs", keeper_file())
    scenes = lab.folder / "npcs" / "scenes"
    write_scenes(scenes, scene({"fire": ["give_item"]}, "one"))
    assert command(lab) == PASSED
    assert "1 passed, 0 failed" in capsys.readouterr().out
    write_scenes(scenes, scene({"not_fire": ["give_item"]}, "one"), scene({}, "two"))
    assert command(lab) == FAILED
    told = capsys.readouterr().out
    assert f"FAIL  {KEEPER}: one" in told
    assert f"  fails now: {KEEPER}: one\n  new: {KEEPER}: two" in told
    assert command(lab, "--json", "--npc", KEEPER) == FAILED
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_the_command_says_why_it_could_not_run(
    lab: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(lab) == NOT_RUN
    assert "there are no scenes" in capsys.readouterr().err
    bad = tmp_path / "bad.json"
    bad.write_text("{", encoding="utf-8")
    assert command(lab, str(bad)) == NOT_RUN
    assert "bad.json" in capsys.readouterr().err

    def unready() -> EngineService:
        return lab.service(load=False, bundle=str(tmp_path / "nowhere"))

    good = write_scenes(tmp_path / "scenes", scene({}))
    assert main([str(good)], unready) == NOT_RUN
    assert "there is no bundle" in capsys.readouterr().err


def test_runs_are_told_apart(lab: Workshop, tmp_path: Path) -> None:
    engine = lab.engine(model=steady(shifts=ALL_FIRE))
    run = run_scenes(
        engine.parts, [file_of(scene({}, "a"), scene({"not_fire": ["give_item"]}, "b"))]
    )
    assert table(run).splitlines()[-1] == "1 passed, 1 failed"
    before = {"scenes": {f"{KEEPER}: a": ["why"], f"{KEEPER}: b": [], f"{KEEPER}: c": []}}
    assert difference(run, before) == [
        f"passes again: {KEEPER}: a",
        f"fails now: {KEEPER}: b",
        f"gone: {KEEPER}: c",
    ]
    keep(run, tmp_path / "deep" / "last.json")
    assert read_last(tmp_path / "deep" / "last.json") == as_json(run)
    (tmp_path / "broken.json").write_text("[]", encoding="utf-8")
    assert read_last(tmp_path / "broken.json") == {}


# --- through the API -------------------------------------------------------------------------------


def test_a_turn_is_recorded_listed_and_run_through_the_api(lab: Workshop) -> None:
    service = lab.service(bundle=str(lab.bundle(shifts=ALL_FIRE)))
    api = Api(service).calls()
    assert api["scenes_run"]()["error"]["field"] == "npc_id"
    assert api["scene_record"]("p1", KEEPER)["error"]["field"] == "turn_id"
    first = ask(service.engine, ASK, context=OPEN)
    ask(service.engine, "And now?")
    told = api["scene_record"]("p1", KEEPER, first.meta.turn_id, "the key")
    assert (told["saved"], told["scene"]["name"]) == (f"{KEEPER}.json", "the key")
    assert told["scene"]["state"]["items"] == OPEN["items"]
    assert [one["name"] for one in api["scenes"](KEEPER)["scenes"][KEEPER]] == ["the key"]
    run = api["scenes_run"](KEEPER)
    assert (run["passed"], run["changes"]) == (True, [])
    assert api["scenes"]("nobody")["error"]["code"] == "unknown_npc"
    drawn = tables.scenes_view({**run, "scenes": {"<b>": ["why"]}}, "en")
    assert "&lt;b&gt;" in drawn
    assert "FAIL" in drawn


def test_running_and_recording_are_the_owners(lab: Workshop) -> None:
    api = Api(lab.service(admin_token="owner")).calls()
    for refused in (api["scenes_run"](), api["scene_record"]("p1", KEEPER, "", "x", "guess")):
        assert refused["error"]["code"] == "not_allowed"
