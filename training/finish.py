"""From an adapter to a bundle: rows read, heads fitted, calibrated, cut and measured.

rows ─→ states, kept in the run's folder ─→ maps ─→ calibration ─→ thresholds ─→ figures, card
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from engine.schema import FLAGS
from heads.bundle import BadFaith, Bundle, BundleInfo, Platt
from training.args import Base, TrainArgs
from training.bad_faith import with_bad_faith
from training.baselines import Scores
from training.card import render_card
from training.corpus import Corpus
from training.cut import choose_cut
from training.dataset import Example
from training.fit import data_digest
from training.fit_heads import (
    Linear,
    apply_platt,
    build_heads,
    set_threshold_head,
)
from training.losses import DELTA_UNIT
from training.metrics import f1_scores
from training.model import MultiHeadModel
from training.reading import read_examples
from training.record import merged
from training.refit import WORTH, Refit, Trained, join, refit
from training.report import PARTS, Method, part_figures, report
from training.rubric import ACTS
from training.scaled import ScaledHeads
from training.spread import spread
from training.states import StateStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Fitted:
    """Heads as they are served, and what they say of all rows.

    `cut_BN` are the thresholds of every row: above 1 where the player seems to deceive.
    """

    chosen: Refit
    platts: list[Platt]
    thresholds: list[float]
    source: str
    bad_faith: BadFaith | None
    method: Method
    on_valid: dict[str, Any]


def make_bundle(
    model: MultiHeadModel,
    examples: Sequence[Example],
    corpus: Corpus,
    base: Base,
    args: TrainArgs,
    run: Path,
    *,
    steps: int,
    held: Mapping[str, Any] | None = None,
    watched: Mapping[str, Any] | None = None,
    start: Bundle | None = None,
    before: Linear | None = None,
) -> Bundle:
    """Fit, calibrate, choose thresholds, measure, and put the bundle together.

    Args:
        model: adapter and marker rows as they ship, and heads that were trained along.
        examples: of the corpus's rows, in their order.
        corpus: labelled turns, divided.
        base: what the adapter belongs to.
        args: what the run was asked for.
        run: folder that keeps states and adapter.
        steps: of training that the adapter has behind it in this run.
        held: figures of before that still hold, for the report.
        watched: figures on `valid` by step, for the report.
        start: bundle that the adapter was taken from as it is; the model's heads are then nobody's,
            and are no candidates.
        before: flag head that served so far, which is one.
    """
    adapter = run / "adapter"
    model.save_adapter(adapter)
    store = StateStore(run / "states.npz", f"{base.fingerprint}/{args.layer}/{_digest(model)}")
    model.merge()  # as it is served: what is calibrated must be what is read there
    state_BH = store.read(examples, lambda part: read_examples(model, part, args).state_BH)
    trained, threshold = (None, None) if start else _trained(model.heads)
    fitted = _fit(corpus, state_BH, trained, threshold, before)
    figures = merged(held or {}, report(corpus, base.languages, fitted.method))
    figures |= fitted.on_valid
    figures["valid_by_step"] = dict(watched or {})
    if args.draws:
        figures["spread"] = _spread(corpus, state_BH, trained, threshold, args)
    chosen = fitted.chosen
    spec = replace(
        model.spec,
        meaning_size=chosen.flags.weight_NH.shape[1] - state_BH.shape[1],
        acts=tuple(ACTS) if chosen.acts else (),
        claims=chosen.claims is not None,
    )
    heads = build_heads(
        spec,
        chosen.delta,
        chosen.flags,
        fitted.thresholds,
        WORTH if chosen.acts else None,
        chosen.place_A2,
        chosen.claims,
    )
    if fitted.source == "head" and threshold:
        set_threshold_head(heads, threshold)
    info = BundleInfo(
        name=args.name,
        spec=spec,
        embedder_id=corpus.listener_id,
        bad_faith=fitted.bad_faith,
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        languages=base.languages,
        markers=model.markers,
        calibration=dict(zip(FLAGS, fitted.platts, strict=True)),
        threshold_source=fitted.source,
        thresholds=dict(zip(FLAGS, fitted.thresholds, strict=True)),
        metrics=figures,
        training=_told(args, steps, corpus, start),
    )
    return Bundle(
        info=info,
        heads=heads,
        marker_rows_MH=model.marker_rows(),
        adapter=adapter,
        card=render_card(info, adapter=True),
    )


def _fit(
    corpus: Corpus,
    state_BH: np.ndarray,
    trained: Trained | None,
    threshold: Linear | None,
    before: Linear | None = None,
) -> _Fitted:
    """Fit heads on the training part; choose, calibrate and cut by rows that they never saw."""
    chosen = refit(corpus, state_BH, trained, before)
    joined_BW = join(state_BH, corpus.heard)
    valid, labels = list(corpus.split.valid), corpus.labels
    logits_BN, delta_B2 = chosen.flags(joined_BW), chosen.deltas(joined_BW, labels.evidence_BE)
    act_BA = chosen.act_probabilities(joined_BW, labels.evidence_BE)
    cut = choose_cut(corpus, chosen, logits_BN, act_BA)
    probability_BN = apply_platt(logits_BN, cut.platts)
    by_source = {"constant": np.broadcast_to(np.array(cut.thresholds), logits_BN.shape)}
    if threshold:
        by_source["head"] = expit(threshold(state_BH))
    on_valid = {
        name: f1_scores(
            labels.truth_BN[valid],
            (probability_BN[valid] >= cut_BN[valid]) & labels.permitted_BN[valid],
        )
        for name, cut_BN in by_source.items()
    }
    source = max(on_valid, key=lambda name: on_valid[name]["flag_macro_f1"])
    cut_BN = with_bad_faith(cut.bad_faith, act_BA, by_source[source])
    return _Fitted(
        chosen,
        cut.platts,
        cut.thresholds,
        source,
        cut.bad_faith,
        Method(Scores(probability_BN, delta_B2), cut_BN),
        {
            "thresholds_on_valid": on_valid,
            "refit": chosen.figures,
            "bad_faith": cut.by_limit,
        },
    )


def _spread(
    corpus: Corpus,
    state_BH: np.ndarray,
    trained: Trained | None,
    threshold: Linear | None,
    args: TrainArgs,
) -> dict[str, Any]:
    """Fit the heads on so many draws, with replacement, of the training rows; return the spread.

    The division stays: under another one, rows that the adapter has seen would stand in `test`. A draw
    holds 63 % of the rows. A flag head of before, which knows all of them, is left out. Source: Efron,
    "Bootstrap methods", 1979.
    """
    parts = [part for part in PARTS if getattr(corpus.split, part)]
    figures, train = [], np.array(corpus.split.train)
    for draw in range(args.draws):
        some = np.random.default_rng((args.seed, draw)).choice(train, len(train))
        split = replace(corpus.split, train=tuple(int(index) for index in np.sort(some)))
        one = replace(corpus, split=split)
        method = _fit(one, state_BH, trained, threshold).method
        figures.append({part: part_figures(one, part, method) for part in parts})
        told = [f"{part} {figures[-1][part]['flag_macro_f1']:.3f}" for part in parts]
        logger.info("draw %d of %d: macro-F1 on %s", draw + 1, args.draws, ", ".join(told))
    return {"draws": args.draws, **{part: spread(figures, part) for part in parts}}


def _told(args: TrainArgs, steps: int, corpus: Corpus, start: Bundle | None) -> dict[str, Any]:
    """Return what the bundle says of its making; what is taken over brings its own story along."""
    of_rows = {
        "rows": {name: len(part) for name, part in asdict(corpus.split).items()},
        "data_sha256": data_digest(corpus.rows),
    }
    if start is None:
        return {"command": "python -m training train", **asdict(args), "steps": steps, **of_rows}
    story = start.info.training
    return {
        "command": "python -m training train --refit",
        "seed": args.seed,
        "layer": args.layer,
        "name": args.name,
        "start": args.start,
        **of_rows,
        "adapter": dict(story.get("adapter", story)),
    }


def _trained(heads: ScaledHeads) -> tuple[Trained, Linear]:
    """Return the trained heads as maps on hidden states, and the threshold head's logits."""

    def plain(head: torch.nn.Linear, unit: float = 1.0) -> Linear:
        weight_NH, bias_N = heads.plain(head, unit)
        return Linear(weight_NH.numpy(), bias_N.numpy())

    trained = Trained(plain(heads.flag), plain(heads.delta, DELTA_UNIT), plain(heads.act))
    return trained, plain(heads.threshold)


def _digest(model: MultiHeadModel) -> str:
    """Return what tells adapter and marker rows from others'; the heads have no part in states."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.trained_state().items()):
        if not name.startswith("heads."):
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
