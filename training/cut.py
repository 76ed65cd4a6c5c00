"""From logits to decisions: calibration, thresholds and the limit of bad faith.

All are chosen by rows that the maps were not fitted on: by `valid`, and the limit also by what maps
that never saw them say of the training rows, which are twenty times as many, where there are such.
Knows nothing of models, files or bundles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from heads.bundle import BadFaith, Platt
from training.bad_faith import choose_bad_faith
from training.corpus import Corpus
from training.fit_heads import apply_platt, calibrate, steady_thresholds
from training.refit import Refit


@dataclass(frozen=True)
class Cut:
    """How logits become decisions.

    Attributes:
        platts: calibration, one a flag.
        thresholds: one a flag.
        bad_faith: None where the maps give no acts.
        by_limit: what every limit of bad faith reaches.
    """

    platts: list[Platt]
    thresholds: list[float]
    bad_faith: BadFaith | None
    by_limit: Mapping[str, Mapping[str, float]]


def choose_cut(
    corpus: Corpus,
    chosen: Refit,
    logits_BN: np.ndarray,
    act_BA: np.ndarray,
) -> Cut:
    """Calibrate, choose thresholds, and the limit of bad faith for those.

    Args:
        corpus: labelled turns, divided.
        chosen: the maps.
        logits_BN: flags of all rows, by them.
        act_BA: probabilities of the acts of all rows, by them; no columns where they give none.
    """
    valid, labels = list(corpus.split.valid), corpus.labels
    truth_BN, use_BN = labels.truth_BN[valid], labels.permitted_BN[valid]
    platts = calibrate(logits_BN[valid], truth_BN, use_BN)
    thresholds = steady_thresholds(apply_platt(logits_BN[valid], platts), truth_BN, use_BN)
    if not chosen.acts:
        return Cut(platts, thresholds, None, {})
    index, act_BA = valid, act_BA[valid]
    if chosen.others is not None:
        index = [*chosen.others.index, *valid]
        act_BA = np.concatenate([chosen.others.act_BA, act_BA])
    return Cut(platts, thresholds, *choose_bad_faith(corpus, index, act_BA))
