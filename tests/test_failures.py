"""What goes wrong on purpose: model, stores, NPC files and bundles fail, and nothing is half done."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.api import Api
from engine.errors import NotReady, NPCFileError, StateStoreError
from engine.knowledge import KnowledgeError
from engine.model import LanguageModel
from engine.schema import Action, Delta, TurnResult
from engine.service import EngineService
from heads.bundle import HEADS, MANIFEST
from tests.engines import (
    ALL_FIRE,
    KEEPER,
    Workshop,
    ask,
    keeper_data,
    request,
    steady,
    write_npcs,
)

READY = {
    "items": ["lantern"],
    "actions": ["lit_lamp"],
    "game_state": {"tide_low": True},
    "trust": 0.5,
}
FALLBACKS = {"The wind took your words.", "Ask the sea."}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


def assert_degraded(result: TurnResult) -> None:
    """Assert that a turn was answered in the NPC's voice and changed nothing."""
    assert (result.meta.route, result.meta.line) == ("degraded", "authored")
    assert result.text in FALLBACKS
    assert result.delta == Delta()
    assert result.meta.state == result.meta.state_before
    assert not any(result.flags.values())
    assert result.meta.actions == ()
    assert result.meta.route_reason
    assert {detail.reason for detail in result.meta.flags_detail.values()} == {
        "the turn could not be decided"
    }


# --- the model ------------------------------------------------------------------------------------


