"""`python -m training fit`: a bundle from rows, by fitting the heads on a frozen base.

    rows → prompts → features at <STATE> → layer, heads, calibration, thresholds → bundle

The base is not changed: no adapter comes out. Everything is chosen on the training and validation
parts; the test part is only reported.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.prompt import EncodedPrompt
from engine.schema import FLAGS
from heads.bundle import Bundle, BundleInfo
from heads.spec import FINAL_NORM, HeadSpec
from training import metrics
from training.bad_faith import with_bad_faith
from training.baselines import Scores
from training.card import render_card
from training.corpus import Corpus
from training.cut import choose_cut
from training.features import Reader, encode_rows, state_features
from training.fit_heads import (
    Linear,
    apply_platt,
    build_heads,
    calibrate,
    fit_delta,
    fit_flags,
    steady_thresholds,
)
from training.oracle import Labels
from training.refit import WORTH, Refit, Trained, join, refit
from training.report import Method, report
from training.rows import Row
from training.rubric import ACTS
from training.split import Split

logger = logging.getLogger(__name__)

_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03)


@dataclass(frozen=True)
class FitArgs:
    """What `fit` was asked for; kept in the bundle.

    `layer` 0 lets validation choose among layers at every depth, `FINAL_NORM` (-1) asks for the
    final norm. `meaning` lets the heads read the utterance's sentence vector beside the hidden state.
    """

    seed: int = 7
    layer: int = 0
    meaning: bool = True
    name: str = "frozen-heads"


@dataclass(frozen=True)
class Fitted:
    """Heads' maps with the choices that led to them."""

    layer: int
    flags: Linear
    delta: Linear
    strength: float
    only_permitted: bool
    score: float


def fit_bundle(
    corpus: Corpus,
    reader: Reader,
    args: FitArgs,
    *,
    base_id: str,
    base_fingerprint: str,
    languages: tuple[str, ...],
    features: np.ndarray | None = None,
) -> Bundle:
    """Fit heads on a corpus and return the bundle.

    Args:
        corpus: labelled turns, divided.
        reader: the frozen base.
        args: seed, layer, name.
        base_id: of the base, for the bundle.
        base_fingerprint: of the base's files, which serving holds against it.
        languages: those that the base can write.
        features: as `state_features` gives them for these rows, where they are known already.
    """
    if features is None:
        features = state_features(reader, corpus_prompts(corpus, reader, languages))
    labels, split = corpus.labels, corpus.split
    fitted = _choose(features, labels, split, args)
    logger.info("layer %s, strength %s, score %.3f", fitted.layer, fitted.strength, fitted.score)
    vectors_BH = layer_features(features, fitted.layer)
    spec = HeadSpec(FLAGS, features.shape[-1], fitted.layer)
    chosen = Refit(fitted.flags, fitted.delta, acts=False, figures={})
    if args.meaning:
        chosen = refit(corpus, vectors_BH, Trained(fitted.flags, fitted.delta))
        hidden, vectors_BH = vectors_BH.shape[1], join(vectors_BH, corpus.heard)
        spec = replace(
            spec,
            meaning_size=vectors_BH.shape[1] - hidden,
            acts=tuple(ACTS) if chosen.acts else (),
            claims=chosen.claims is not None,
        )
    logits_BN = chosen.flags(vectors_BH)
    act_BA = chosen.act_probabilities(vectors_BH, labels.evidence_BE)
    cut = choose_cut(corpus, chosen, logits_BN, act_BA)
    probability_BN = apply_platt(logits_BN, cut.platts)
    cut_BN = with_bad_faith(cut.bad_faith, act_BA, np.array(cut.thresholds))
    heads = Method(Scores(probability_BN, chosen.deltas(vectors_BH, labels.evidence_BE)), cut_BN)
    figures = report(corpus, languages, heads)
    if chosen.figures:
        figures["refit"] = chosen.figures
    info = BundleInfo(
        name=args.name,
        spec=spec,
        bad_faith=cut.bad_faith,
        embedder_id=corpus.listener_id if spec.meaning_size else "",
        base_id=base_id,
        base_fingerprint=base_fingerprint,
        languages=languages,
        markers=reader.markers,
        calibration=dict(zip(FLAGS, cut.platts, strict=True)),
        threshold_source="constant",
        thresholds=dict(zip(FLAGS, cut.thresholds, strict=True)),
        metrics=figures,
        training={
            "command": "python -m training fit",
            **asdict(args),
            "strength": fitted.strength,
            "only_permitted": fitted.only_permitted,
            "rows": {name: len(part) for name, part in asdict(split).items()},
            "data_sha256": data_digest(corpus.rows),
        },
    )
    return Bundle(
        info=info,
        heads=build_heads(
            spec,
            chosen.delta,
            chosen.flags,
            cut.thresholds,
            WORTH if chosen.acts else None,
            chosen.place_A2,
            chosen.claims,
        ),
        marker_rows_MH=reader.marker_rows_MH,
        card=render_card(info),
    )


