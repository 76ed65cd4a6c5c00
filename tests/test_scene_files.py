"""Scenes: files, what is told of a failure, the command line, recording."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.api import Api
from engine.npc import load_folder, load_folder_leniently
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
from engine.scenes import __main__ as command_line
from engine.scenes.__main__ import FAILED, NOT_RUN, PASSED, main
from engine.scenes.report import as_json, keep, read_last
from engine.schema import Context
from engine.service import EngineService
from engine.settings import Settings
from engine.ui import tables
from engine.weights import BaseFiles
from tests.engines import (
    ALL_FIRE,
    KEEPER,
    NONE_FIRES,
    SHIPPED,
    Workshop,
    ask,
    settings_for,
    steady,
    write_npcs,
)
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
        (
            {"absent_words": ["rock"]},
            {"say": "You old crow."},
            "the line says 'rock': 'Get off my rock.'",
        ),
    ],
)
def test_a_failure_says_why(
    lab: Workshop, expect: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    found = failures(lab, expect, **changes)
    assert len(found) == 1
    assert told in found[0]


def test_a_turn_that_could_not_be_decided_proves_nothing(lab: Workshop) -> None:
    parts = replace(lab.engine(model=steady(shifts=ALL_FIRE)).parts, knowledge=None)
    meant = scene({"route": "degraded", "not_fire": ["give_item"]}, "meant")
    run = run_scenes(parts, [file_of(scene({"not_fire": ["give_item"]}), meant)])
    assert [one.passed for one in run.outcomes] == [False, True]
    assert run.outcomes[0].failures == (
        "the turn could not be decided: the knowledge store failed",
    )


def test_a_korean_scene_is_played_with_the_korean_file(lab: Workshop) -> None:
    words = "열쇠를 주세요."
    expect = {"fire": ["give_item"], "present_words": ["열쇠를 가져가요"], "route": "main"}
    spoken = {**scene(expect, "한국어", words), "lang": "ko"}
    in_state = scene(expect, "상태의 언어", words, language="ko")
    # Nothing of the utterance tells its language: `lang` alone does.
    wordless = {**scene({"present_words": ["바람"], "route": "invalid"}, "…", "?!"), "lang": "ko"}
    engine = lab.engine(model=steady(shifts=ALL_FIRE))
    run = run_scenes(engine.parts, [file_of(spoken, in_state, wordless)])
    assert [one.failures for one in run.outcomes] == [(), (), ()]
    english = run_scenes(engine.parts, [file_of(scene(expect, say=ASK))]).outcomes[0]
    assert "does not say '열쇠를 가져가요'" in english.failures[0]


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
        ({"npc_id": KEEPER, "scenes": [scene({"fires": []}, "dawn")]}, "scene 'dawn': scenes.0."),
        ({"npc_id": KEEPER, "scenes": [{**scene({}), "lang": "fr"}]}, "scenes.0.lang"),
        ({"npc_id": KEEPER, "scenes": [{**scene({}, language="en"), "lang": "ko"}]}, "lang is ko"),
        ({"npc_id": KEEPER, "scenes": [{"turns": []}]}, "scenes.0.name: is required"),
        ({"npc_id": KEEPER, "scenes": [3]}, "scenes.0"),
        ({"npc_id": KEEPER, "scenes": [scene({})], "schema_version": 2}, "schema_version"),
        ([], "keeper.json"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, data: Any, field: str) -> None:
    path = tmp_path / "keeper.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SceneFileError, match=r"^keeper\.json: ") as caught:
        read_scenes([path])
    assert field in str(caught.value)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keeper.json"
    path.write_text('{"npc_id": "keeper", "npc_id": "other", "scenes": []}', encoding="utf-8")
    with pytest.raises(SceneFileError, match="'npc_id' stands twice"):
        read_scenes([path])


def test_two_files_may_not_name_the_same_scene(tmp_path: Path) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        path.write_text(json.dumps({"npc_id": KEEPER, "scenes": [scene({})]}), encoding="utf-8")
    with pytest.raises(SceneFileError, match=r"two\.json: scene 'a scene': .*one\.json"):
        read_scenes(paths)


def test_scenes_are_no_npc_files() -> None:
    assert (SHIPPED / "scenes").is_dir()
    registry, faults = load_folder_leniently(SHIPPED)
    assert faults == []
    assert len(registry) == len({path.name.partition(".")[0] for path in SHIPPED.glob("*.json")})


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
                named = {*turn.expect.fire, *turn.expect.not_fire}
                assert named <= set(npc.stage(stage).flags), one.name
                assert (turn.expect.next_quest_stage or stage) in npc.quest_stages, one.name
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


def test_many_may_save_at_once(lab: Workshop, tmp_path: Path) -> None:
    folder, names = tmp_path / "scenes", [f"scene {number}" for number in range(8)]
    scenes = file_of(*(scene({}, name) for name in names)).scenes
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: save_scene(folder, KEEPER, one), scenes))
    assert sorted(one.name for one in read_scenes([folder / f"{KEEPER}.json"])[0].scenes) == names


def test_a_scene_that_cannot_be_saved_leaves_what_was_there(tmp_path: Path) -> None:
    (made,) = file_of(scene({})).scenes
    another = write_scenes(tmp_path, scene({}), npc_id="another")
    before = another.read_text(encoding="utf-8")
    with pytest.raises(SceneFileError, match="holds scenes of 'another'"):
        save_scene(tmp_path, KEEPER, made)
    assert another.read_text(encoding="utf-8") == before
    (tmp_path / "a_file").touch()
    with pytest.raises(SceneFileError, match="cannot be written"):
        save_scene(tmp_path / "a_file", KEEPER, made)


# --- the command -----------------------------------------------------------------------------------


def write_scenes(folder: Path, *scenes: Any, name: str = KEEPER, npc_id: str = KEEPER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"npc_id": npc_id, "scenes": scenes}), encoding="utf-8")
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
    write_scenes(scenes, scene({}, "one"))
    assert command(lab, "--json", "--npc", KEEPER) == PASSED
    assert json.loads(capsys.readouterr().out) == {
        "passed": True,
        "scenes": {f"{KEEPER}: one": []},
        "changes": [f"passes again: {KEEPER}: one", f"gone: {KEEPER}: two"],
    }
    assert command(lab) == PASSED
    assert "since the last run" not in capsys.readouterr().out


def test_a_run_of_some_scenes_leaves_the_others_as_they_were(
    lab: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npcs(lab.folder / "npcs", keeper_file(), keeper_file("watcher"))
    folder = tmp_path / "elsewhere"
    write_scenes(folder, scene({}, "a"), scene({}, "b"))
    write_scenes(folder, scene({"not_fire": ["give_item"]}, "c"), name="watcher", npc_id="watcher")
    assert command(lab, "--scenes", str(folder)) == FAILED
    one = write_scenes(tmp_path / "alone", scene({}, "a"))
    capsys.readouterr()
    assert command(lab, str(one)) == PASSED
    write_scenes(folder, scene({}, "a"), scene({"not_fire": ["give_item"]}, "b"))
    assert command(lab, "--scenes", str(folder), "--npc", "watcher") == FAILED
    assert "since the last run" not in capsys.readouterr().out
    assert command(lab, "--scenes", str(folder)) == FAILED
    told = capsys.readouterr().out
    assert told.endswith(f"since the last run:\n  fails now: {KEEPER}: b\n")


def test_a_run_that_cannot_be_kept_still_gives_its_verdict(
    lab: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_scenes(tmp_path / "scenes", scene({}))
    (tmp_path / "a_file").touch()
    assert command(lab, str(good), "--last", str(tmp_path / "a_file" / "last.json")) == PASSED
    told = capsys.readouterr()
    assert "1 passed, 0 failed" in told.out
    assert "could not be kept" in told.err


def test_the_command_has_a_store_of_its_own(
    lab: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_scenes(tmp_path / "scenes", scene({}))
    used: list[Settings] = []

    def recorded(settings: Settings) -> EngineService:
        used.append(settings)
        data = {"data_dir": settings.data_dir, "database_url": settings.database_url}
        return lab.service(load=False, bundle=str(lab.bundle(shifts=ALL_FIRE)), **data)

    monkeypatch.setattr(command_line, "EngineService", recorded)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "users"))
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'users.sqlite3'}")
    assert main([str(good)]) == PASSED
    assert [path.name for path in (tmp_path / "users").iterdir()] == ["scenes-last.json"]
    assert not (tmp_path / "users.sqlite3").exists()
    assert not used[0].data_dir.exists()


def test_the_command_says_why_it_could_not_run(
    lab: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
    assert main(["--last", str(tmp_path / "last.json"), str(good)], unready) == NOT_RUN
    assert "there is no bundle" in capsys.readouterr().err
    assert not (tmp_path / "last.json").exists()
    assert command(lab, str(good), "--npc", "nobody") == NOT_RUN
    assert "there are no scenes of nobody in the files given" in capsys.readouterr().err
    monkeypatch.setenv("HISTORY_TURNS", "many")
    assert command(lab, str(good)) == NOT_RUN
    assert "setting HISTORY_TURNS" in capsys.readouterr().err


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
    assert difference(run, before, whole=[]) == difference(run, before)[:2]
    keep(run, tmp_path / "deep" / "last.json", whole=["another"])
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
    refused = api["scene_record"]("p1", KEEPER, first.meta.turn_id)["error"]
    assert "only the last turn" in refused["message"]
    service.engine.undo("p1", KEEPER)
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


@pytest.mark.real
def test_every_shipped_scene_passes_with_what_ships(
    real_base: BaseFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"max_prompt_tokens": 1536, "max_text_tokens": 512}
    settings = settings_for(tmp_path, npc_dir=SHIPPED, model_cache=real_base.path.parent, **usual)
    folder, last = SHIPPED / "scenes", tmp_path / "last.json"
    verdict = main(["--scenes", str(folder), "--last", str(last)], lambda: EngineService(settings))
    assert verdict == PASSED, capsys.readouterr().out
