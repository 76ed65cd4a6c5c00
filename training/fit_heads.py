"""Fitting the heads on features: logistic regressions, ridges, calibration, thresholds.

Features are hidden states, and behind them, where the heads read one, the utterance's sentence vector
(`meaning` counts its numbers). Arrays in, heads out. Knows nothing of prompts, models or files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from heads.bundle import Platt
from heads.evidence import at_stage, claims_of, nearness_of
from heads.modules import StateHeads
from heads.spec import HeadSpec
from heads.worth import mean_worth

# Never certain: a flag that is hardly ever right must not fire on a whim, nor one never be reached.
_THRESHOLDS = np.linspace(0.1, 0.9, 81)
# How far a flag's threshold may be drawn towards the common one, and the parts of cross-validation.
_PULLS = (0.0, 0.25, 0.5, 0.75, 1.0)
_FOLDS = 5


@dataclass(frozen=True)
class Linear:
    """A linear map on raw features: weight (N, H) and bias (N,)."""

    weight_NH: np.ndarray
    bias_N: np.ndarray

    def __call__(self, features_BH: np.ndarray) -> np.ndarray:
        """Return features · weightᵀ + bias, shape (B, N)."""
        return features_BH @ self.weight_NH.T + self.bias_N


@dataclass(frozen=True)
class Claims:
    """What is claimed, and what that is worth to the acts.

    Attributes:
        asks: what is asked for, (N, W) on what the heads read.
        near: that with the utterance's nearness to the rules, (1, 3) on `heads.evidence.nearness_of`.
        weight_AF: of what is claimed (`heads.evidence.claims_of`), shape (A, F).
    """

    asks: Linear
    near: Linear
    weight_AF: np.ndarray

    def __call__(self, joined_BW: np.ndarray, evidence_BE: np.ndarray) -> np.ndarray:
        """Return what is added to the acts' logits, shape (B, A)."""
        features_BF = claim_features(self.asks(joined_BW), evidence_BE, self.near)
        added_BA: np.ndarray = features_BF @ self.weight_AF.T
        return added_BA


@dataclass(frozen=True)
class Scaling:
    """Mean and scale of each feature, so that one regularisation strength fits all layers.

    A sentence vector is of length one as it is: its numbers are scaled alike, so that the vector weighs
    as much as the hidden state, and what tells nothing is not blown up.
    """

    mean_H: np.ndarray
    scale_H: np.ndarray

    @classmethod
    def of(cls, features_BH: np.ndarray, meaning: int = 0) -> Scaling:
        """Measure the training rows; the last `meaning` features are a unit vector's."""
        mean_H, scale_H = features_BH.mean(0), features_BH.std(0) + 1e-6
        if meaning:
            mean_H[-meaning:] = 0.0
            scale_H[-meaning:] = (len(mean_H) - meaning or meaning) ** -0.5
        return cls(mean_H, scale_H)

    def __call__(self, features_BH: np.ndarray) -> np.ndarray:
        """Return standardised features."""
        return (features_BH - self.mean_H) / self.scale_H

    def undo(self, weight_NH: np.ndarray, bias_N: np.ndarray) -> Linear:
        """Fold the scaling into a map that was fitted on standardised features."""
        raw_NH = weight_NH / self.scale_H
        return Linear(raw_NH, bias_N - raw_NH @ self.mean_H)


def claim_features(asks_logits_BN: np.ndarray, evidence_BE: np.ndarray, near: Linear) -> np.ndarray:
    """Return what the claim head reads, shape (B, F); see `heads.evidence.claims_of`."""
    given = (asks_logits_BN, evidence_BE, near.weight_NH[0], near.bias_N)
    features_BF: np.ndarray = claims_of(*(_double(one) for one in given)).numpy()
    return features_BF


def fit_nearness(
    asks_logits_BN: np.ndarray, evidence_BE: np.ndarray, asks_BN: np.ndarray
) -> Linear:
    """Fit what tells whether a flag is asked for: its logit, and how near the utterance is to its rule.

    One regression for all flags of all NPCs, shape (1, 3); without both kinds of rows, the logit alone.

    Args:
        asks_logits_BN: of rows that their map was not fitted on.
        evidence_BE: of those rows.
        asks_BN: what they ask for.
    """
    nearness_BN3 = nearness_of(_double(asks_logits_BN), _double(evidence_BE)).numpy()
    at_stage_BN = at_stage(_double(evidence_BE), asks_BN.shape[1]).numpy()
    features_P3, asks_P = nearness_BN3[at_stage_BN], asks_BN[at_stage_BN]
    if len(set(asks_P.tolist())) < 2:
        return Linear(np.array([[1.0, 0.0, 0.0]]), np.zeros(1))
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features_P3, asks_P)
    return Linear(model.coef_, model.intercept_)


