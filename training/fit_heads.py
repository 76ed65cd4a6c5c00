"""Fitting the heads on frozen features: logistic regressions, ridges, calibration, thresholds.

Arrays in, heads out. Knows nothing of prompts, models or files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

from heads.bundle import Platt
from heads.modules import StateHeads
from heads.spec import HeadSpec

# Never certain: a flag that is hardly ever right must not fire on a whim, nor one never be reached.
_THRESHOLDS = np.linspace(0.1, 0.9, 81)


@dataclass(frozen=True)
class Linear:
    """A linear map on raw features: weight (N, H) and bias (N,)."""

    weight_NH: np.ndarray
    bias_N: np.ndarray

    def __call__(self, features_BH: np.ndarray) -> np.ndarray:
        """Return features · weightᵀ + bias, shape (B, N)."""
        return features_BH @ self.weight_NH.T + self.bias_N


@dataclass(frozen=True)
class Scaling:
    """Mean and scale of each feature, so that one regularisation strength fits all layers."""

    mean_H: np.ndarray
    scale_H: np.ndarray

    @classmethod
    def of(cls, features_BH: np.ndarray) -> Scaling:
        """Measure the training rows."""
        return cls(features_BH.mean(0), features_BH.std(0) + 1e-6)

    def __call__(self, features_BH: np.ndarray) -> np.ndarray:
        """Return standardised features."""
        return (features_BH - self.mean_H) / self.scale_H

    def undo(self, weight_NH: np.ndarray, bias_N: np.ndarray) -> Linear:
        """Fold the scaling into a map that was fitted on standardised features."""
        raw_NH = weight_NH / self.scale_H
        return Linear(raw_NH, bias_N - raw_NH @ self.mean_H)


def fit_flags(
    features_BH: np.ndarray, truth_BN: np.ndarray, use_BN: np.ndarray, strength: float
) -> Linear:
    """Fit one logistic regression a flag on the rows that `use_BN` names for it.

    A flag without both kinds of rows gets a constant logit far below any threshold: it stays off
    until there is data for it.
    """
    scaling = Scaling.of(features_BH)
    scaled_BH = scaling(features_BH)
    weights, biases = [], []
    for n in range(truth_BN.shape[1]):
        rows, truth = use_BN[:, n], truth_BN[use_BN[:, n], n]
        if len(set(truth.tolist())) < 2:
            weights.append(np.zeros(features_BH.shape[1]))
            biases.append(-10.0)
            continue
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=400)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaled_BH[rows], truth)
        weights.append(model.coef_[0])
        biases.append(float(model.intercept_[0]))
    return scaling.undo(np.stack(weights), np.array(biases))


def fit_delta(features_BH: np.ndarray, delta_B2: np.ndarray, strength: float) -> Linear:
    """Fit the delta head: a ridge on artanh of the deltas, since the head ends in tanh."""
    scaling = Scaling.of(features_BH)
    targets_B2 = np.arctanh(np.clip(delta_B2, -0.99, 0.99))
    model = Ridge(alpha=1.0 / strength).fit(scaling(features_BH), targets_B2)
    return scaling.undo(model.coef_, model.intercept_)


def calibrate(logits_BN: np.ndarray, truth_BN: np.ndarray, use_BN: np.ndarray) -> list[Platt]:
    """Fit Platt's scaling a flag on rows that the heads were not fitted on.

    The slope is kept positive: a calibration may not turn a reading around.
    """
    found = []
    for n in range(logits_BN.shape[1]):
        logits, truth = logits_BN[use_BN[:, n], n], truth_BN[use_BN[:, n], n]
        if len(set(truth.tolist())) < 2 or np.ptp(logits) == 0.0:
            found.append(Platt())
            continue
        spread = float(logits.std()) or 1.0
        model = LogisticRegression(C=1.0).fit((logits / spread)[:, None], truth)
        slope = max(float(model.coef_[0, 0]) / spread, 1e-3)
        found.append(Platt(round(slope, 6), round(float(model.intercept_[0]), 6)))
    return found


def apply_platt(logits_BN: np.ndarray, platts: Sequence[Platt]) -> np.ndarray:
    """Return calibrated probabilities, shape (B, N)."""
    scale_N = np.array([platt.scale for platt in platts])
    shift_N = np.array([platt.shift for platt in platts])
    return 1.0 / (1.0 + np.exp(-np.clip(logits_BN * scale_N + shift_N, -60.0, 60.0)))


def choose_thresholds(
    probability_BN: np.ndarray, truth_BN: np.ndarray, use_BN: np.ndarray
) -> list[float]:
    """Choose the threshold of best F1 a flag; the middle of a plateau, 0.5 without positives."""
    chosen = []
    for n in range(truth_BN.shape[1]):
        probability, truth = probability_BN[use_BN[:, n], n], truth_BN[use_BN[:, n], n]
        if not truth.any():
            chosen.append(0.5)
            continue
        scores = np.array(
            [f1_score(truth, probability >= t, zero_division=0.0) for t in _THRESHOLDS]
        )
        best = np.flatnonzero(scores >= scores.max() - 1e-9)
        chosen.append(round(float(_THRESHOLDS[best[len(best) // 2]]), 3))
    return chosen


@torch.no_grad()
def build_heads(
    spec: HeadSpec, delta: Linear, flags: Linear, thresholds: Sequence[float]
) -> StateHeads:
    """Put the fitted maps into heads; the threshold head gives the constants whatever it reads."""
    heads = StateHeads(spec)
    heads.delta.weight.copy_(torch.from_numpy(delta.weight_NH))
    heads.delta.bias.copy_(torch.from_numpy(delta.bias_N))
    heads.flag.weight.copy_(torch.from_numpy(flags.weight_NH))
    heads.flag.bias.copy_(torch.from_numpy(flags.bias_N))
    heads.threshold.weight.zero_()
    heads.threshold.bias.copy_(torch.logit(torch.tensor(list(thresholds), dtype=torch.float32)))
    return heads.eval()