def frozen_method(corpus: Corpus, features: np.ndarray, args: FitArgs) -> Method:
    """Return what heads fitted on frozen features alone say of every row.

    Args:
        corpus: labelled turns, divided.
        features: as `state_features` gives them for these rows.
        args: seed, layer.
    """
    fitted = _choose(features, corpus.labels, corpus.split, args)
    vectors_BH = layer_features(features, fitted.layer)
    _, thresholds, probability_BN = _calibrated(
        fitted.flags, vectors_BH, corpus.labels, corpus.split
    )
    return Method(Scores(probability_BN, np.tanh(fitted.delta(vectors_BH))), np.array(thresholds))


def corpus_prompts(corpus: Corpus, reader: Reader, languages: Sequence[str]) -> list[EncodedPrompt]:
    """Encode the prompt of every row of a corpus."""
    permitted = [one.permitted for one in corpus.judged]
    return encode_rows(reader, corpus.rows, corpus.registry, languages, permitted)


def layer_features(features: np.ndarray, layer: int) -> np.ndarray:
    """Return the features of one layer (from 1; -1: the final norm), shape (B, H)."""
    vectors: np.ndarray = features[:, -1 if layer == FINAL_NORM else layer - 1]
    return vectors


def _choose(features: np.ndarray, labels: Labels, split: Split, args: FitArgs) -> Fitted:
    """Choose layer, strength and training rows by what the whole decision reaches on `valid`."""
    train, valid = list(split.train), list(split.valid)
    depth = features.shape[1] - 1
    # Neighbouring layers read alike: eight of them and the last are enough to choose among.
    some = [*range(depth, 0, -max(1, depth // 8)), FINAL_NORM]
    layers = [args.layer] if args.layer else some
    best: Fitted | None = None
    for layer in layers:
        vectors_BH = layer_features(features, layer)
        for only_permitted in (True, False):
            use_BN = labels.permitted_BN | ~np.bool_(only_permitted)
            for strength in _STRENGTHS:
                flags = fit_flags(
                    vectors_BH[train], labels.truth_BN[train], use_BN[train], strength
                )
                delta = fit_delta(vectors_BH[train], labels.delta_B2[train], strength)
                score = heads_worth(
                    flags(vectors_BH[valid]), np.tanh(delta(vectors_BH[valid])), labels, valid
                )
                if best is None or score > best.score:
                    best = Fitted(layer, flags, delta, strength, only_permitted, score)
        logger.info("layer %s done, best so far %.3f", layer, best.score if best else 0.0)
    if best is None:
        raise ValueError("no layer to choose from")
    return best


def heads_worth(
    logits_BN: np.ndarray, delta_B2: np.ndarray, labels: Labels, part: Sequence[int]
) -> float:
    """Return what a pair of heads is worth: ranking among permitted flags, and of deltas."""
    gated_BN = np.where(labels.permitted_BN[list(part)], logits_BN, -1e3)
    ranking = metrics.macro_auprc(labels.truth_BN[list(part)], gated_BN)
    return (
        ranking
        + 0.5 * metrics.delta_figures(labels.delta_B2[list(part)], delta_B2)["delta_spearman"]
    )


def _calibrated(
    flags: Linear, vectors_BH: np.ndarray, labels: Labels, split: Split
) -> tuple[list[Any], list[float], np.ndarray]:
    """Calibrate and threshold on `valid`, among the flags that the gate leaves to the heads."""
    valid = list(split.valid)
    logits_BN = flags(vectors_BH)
    use_BN = labels.permitted_BN[valid]
    platts = calibrate(logits_BN[valid], labels.truth_BN[valid], use_BN)
    probability_BN = apply_platt(logits_BN, platts)
    thresholds = steady_thresholds(probability_BN[valid], labels.truth_BN[valid], use_BN)
    return platts, thresholds, probability_BN


def data_digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of all rows' content, in their order."""
    text = "\n".join(json.dumps(row.model_dump(mode="json"), sort_keys=True) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def default_out() -> Path:
    """Return where the shipped bundle lies."""
    return Path(__file__).resolve().parent.parent / "heads" / "pretrained"
