from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import NotReady, WeightsError
from engine.loader import bundle_stamp, load_model
from engine.model import LanguageModel
from engine.service import VERSION, Progress
from engine.settings import Settings
from engine.weights import describe_folder
from heads.bundle import save_bundle
from tests.engines import ALL_FIRE, KEEPER, SHIPPED, Workshop, ask, load_tiny, request
from tests.fakes import WordEmbedder, save_tiny_base, tiny_bundle, tiny_model


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workshop]:
    with Workshop(tmp_path) as workshop:
        yield workshop


class HeldLoader:
    """A model loader that waits until a test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, settings: Settings, progress: Callable[[float, str], None]) -> LanguageModel:
        progress(0.5, "reading the weights")
        self.reached.set()
        assert self.go_on.wait(30)
        return load_tiny(settings, lambda _fraction, _message: None)


def failing_loader(failure: Exception) -> Callable[..., Any]:
    def load(_settings: Settings, _progress: Any) -> Any:
        raise failure

    return load


def test_service_is_there_before_its_engine(lab: Workshop) -> None:
    service = lab.service(load=False)
    status = service.status()
    assert (status["ready"], status["reason"], status["base"]) == (False, None, None)
    assert service.progress == Progress(0.0, "starting")
    with pytest.raises(NotReady, match="still starting"):
        _ = service.engine


def test_service_tells_how_far_loading_has_come(lab: Workshop) -> None:
    loader = HeldLoader()
    service = lab.service(load=False, model_loader=loader)
    thread = service.start()
    assert loader.reached.wait(30)
    assert service.progress.fraction == pytest.approx(0.47)
    assert service.progress.message == "reading the weights"
    assert service.status()["loading"] == {"fraction": 0.47, "message": "reading the weights"}
    assert len(service.registry) == 1, "NPCs can be shown before the model is there"
    with pytest.raises(NotReady, match=r"still starting \(47%"):
        _ = service.engine
    loader.go_on.set()
    thread.join(30)
    assert not thread.is_alive()
    assert service.progress == Progress(1.0, "ready")
    assert service.status()["ready"]
    assert ask(service.engine, "Good morning.").meta.route == "main"


def test_status_says_what_serves(lab: Workshop) -> None:
    lab.bundle(languages=("en", "ko"))
    status = lab.service().status()
    assert (status["ready"], status["reason"]) == (True, None)
    assert (status["base"], status["bundle"]) == ("tiny-random", "tiny")
    assert status["languages"] == ["en", "ko"]
    assert (status["device"], status["precision"]) == ("cpu", "fp32")
    assert (status["npcs"], status["npc_faults"]) == (1, [])
    assert status["knowledge"] == {"ok": True, "reason": None}
    assert status["versions"]["persona-chat-engine"] == VERSION
    assert status["versions"]["torch"]


def test_shipped_npcs_are_all_there(lab: Workshop) -> None:
    service = lab.service(npc_dir=SHIPPED)
    names = {path.name.partition(".")[0] for path in SHIPPED.glob("*.json")}
    assert {npc["npc_id"] for npc in service.npcs()} == names
    assert service.status()["npc_faults"] == []


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (WeightsError("the package index cannot be reached", field="BASE_MODEL"), "package index"),
        (NotReady("DEVICE=cuda, but there is no CUDA device"), "no CUDA device"),
        (ValueError("numbers all wrong"), "ValueError: numbers all wrong"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_start_that_fails_is_the_reason_for_not_being_ready(
    lab: Workshop, failure: Exception, words: str
) -> None:
    service = lab.service(model_loader=failing_loader(failure))
    status = service.status()
    assert not status["ready"]
    assert words in status["reason"]
    with pytest.raises(NotReady) as caught:
        _ = service.engine
    assert words in caught.value.message
    assert caught.value.field == getattr(failure, "field", None)


def test_embedder_that_cannot_be_had_is_a_reason_too(lab: Workshop) -> None:
    def no_embedder(_settings: Settings) -> Any:
        raise WeightsError("the embedder's package is not installed")

    status = lab.service(embedder_loader=no_embedder).status()
    assert (status["ready"], status["reason"]) == (
        False,
        "the embedder's package is not installed",
    )


def test_data_folder_that_cannot_be_made_is_a_reason_too(lab: Workshop) -> None:
    (lab.folder / "file").write_text("")
    status = lab.service(data_dir=lab.folder / "file" / "data").status()
    assert not status["ready"]
    assert status["reason"]


def test_start_can_be_tried_again(lab: Workshop) -> None:
    failures = [WeightsError("no network")]

    def loader(settings: Settings, progress: Any) -> LanguageModel:
        if failures:
            raise failures.pop()
        return load_tiny(settings, progress)

    service = lab.service(model_loader=loader)
    assert not service.status()["ready"]
    service.load()
    assert service.status()["ready"]
    assert service.status()["reason"] is None
    assert ask(service.engine, "Good morning.").meta.route == "main"


def test_state_outlives_the_program(lab: Workshop) -> None:
    lab.bundle(shifts=ALL_FIRE)
    first = lab.service()
    ask(first.engine, "Please open the door.")
    before = first.engine.session("p1", KEEPER)
    first.close()
    assert before["quest_stage"] == "open"
    assert lab.service().engine.session("p1", KEEPER) == before


def test_turn_under_way_keeps_its_parts_over_a_reload(lab: Workshop) -> None:
    service = lab.service()
    engine = service.engine
    stream = engine.ask_stream(request("Good morning."))
    next(stream)
    lab.bundle(seed=5)
    service.reload()
    assert service.engine is engine
    assert [event.kind for event in stream][-1] == "result"


def test_closed_service_says_so(lab: Workshop) -> None:
    service = lab.service()
    service.close()
    assert not service.status()["ready"]
    with pytest.raises(NotReady, match="closed"):
        _ = service.engine


# --- the real loader ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that BASE_MODEL can name."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-base"
    save_tiny_base(folder)
    return folder


def bundle_for(base: Path, folder: Path, **bundle_args: Any) -> Path:
    """Write a bundle that names `base` as the one it was made for."""
    files = describe_folder(base)
    bundle = tiny_bundle(*tiny_model("qwen2"), **bundle_args)
    info = replace(bundle.info, base_id=files.id, base_fingerprint=files.fingerprint)
    save_bundle(replace(bundle, info=info), folder)
    return folder


def test_base_folder_with_a_bundle_made_for_it_serves(lab: Workshop, base: Path) -> None:
    bundle = bundle_for(base, lab.folder / "mine", shifts=ALL_FIRE)
    seen: list[tuple[float, str]] = []

    def loader(settings: Settings, progress: Callable[[float, str], None]) -> LanguageModel:
        def both(fraction: float, message: str) -> None:
            seen.append((fraction, message))
            progress(fraction, message)

        return load_model(settings, both)

    service = lab.service(base_model=str(base), bundle=str(bundle), model_loader=loader)
    assert service.status()["reason"] is None
    assert service.status()["base"] == "tiny-base"
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    assert seen[-1] == (1.0, "ready")
    result = ask(service.engine, "Please open the door.")
    assert (result.meta.route, result.flags["quest_stage_change"]) == ("main", True)
    assert result.meta.model.base == "tiny-base"
    assert service.reload()["bundle_changed"] is False


def test_base_without_a_bundle_is_not_ready_and_names_the_training_command(
    lab: Workshop, base: Path
) -> None:
    service = lab.service(base_model=str(base), bundle="", model_loader=load_model)
    reason = service.status()["reason"]
    assert f"python -m training fit --base {base}" in reason
    assert "BUNDLE" in reason


def test_bundle_of_another_base_is_not_served_with_this_one(lab: Workshop, base: Path) -> None:
    service = lab.service(
        base_model=str(base), bundle=str(lab.bundle("other")), model_loader=load_model
    )
    reason = service.status()["reason"]
    assert "made for another base" in reason
    assert "python -m training fit --base tiny-base" in reason


def test_base_that_was_changed_no_longer_fits_its_bundle(lab: Workshop, tmp_path: Path) -> None:
    changed = tmp_path / "changed-base"
    save_tiny_base(changed)
    bundle = bundle_for(changed, lab.folder / "mine")
    save_tiny_base(changed, kind="llama")
    service = lab.service(base_model=str(changed), bundle=str(bundle), model_loader=load_model)
    assert "made for another base" in service.status()["reason"]


def test_base_that_is_not_there_is_named(lab: Workshop) -> None:
    nowhere = str(lab.folder / "nowhere")
    service = lab.service(base_model=nowhere, bundle=str(lab.bundle()), model_loader=load_model)
    assert nowhere in service.status()["reason"]


def test_stamp_changes_with_the_files_of_a_bundle(lab: Workshop) -> None:
    bundle = lab.bundle()
    stamp = bundle_stamp(str(bundle))
    assert bundle_stamp(str(bundle)) == stamp
    (bundle / "README.md").write_text("# another card\n")
    assert bundle_stamp(str(bundle)) != stamp


class OtherEmbedder(WordEmbedder):
    """Another embedder, as EMBEDDER may name one."""

    id = "another"


@pytest.mark.parametrize("hearing", ["listens", "hears_words"])
def test_heads_that_listen_hear_the_utterance(lab: Workshop, hearing: str) -> None:
    lab.bundle(acts=("lie", "help"), **{hearing: True})
    service = lab.service()
    result = ask(service.engine, "Good morning.")
    assert result.meta.route == "main"
    assert set(result.meta.acts) <= {"lie", "help"}
    assert sum(result.meta.acts.values()) == pytest.approx(1.0, abs=0.1)
    assert service.engine.parts.listener is not None


def test_heads_keep_their_embedder_where_another_serves_the_rest(lab: Workshop) -> None:
    lab.bundle(listens=True)

    def embedders(settings: Settings) -> WordEmbedder:
        return OtherEmbedder() if settings.embedder else WordEmbedder()

    service = lab.service(embedder="another", embedder_loader=embedders)
    parts = service.engine.parts
    assert parts.embedder.id == "another"
    assert parts.listener is not None
    assert parts.listener.id == WordEmbedder.id
    assert ask(service.engine, "Good morning.").meta.route == "main"


def test_a_bundle_of_an_embedder_that_is_not_there_does_not_serve(lab: Workshop) -> None:
    lab.bundle(listens=True)
    service = lab.service(embedder_loader=lambda _settings: OtherEmbedder())
    assert not service.status()["ready"]
    assert "set EMBEDDER to the one it was made with" in service.status()["reason"]
