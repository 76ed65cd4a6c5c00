"""Fitting a first bundle: splits, maps, calibration, figures, and that the result serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.listen import Listener
from engine.model import LanguageModel
from engine.npc import NPCRegistry
from engine.prompt import STATE
from engine.schema import FLAGS
from heads.bundle import Bundle, load_bundle, save_bundle
from tests.fakes import BASE_ID, FINGERPRINT, WordEmbedder, tiny_model
from training import metrics
from training.__main__ import main
from training.corpus import Corpus, make_corpus
from training.features import FeatureStore, encode_rows, make_reader, state_features
from training.fit import FitArgs, data_digest, default_out, fit_bundle
from training.fit_heads import (
    apply_platt,
    build_heads,
    calibrate,
    choose_thresholds,
    fit_delta,
    fit_flags,
)
from training.items import read_words
from training.oracle import training_registry
from training.prompts import row_parts
from training.rows import Row, read_rows
from training.split import UNSEEN, split_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def registry() -> NPCRegistry:
    return training_registry(ROOT / "npc_configs")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows()


@pytest.fixture(scope="module")
def few(rows: list[Row], registry: NPCRegistry) -> Corpus:
    """Return the first rows of six NPCs, one of them unseen: enough to fit on, and quickly."""
    known = sorted({row.npc_id for row in rows} - set(UNSEEN))[:5]
    npcs = {*known, sorted(UNSEEN)[0]}
    chosen = [row for row in rows if row.npc_id in npcs and row.part is None]
    return make_corpus(chosen, registry, read_words(), WordEmbedder(), seed=1)


def vectors_of(rows: list[Row]) -> np.ndarray:
    return WordEmbedder().encode([row.player_utterance for row in rows])


def test_no_case_stands_in_two_parts_and_no_row_is_lost(rows: list[Row]) -> None:
    vectors = vectors_of(rows)
    split = split_rows(rows, vectors, seed=3)
    parts = [split.train, split.valid, split.test, split.unseen]
    every = sorted(index for part in (*parts, split.left_out) for index in part)
    assert every == list(range(len(rows)))
    groups = [
        {(rows[index].npc_id, rows[index].group) for index in part if rows[index].group}
        for part in parts
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for first, part in enumerate(parts):
        for other in parts[first + 1 :]:
            assert (vectors[list(part)] @ vectors[list(other)].T).max() <= 0.95


def test_unseen_npcs_stand_nowhere_else(rows: list[Row]) -> None:
    split = split_rows(rows, vectors_of(rows), seed=3)
    assert {rows[index].npc_id for index in split.unseen} == set(UNSEEN)
    known = {
        rows[index].npc_id for part in (split.train, split.valid, split.test) for index in part
    }
    assert not known & set(UNSEEN)


def test_every_part_of_the_split_has_every_npc_and_both_languages(rows: list[Row]) -> None:
    split = split_rows(rows, vectors_of(rows), seed=7)
    for part in (split.train, split.valid, split.test):
        assert {rows[index].npc_id for index in part} == {r.npc_id for r in rows} - set(UNSEEN)
        assert {rows[index].lang for index in part} == {"en", "ko"}


def test_the_same_seed_gives_the_same_split(rows: list[Row]) -> None:
    vectors = vectors_of(rows)
    assert split_rows(rows, vectors, seed=5) == split_rows(rows, vectors, seed=5)
    assert split_rows(rows, vectors, seed=5) != split_rows(rows, vectors, seed=6)


def test_late_rows_are_fitted_on_alone_and_leave_the_others_in_their_parts(rows: list[Row]) -> None:
    early = [row for row in rows if row.part is None and row.npc_id not in UNSEEN][:400]
    before = split_rows(early, vectors_of(early), seed=7)
    tested = early[before.test[0]]
    late = [
        tested.model_copy(update={"part": "train", "group": None}),  # says what `test` says
        tested.model_copy(update={"part": "train", "player_utterance": "Zinc gulls wobble oddly."}),
        tested.model_copy(
            update={"part": "train", "group": None, "player_utterance": "Quartz moths hum softly."}
        ),
    ]
    both = [*early, *late]
    after = split_rows(both, vectors_of(both), seed=7)
    assert (after.valid, after.test, after.unseen) == (before.valid, before.test, before.unseen)
    added = set(after.train) - set(before.train)
    assert len(early) + 2 in added
    assert len(early) not in added
    assert (len(early) + 1 in added) == (tested.group is None)


def test_another_npc_leaves_the_others_rows_in_their_parts(rows: list[Row]) -> None:
    smith = [row for row in rows if row.npc_id == "blacksmith_village_center"]
    hermit = [row for row in rows if row.npc_id == "forest_hermit"]
    alone = split_rows(smith, vectors_of(smith), seed=5)
    both = split_rows(smith + hermit, vectors_of(smith + hermit), seed=5)
    assert set(alone.test) == {index for index in both.test if index < len(smith)}


def test_rows_are_rendered_in_the_variant_the_base_can_write(
    rows: list[Row], registry: NPCRegistry
) -> None:
    korean = next(r for r in rows if r.lang == "ko" and r.npc_id == "mother_abandoned_factory")
    assert "Silvia" in row_parts(korean, registry, ("en",), ()).sys
    assert "실비아" in row_parts(korean, registry, ("en", "ko"), ()).sys


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_features_with_a_shared_prefix_equal_those_of_serving(kind: str, few: Corpus) -> None:
    model, tokenizer = tiny_model(kind)
    reader = make_reader(model, tokenizer, max_tokens=8000)
    chosen = [few.rows[0], few.rows[1], few.rows[-1]]
    permitted = [("give_item",), (), ("give_hint",)]
    prompts = encode_rows(reader, chosen, few.registry, ("en",), permitted)
    features = state_features(reader, prompts)
    bundle = fit_tiny(few, kind)
    served = LanguageModel(
        *tiny_model(kind),
        bundle,
        base_id=BASE_ID,
        base_fingerprint=FINGERPRINT,
        max_prompt_tokens=8000,
    )
    said = [row.player_utterance for row in chosen]
    heard = Listener(WordEmbedder()).encode(said).tolist()
    for prompt, row_features, meaning in zip(prompts, features, heard, strict=True):
        assert prompt.ids.count(bundle.info.markers[STATE]) == 1
        layer = bundle.info.spec.layer
        expected = row_features[-1 if layer == -1 else layer - 1]
        assert np.abs(served.prefill(prompt.ids, meaning).hidden_H.numpy() - expected).max() < 1e-4


def fit_tiny(corpus: Corpus, kind: str = "qwen2") -> Bundle:
    model, tokenizer = tiny_model(kind)
    reader = make_reader(model, tokenizer, max_tokens=8000)
    random = np.random.default_rng(0)
    features = random.normal(size=(len(corpus.rows), 4, 32)).astype(np.float32)
    return fit_bundle(
        corpus,
        reader,
        FitArgs(seed=1, layer=2, name="tiny"),
        base_id=BASE_ID,
        base_fingerprint=FINGERPRINT,
        languages=("en",),
        features=features,
    )


@pytest.fixture(scope="module")
def fitted(few: Corpus) -> Bundle:
    return fit_tiny(few)


def test_a_fitted_bundle_saves_loads_and_says_what_made_it(
    tmp_path: Path, few: Corpus, fitted: Bundle
) -> None:
    save_bundle(fitted, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.info.spec.flags == FLAGS
    assert loaded.info.training["data_sha256"] == data_digest(few.rows)
    assert loaded.info.training["seed"] == 1
    measured = loaded.info.metrics
    baselines = measured["baselines"]
    assert set(baselines) == {
        "majority",
        "tfidf_utterance",
        "tfidf_prompt",
        "always_propose",
        "meaning",
    }
    for part in ("test", "unseen"):
        for one in (measured[part], *(baseline[part] for baseline in baselines.values())):
            assert 0.0 <= one["flag_macro_f1"] <= 1.0
            assert one["rows"] == len(getattr(few.split, part))
    assert "## Limits" in loaded.card


def test_fitting_twice_gives_the_same_heads(few: Corpus, fitted: Bundle) -> None:
    first, second = fitted, fit_tiny(few)
    for name, tensor in first.heads.state_dict().items():
        assert np.array_equal(tensor.numpy(), second.heads.state_dict()[name].numpy())
    assert first.info == second.info


def test_labels_never_grant_what_the_gate_refuses(few: Corpus) -> None:
    assert few.labels.truth_BN.any()
    assert not (few.labels.truth_BN & ~few.labels.permitted_BN).any()


def test_features_are_read_once_and_kept(tmp_path: Path, few: Corpus) -> None:
    reader = make_reader(*tiny_model("qwen2"), max_tokens=8000)
    prompts = encode_rows(reader, few.rows[:3], few.registry, ("en",), [()] * 3)
    path = tmp_path / "features.npz"
    first = FeatureStore(path, "base").read(reader, prompts[:2])
    assert np.abs(first - state_features(reader, prompts[:2])).max() < 1e-2  # kept in halves
    again = FeatureStore(path, "base")
    assert np.array_equal(again.read(None, prompts[:2]), first)  # type: ignore[arg-type]
    assert again.read(reader, prompts).shape[0] == 3
    assert FeatureStore(path, "another base").read(reader, prompts[:1]).shape[0] == 1


def test_linear_heads_learn_what_can_be_learned() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(400, 6))
    truth = np.stack([features[:, 0] > 0.5, features[:, 1] < -0.2, np.zeros(400, bool)], axis=1)
    everywhere = np.ones_like(truth)
    flags = fit_flags(features[:300], truth[:300], everywhere[:300], strength=1.0)
    platts = calibrate(flags(features[200:300]), truth[200:300], everywhere[200:300])
    probability = apply_platt(flags(features), platts)
    thresholds = choose_thresholds(probability[200:300], truth[200:300], everywhere[200:300])
    fired = probability[300:] >= thresholds
    assert metrics.f1_scores(truth[300:], fired)["flag_macro_f1"] > 0.9
    assert not fired[:, 2].any()  # a flag without a positive stays off
    delta = fit_delta(features[:300], 0.1 * np.tanh(features[:300, :2]), strength=1.0)
    figures = metrics.delta_figures(
        0.1 * np.tanh(features[300:, :2]), np.tanh(delta(features[300:]))
    )
    assert figures["delta_spearman"] > 0.9


def test_heads_in_torch_read_what_was_fitted_in_numpy() -> None:
    import torch

    from heads.spec import HeadSpec

    random = np.random.default_rng(2)
    features = random.normal(size=(50, 5)).astype(np.float32)
    truth = random.random((50, 2)) > 0.5
    flags = fit_flags(features, truth, np.ones_like(truth), strength=0.1)
    delta = fit_delta(features, 0.1 * random.normal(size=(50, 2)), strength=0.1)
    heads = build_heads(HeadSpec(("a", "b"), 5), delta, flags, [0.3, 0.7])
    outputs = heads(torch.from_numpy(features))
    assert np.abs(outputs.flag_logits_BN.detach().numpy() - flags(features)).max() < 1e-4
    assert np.abs(outputs.delta_B2.detach().numpy() - np.tanh(delta(features))).max() < 1e-5
    assert np.allclose(outputs.threshold_BN.detach().numpy(), [0.3, 0.7], atol=1e-5)


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_probabilities() -> None:
    truth = np.array([True] * 30 + [False] * 70)
    assert metrics.expected_calibration_error(truth, np.full(100, 0.3)) < 1e-6
    assert metrics.expected_calibration_error(truth, np.full(100, 0.99)) > 0.6


def test_a_bad_row_ends_the_command_with_file_line_and_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"npc_id": "x"}\n', encoding="utf-8")
    assert main(["fit", "--data", str(bad), "--out", str(tmp_path / "out")]) == 1
    assert "bad.jsonl:1" in caplog.text
    assert not (tmp_path / "out").exists()


def test_the_shipped_bundle_was_made_from_the_shipped_rows() -> None:
    info = load_bundle(default_out()).info
    assert info.training["data_sha256"] == data_digest(read_rows())
    assert info.spec.flags == FLAGS
    assert set(info.metrics["test"]["by_language"]) == {"en", "ko"}


@pytest.mark.real
def test_the_shipped_bundle_is_for_the_embedded_base(real_base) -> None:
    info = load_bundle(default_out()).info
    assert info.base_fingerprint == real_base.fingerprint
    assert info.base_id == real_base.id