def _double(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def fit_flags(
    features_BH: np.ndarray,
    truth_BN: np.ndarray,
    use_BN: np.ndarray,
    strength: float,
    *,
    meaning: int = 0,
) -> Linear:
    """Fit one logistic regression a flag on the rows that `use_BN` names for it.

    A flag without both kinds of rows gets a constant logit far below any threshold: it stays off
    until there is data for it.
    """
    scaling = Scaling.of(features_BH, meaning)
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


def fit_acts(
    features_BH: np.ndarray, act_B: np.ndarray, acts: int, strength: float, *, meaning: int = 0
) -> Linear:
    """Fit one multinomial logistic regression over the acts, shape (A, H); one never seen stays out.

    Raises:
        ValueError: all rows are of one act.
    """
    scaling = Scaling.of(features_BH, meaning)
    model = LogisticRegression(C=strength, max_iter=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaling(features_BH), act_B)
    weights_AH, bias_A = np.zeros((acts, features_BH.shape[1])), np.full(acts, -30.0)
    if len(model.classes_) == 2:  # one logit for the second class
        weights_AH[model.classes_[1]], bias_A[model.classes_[1]] = (
            model.coef_[0],
            model.intercept_[0],
        )
        bias_A[model.classes_[0]] = 0.0
    else:
        weights_AH[model.classes_], bias_A[model.classes_] = model.coef_, model.intercept_
    return scaling.undo(weights_AH, bias_A)


def fit_words(words_BK: csr_matrix, asks_BN: np.ndarray, strength: float) -> Linear:
    """Fit what an utterance's words ask for, one logistic regression a flag, on counted words.

    All rows count, whatever their state permits: words tell what is asked, the state whether it is
    granted. A flag without both kinds of rows gets a constant 0: its words say nothing.
    """
    flags = asks_BN.shape[1]
    weights_NK, bias_N = np.zeros((flags, words_BK.shape[1])), np.zeros(flags)
    for n in range(flags):
        if len(set(asks_BN[:, n].tolist())) == 2:
            model = LogisticRegression(C=strength, class_weight="balanced", max_iter=400)
            model.fit(words_BK, asks_BN[:, n])
            weights_NK[n], bias_N[n] = model.coef_[0], model.intercept_[0]
    return Linear(weights_NK, bias_N)


def fit_act_words(words_BK: csr_matrix, act_B: np.ndarray, acts: int, strength: float) -> Linear:
    """Fit how an utterance's words treat the NPC, logits of all acts; one never seen gets 0.

    Raises:
        ValueError: all rows are of one act.
    """
    model = LogisticRegression(C=strength, max_iter=400).fit(words_BK, act_B)
    weights_AK, bias_A = np.zeros((acts, words_BK.shape[1])), np.zeros(acts)
    seen = model.classes_[1:] if len(model.classes_) == 2 else model.classes_
    weights_AK[seen], bias_A[seen] = model.coef_, model.intercept_
    return Linear(weights_AK, bias_A)


def act_delta(act_BA: np.ndarray, worth_A2: np.ndarray, place_A2: np.ndarray) -> np.ndarray:
    """Return what guesses over acts are worth, shape (B, 2); see `heads.worth`."""
    act, place, worth = (torch.from_numpy(one) for one in (act_BA, place_A2, worth_A2))
    delta_B2: np.ndarray = mean_worth(act.double(), place, worth).numpy()
    return delta_B2


def fit_delta(
    features_BH: np.ndarray, delta_B2: np.ndarray, strength: float, *, meaning: int = 0
) -> Linear:
    """Fit a delta head without acts: a ridge on artanh of the deltas, since the head ends in tanh."""
    scaling = Scaling.of(features_BH, meaning)
    targets_B2 = np.arctanh(np.clip(delta_B2, -0.99, 0.99))
    model = Ridge(alpha=1.0 / strength).fit(scaling(features_BH), targets_B2)
    return scaling.undo(model.coef_, model.intercept_)


def calibrate(logits_BN: np.ndarray, truth_BN: np.ndarray, use_BN: np.ndarray) -> list[Platt]:
    """Fit Platt's scaling on rows that the heads were not fitted on: one slope, and a shift a flag.

    A slope a flag would be fitted on some thirty positives, and either overfits or, held back, makes
    all of them too modest. The slope is kept positive: a calibration may not turn a reading around.
    """
    count = logits_BN.shape[1]
    row, flag = np.nonzero(use_BN)
    truth = truth_BN[row, flag]
    if len(set(truth.tolist())) < 2:
        return [Platt()] * count
    given = np.hstack([logits_BN[row, flag][:, None], np.eye(count)[flag]])
    model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=1000).fit(given, truth)
    slope = max(float(model.coef_[0, 0]), 1e-3)
    return [Platt(round(slope, 6), round(float(shift), 6)) for shift in model.coef_[0, 1:]]


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
        scores = _f1(truth[None, :], probability[None, :] >= _THRESHOLDS[:, None], axis=1)
        best = np.flatnonzero(scores >= scores.max() - 1e-9)
        chosen.append(round(float(_THRESHOLDS[best[len(best) // 2]]), 3))
    return chosen


def steady_thresholds(
    probability_BN: np.ndarray, truth_BN: np.ndarray, use_BN: np.ndarray
) -> list[float]:
    """Choose a threshold a flag that holds beyond the rows it was chosen on.

    Some twenty positives a flag make the best threshold a matter of luck, so each is drawn towards the
    one that serves all flags best; how far, cross-validation on the same rows decides.
    """
    folds_B = np.arange(len(truth_BN)) % _FOLDS
    fired: dict[float, np.ndarray] = {pull: np.zeros_like(use_BN) for pull in _PULLS}
    for fold in range(_FOLDS):
        kept, out = folds_B != fold, folds_B == fold
        own_N, common = _own_and_common(probability_BN[kept], truth_BN[kept], use_BN[kept])
        for pull in _PULLS:
            cut_N = own_N + pull * (common - own_N)
            fired[pull][out] = (probability_BN[out] >= cut_N) & use_BN[out]
    best = max(_PULLS, key=lambda pull: _macro_f1(truth_BN, fired[pull]))
    own_N, common = _own_and_common(probability_BN, truth_BN, use_BN)
    return [round(float(one), 3) for one in own_N + best * (common - own_N)]


def _own_and_common(
    probability_BN: np.ndarray, truth_BN: np.ndarray, use_BN: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the best threshold of each flag, and the one that serves all flags best."""
    own_N = np.array(choose_thresholds(probability_BN, truth_BN, use_BN))
    fired_TBN = (probability_BN >= _THRESHOLDS[:, None, None]) & use_BN
    reached = _f1(truth_BN[None], fired_TBN, axis=1).mean(axis=1)
    best = np.flatnonzero(reached >= reached.max() - 1e-9)
    return own_N, float(_THRESHOLDS[best[len(best) // 2]])


def _macro_f1(truth_BN: np.ndarray, fired_BN: np.ndarray) -> float:
    return float(_f1(truth_BN, fired_BN, axis=0).mean())


def _f1(truth: np.ndarray, fired: np.ndarray, *, axis: int) -> np.ndarray:
    """Return F1 along an axis, 0 where nothing is true and nothing fires.

    In numpy, because thousands of thresholds are tried and scikit-learn checks each of its inputs.
    """
    hits = (truth & fired).sum(axis=axis)
    total = truth.sum(axis=axis) + fired.sum(axis=axis)
    scores: np.ndarray = 2.0 * hits / np.maximum(total, 1)
    return scores


@torch.no_grad()
def build_heads(
    spec: HeadSpec,
    delta: Linear,
    flags: Linear,
    thresholds: Sequence[float],
    worth_A2: np.ndarray | None = None,
    place_A2: np.ndarray | None = None,
    claims: Claims | None = None,
) -> StateHeads:
    """Put the fitted maps into heads; the threshold head gives the constants whatever it reads.

    Args:
        spec: of the heads.
        delta: the deltas themselves, or the acts where `spec` has some.
        flags: one a flag.
        thresholds: one a flag.
        worth_A2: what each act is worth, where `spec` has acts.
        place_A2: their places; None: the worths themselves.
        claims: where `spec` has some.
    """
    heads = StateHeads(spec)
    if worth_A2 is not None:
        place = None if place_A2 is None else torch.from_numpy(place_A2)
        heads.set_worth(torch.from_numpy(worth_A2), place)
    if claims is not None:
        heads.asks.weight.copy_(torch.from_numpy(claims.asks.weight_NH))
        heads.asks.bias.copy_(torch.from_numpy(claims.asks.bias_N))
        heads.near.weight.copy_(torch.from_numpy(claims.near.weight_NH))
        heads.near.bias.copy_(torch.from_numpy(claims.near.bias_N))
        heads.claim.weight.copy_(torch.from_numpy(claims.weight_AF))
    heads.delta.weight.copy_(torch.from_numpy(delta.weight_NH))
    heads.delta.bias.copy_(torch.from_numpy(delta.bias_N))
    heads.flag.weight.copy_(torch.from_numpy(flags.weight_NH))
    heads.flag.bias.copy_(torch.from_numpy(flags.bias_N))
    heads.threshold.weight.zero_()
    heads.threshold.bias.copy_(torch.logit(torch.tensor(list(thresholds), dtype=torch.float32)))
    return heads.eval()


@torch.no_grad()
def set_threshold_head(heads: StateHeads, threshold: Linear) -> None:
    """Give the heads a learnt threshold head; it reads the hidden state alone."""
    heads.threshold.weight.zero_()
    heads.threshold.weight[:, : heads.spec.hidden_size] = torch.from_numpy(threshold.weight_NH)
    heads.threshold.bias.copy_(torch.from_numpy(threshold.bias_N))