def failing_after(calls: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` that fails once it was called `calls` times."""
    left = [calls]

    def run(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return forward(*args, **kwargs)

    return run


def break_prefill(model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
    decoder = model.model.model
    patch.setattr(decoder, "forward", failing_after(0, decoder.forward))


def break_generation(model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
    head = model.model.lm_head
    patch.setattr(head, "forward", failing_after(4, head.forward))


def break_numbers(model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
    norm = model.model.model.norm
    patch.setattr(norm, "forward", lambda hidden: hidden * float("nan"))


@pytest.mark.parametrize("break_model", [break_prefill, break_generation, break_numbers])
def test_turn_with_a_failing_model_changes_nothing_and_the_next_one_works(
    lab: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    break_model: Callable[[LanguageModel, pytest.MonkeyPatch], None],
) -> None:
    model = steady(trust=0.1, shifts=ALL_FIRE)
    engine = lab.engine(model=model)
    ask(engine, "Good morning.", context=READY)
    before = engine.session("p1", KEEPER)

    with monkeypatch.context() as patch:
        break_model(model, patch)
        failed = ask(engine, "The key!")
    assert_degraded(failed)
    after = engine.session("p1", KEEPER)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"version", "history"}
    assert after["history"][-1] == {"player": "The key!", "npc": failed.text}

    worked = ask(engine, "The key!")
    assert worked.meta.route == "main"
    assert worked.flags["give_item"]
    assert worked.delta.trust == 0.1, "what could not be decided must not count as said before"
    assert [turn.result.meta.version for turn in engine.transcript("p1", KEEPER)] == [1, 2, 3]


def test_words_of_the_library_do_not_reach_the_player(
    lab: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = steady()
    engine = lab.engine(model=model)

    def fail(**_kwargs: Any) -> None:
        raise KnowledgeError("/srv/secret/chroma.sqlite3: broken")

    monkeypatch.setattr(engine.parts.knowledge, "briefing", lambda *_args: fail())
    result = ask(engine, "Hello")
    assert_degraded(result)
    assert "secret" not in result.model_dump_json()


def test_stream_that_fails_midway_ends_with_the_degraded_result(
    lab: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = steady(trust=0.1, shifts=ALL_FIRE)
    engine = lab.engine(model=model)
    break_generation(model, monkeypatch)
    asked = request("The key!", context=READY, gen_params={"max_new_tokens": 32})
    events = list(engine.ask_stream(asked))
    states = [event.result for event in events if event.kind == "state"]
    assert states[0] is not None
    assert states[0].flags["give_item"]
    last = states[-1]
    assert last is not None
    assert last.meta.route == "degraded", "whoever listens is told that the first state is void"
    final = events[-1].result
    assert final is not None
    assert_degraded(final)


# --- the knowledge store --------------------------------------------------------------------------


def play(service: EngineService, text: str = "The key!", **more: Any) -> TurnResult:
    return ask(service.engine, text, context=READY, **more)


def chroma(lab: Workshop) -> Path:
    return lab.folder / "data" / "chroma"


def test_deleted_knowledge_degrades_turns_and_a_restart_rebuilds_it(lab: Workshop) -> None:
    service = lab.service()
    assert play(service).meta.route == "main"
    shutil.rmtree(chroma(lab))
    assert_degraded(play(service, "Good day."))
    service.close()

    again = lab.service()
    assert again.status()["knowledge"] == {"ok": True, "reason": None}
    assert play(again, "A calm sea.").meta.route == "main"


@pytest.mark.parametrize("garbage", [b"this is no database", b"\0" * 8192, b""])
def test_garbage_in_place_of_the_knowledge_is_rebuilt_at_start(
    lab: Workshop, garbage: bytes
) -> None:
    lab.bundle(shifts=ALL_FIRE)
    first = lab.service()
    (known,) = _key_actions(first, "p1")
    first.close()
    (chroma(lab) / "chroma.sqlite3").write_bytes(garbage)

    service = lab.service()
    assert service.status()["knowledge"]["ok"]
    (action,) = _key_actions(service, "p2")
    assert (action.text, action.source) == (known.text, "exact")


def _key_actions(service: EngineService, player: str) -> tuple[Action, ...]:
    """Play a turn in which the key is given; return what it does in the game."""
    return ask(service.engine, "The key!", KEEPER, player, context=READY).meta.actions


@pytest.mark.parametrize("mend", ["restart", "reload"])
def test_knowledge_that_cannot_be_opened_degrades_turns_until_it_is_mended(
    mend: str, lab: Workshop
) -> None:
    chroma(lab).parent.mkdir(parents=True)
    chroma(lab).write_text("a file where a folder should be")
    service = lab.service()
    status = service.status()
    assert status["ready"]
    assert not status["knowledge"]["ok"]
    assert "chroma" in status["knowledge"]["reason"]
    assert_degraded(play(service))

    chroma(lab).unlink()
    if mend == "restart":
        service.close()
        service = lab.service()
    else:
        assert service.reload()["reloaded"]
    assert service.status()["knowledge"]["ok"]
    assert play(service).meta.route == "main"


# --- the session database -------------------------------------------------------------------------


def test_turn_that_cannot_be_committed_raises_and_changes_nothing(lab: Workshop) -> None:
    engine = lab.engine(model=steady(trust=0.1, shifts=ALL_FIRE), busy_timeout_s=0.05)
    ask(engine, "Good morning.", context=READY)
    before = engine.session("p1", KEEPER)
    asked = request("The key!", turn_id="t1")
    with closing(sqlite3.connect(lab.folder / "engine" / "sessions.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateStoreError) as caught:
            engine.ask(asked)
        assert caught.value.retryable
        other.rollback()
    assert engine.session("p1", KEEPER) == before
    assert len(engine.transcript("p1", KEEPER)) == 1

    retried = engine.ask(asked)
    assert retried.flags["give_item"]
    assert retried.meta.version == 2


def test_stream_that_cannot_be_committed_gives_no_result(lab: Workshop) -> None:
    engine = lab.engine(model=steady(trust=0.1))
    engine.sessions.close()
    with pytest.raises(StateStoreError):
        next(engine.ask_stream(request("Good morning.")))


# --- NPC files ------------------------------------------------------------------------------------


def spoil(folder: Path, npc_id: str, place: Callable[[dict[str, Any]], None]) -> None:
    """Change the file of an NPC."""
    path = folder / f"{npc_id}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    place(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def bad_trust(data: dict[str, Any]) -> None:
    data["defaults"]["trust"] = 9


def test_broken_npc_file_at_start_keeps_the_others(lab: Workshop) -> None:
    npcs = write_npcs(lab.folder / "npcs", keeper_data(), keeper_data("smith"))
    spoil(npcs, "smith", bad_trust)
    (npcs / "noise.json").write_text("{")
    service = lab.service()
    status = service.status()
    assert (status["ready"], status["npcs"]) == (True, 1)
    faults = {fault["file"]: fault["field"] for fault in status["npc_faults"]}
    assert faults == {"noise.json": None, "smith.json": "defaults.trust"}
    assert play(service).meta.route == "main"


def test_start_without_any_sound_npc_file_says_what_is_wrong(lab: Workshop) -> None:
    write_npcs(lab.folder / "npcs", keeper_data())
    spoil(lab.folder / "npcs", KEEPER, bad_trust)
    service = lab.service()
    assert not service.status()["ready"]
    assert "keeper.json: defaults.trust" in service.status()["reason"]


def test_reload_with_a_broken_file_keeps_all_that_was_good(lab: Workshop) -> None:
    npcs = write_npcs(lab.folder / "npcs", keeper_data(), keeper_data("smith"))
    service = lab.service()
    before = service.registry
    spoil(npcs, KEEPER, bad_trust)
    spoil(npcs, "smith", lambda data: data["lore"].append("A new fact."))
    with pytest.raises(NPCFileError) as caught:
        service.reload()
    assert (caught.value.path, caught.value.field) == ("keeper.json", "defaults.trust")
    assert service.registry is before
    assert service.engine.parts.registry is before
    payload = Api(service).reload()
    assert payload["error"]["code"] == "bad_npc_file"
    assert "keeper.json" in payload["error"]["message"]
    assert play(service).meta.route == "main"


def test_reload_with_a_good_change_takes_effect_and_drops_stale_documents(lab: Workshop) -> None:
    npcs = write_npcs(lab.folder / "npcs", keeper_data(), keeper_data("smith"))
    lab.bundle(shifts=ALL_FIRE)
    service = lab.service()
    knowledge = service.engine.parts.knowledge
    assert knowledge is not None
    documents = knowledge.count()

    def silver(data: dict[str, Any]) -> None:
        rule = data["stages"]["closed"]["flags"]["give_item"]
        rule |= {"value": "silver_key", "text": "Ada hands over the silver key."}

    spoil(npcs, KEEPER, silver)
    (npcs / "smith.json").unlink()
    assert service.reload() == {"reloaded": True, "npcs": [KEEPER], "bundle_changed": False}
    (action,) = _key_actions(service, "p1")
    assert (action.value, action.text) == ("silver_key", "Ada hands over the silver key.")
    assert knowledge.count() == documents // 2
    assert "error" in Api(service).ask("Hello", "smith", "p1")


def test_reload_clears_the_faults_of_the_start(lab: Workshop) -> None:
    npcs = write_npcs(lab.folder / "npcs", keeper_data(), keeper_data("smith"))
    spoil(npcs, "smith", bad_trust)
    service = lab.service()
    spoil(npcs, "smith", lambda data: data["defaults"].update(trust=0.2))
    assert service.reload()["npcs"] == [KEEPER, "smith"]
    assert service.status()["npc_faults"] == []


# --- bundles --------------------------------------------------------------------------------------


def of_another_base(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    manifest["base"] = {"id": "some/other-base", "fingerprint": "0" * 64}
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def edit_heads(bundle: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(bundle / HEADS)
    change(tensors)
    save_file(tensors, bundle / HEADS)


def without_head(bundle: Path) -> None:
    edit_heads(bundle, lambda tensors: [tensors.pop(f"delta.{k}") for k in ("weight", "bias")])


def of_wrong_shape(bundle: Path) -> None:
    edit_heads(bundle, lambda tensors: tensors.update({"flag.weight": torch.zeros(8, 31)}))


def with_nan(bundle: Path) -> None:
    edit_heads(bundle, lambda tensors: tensors["threshold.bias"].fill_(float("nan")))


def without_heads_file(bundle: Path) -> None:
    (bundle / HEADS).unlink()


def gone(bundle: Path) -> None:
    shutil.rmtree(bundle)


DAMAGES = [
    (of_another_base, ("some/other-base", "python -m training fit")),
    (without_head, ("delta.", "lacks")),
    (of_wrong_shape, ("flag.weight", "(8, 31)", "(8, 32)")),
    (with_nan, ("threshold.bias", "NaN")),
    (without_heads_file, (HEADS,)),
    (gone, ("there is no bundle", "python -m training fit")),
]


def turn_calls(api: Api) -> dict[str, Any]:
    """Make every call that needs the engine; return the answers."""
    return {
        "ask": api.ask("Hello", KEEPER, "p1"),
        "ask_stream": list(api.ask_stream("Hello", KEEPER, "p1"))[-1],
        "predict_main": api.predict_main("<PLAYER>Hello<STATE>", KEEPER),
        "session": api.session("p1", KEEPER),
        "undo": api.undo("p1", KEEPER),
        "forget": api.forget("p1", KEEPER),
        "save": api.save("p1"),
        "load": api.load({}),
    }


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_damaged_bundle_is_not_served_until_it_is_whole_and_reloaded(
    lab: Workshop, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    damage(lab.bundle())
    service = lab.service(bundle=str(lab.folder / "bundle"))
    api = Api(service)
    status = api.status()
    assert not status["ready"]
    assert all(word in status["reason"] for word in words), status["reason"]
    for name, answer in turn_calls(api).items():
        assert answer["error"]["code"] == "not_ready", name
        assert answer["error"]["retryable"] is True
        assert words[0] in answer["error"]["message"]
    assert api.reload()["error"]["code"] == "not_ready"

    lab.bundle()
    assert api.reload()["reloaded"]
    assert api.status()["ready"]
    assert api.status()["reason"] is None
    assert api.ask("Hello", KEEPER, "p1")["meta"]["route"] == "main"


def test_failed_reload_of_a_service_that_is_not_ready_gives_the_newest_reason(
    lab: Workshop,
) -> None:
    with_nan(lab.bundle())
    service = lab.service(bundle=str(lab.folder / "bundle"))
    of_another_base(lab.bundle())
    with pytest.raises(NotReady, match="some/other-base"):
        service.reload()
    assert "some/other-base" in service.status()["reason"]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_reload_of_a_damaged_bundle_keeps_the_old_one_and_the_old_npcs(
    lab: Workshop, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    service = lab.service()
    parts = service.engine.parts
    write_npcs(lab.folder / "npcs", keeper_data("smith"))
    damage(lab.folder / "bundle")
    with pytest.raises(NotReady) as caught:
        service.reload()
    assert words[0] in caught.value.message
    assert service.engine.parts is parts
    assert "smith" not in service.registry.by_id
    assert service.status()["ready"]
    assert play(service).meta.route == "main"


def test_reload_takes_a_new_bundle(lab: Workshop) -> None:
    service = lab.service()
    old = service.engine.parts.host
    assert service.reload()["bundle_changed"] is False
    assert service.engine.parts.host is old
    lab.bundle(seed=9, threshold=0.25)
    assert service.reload()["bundle_changed"] is True
    detail = play(service).meta.flags_detail["give_item"]
    assert detail.threshold == 0.25
