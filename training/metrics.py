"""Figures for flags and deltas. Arrays in, plain numbers out; flags without positives are left out.

Where there is nothing to measure a figure is 0.0, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score


def f1_scores(truth_BN: np.ndarray, fired_BN: np.ndarray) -> dict[str, float]:
    """Return macro- and micro-F1 of boolean decisions, both of shape (rows, flags)."""
    per_flag = [
        f1_score(truth_BN[:, n], fired_BN[:, n], zero_division=0.0)
        for n in range(truth_BN.shape[1])
        if truth_BN[:, n].any()
    ]
    return {
        "flag_macro_f1": _round(np.mean(per_flag)) if per_flag else 0.0,
        "flag_micro_f1": _round(f1_score(truth_BN.ravel(), fired_BN.ravel(), zero_division=0.0)),
    }


def macro_auprc(truth_BN: np.ndarray, score_BN: np.ndarray) -> float:
    """Return the mean area under precision–recall over the flags that have positives."""
    areas = [
        average_precision_score(truth_BN[:, n], score_BN[:, n])
        for n in range(truth_BN.shape[1])
        if truth_BN[:, n].any()
    ]
    return _round(np.mean(areas)) if areas else 0.0


def macro_auroc(truth_BN: np.ndarray, score_BN: np.ndarray, use_BN: np.ndarray) -> float:
    """Return the mean area under the ROC over the flags with both kinds among the rows in use."""
    areas = [
        roc_auc_score(truth_BN[use_BN[:, n], n], score_BN[use_BN[:, n], n])
        for n in range(truth_BN.shape[1])
        if len(set(truth_BN[use_BN[:, n], n].tolist())) == 2
    ]
    return _round(np.mean(areas)) if areas else 0.0


def brier(truth: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean squared error of probabilities. Source: Brier, 1950."""
    return _round(np.mean((truth.astype(float) - probability) ** 2)) if truth.size else 0.0


def pairs_both_right(
    groups: Sequence[str | None], truth_BN: np.ndarray, fired_BN: np.ndarray
) -> tuple[float, int]:
    """Return the share of minimal pairs with every flag of every row right, and how many there are.

    A minimal pair is a group of two rows or more whose flags differ.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(index)
    right_B = (truth_BN == fired_BN).all(axis=1)
    pairs = [
        bool(right_B[rows].all())
        for rows in members.values()
        if len({tuple(truth_BN[row]) for row in rows}) > 1
    ]
    return (_round(np.mean(pairs)) if pairs else 0.0), len(pairs)


def expected_calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Return the ECE: the gap between confidence and frequency, averaged over equal-width bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    truth, probability = truth.ravel(), probability.ravel()
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [
        abs(truth[index == b].mean() - probability[index == b].mean()) * (index == b).sum()
        for b in range(bins)
        if (index == b).any()
    ]
    return _round(sum(gaps) / max(len(truth), 1))


def delta_figures(truth_B2: np.ndarray, delta_B2: np.ndarray) -> dict[str, float]:
    """Return mean absolute error, Spearman's rank correlation and the share of right signs.

    Signs are counted where the truth moves by 0.02 or more: below that there is none to get wrong.
    """
    moved = np.abs(truth_B2) >= 0.02
    signs = np.sign(truth_B2[moved]) == np.sign(delta_B2[moved])
    constant = bool((delta_B2 == delta_B2[0]).all())
    ranks = 0.0 if constant else np.mean([_spearman(truth_B2, delta_B2, n) for n in range(2)])
    return {
        "delta_mae": _round(np.abs(truth_B2 - delta_B2).mean()),
        "delta_spearman": _round(ranks),
        "delta_sign_accuracy": _round(signs.mean()) if moved.any() else 0.0,
    }


def _spearman(truth_B2: np.ndarray, delta_B2: np.ndarray, column: int) -> float:
    return spearman(truth_B2[:, column], delta_B2[:, column])


def spearman(first_B: np.ndarray, second_B: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0.0 where one of the two never changes."""
    if len(first_B) < 2 or np.ptp(first_B) == 0.0 or np.ptp(second_B) == 0.0:
        return 0.0
    return float(spearmanr(first_B, second_B).statistic)


def per_flag_figures(
    flags: tuple[str, ...],
    truth_BN: np.ndarray,
    probability_BN: np.ndarray,
    permitted_BN: np.ndarray,
    fired_BN: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Return each flag's positives, F1 and AUPRC; among its permitted rows AUROC, ECE and Brier."""
    score_BN = probability_BN * permitted_BN
    return {
        flag: {
            "positives": int(truth_BN[:, n].sum()),
            "f1": _round(f1_score(truth_BN[:, n], fired_BN[:, n], zero_division=0.0)),
            "auprc": (
                _round(average_precision_score(truth_BN[:, n], score_BN[:, n]))
                if truth_BN[:, n].any()
                else None
            ),
            **_among_permitted(truth_BN[:, n], probability_BN[:, n], permitted_BN[:, n]),
        }
        for n, flag in enumerate(flags)
    }


def _among_permitted(
    truth_B: np.ndarray, probability_B: np.ndarray, permitted_B: np.ndarray
) -> dict[str, float | None]:
    truth, probability = truth_B[permitted_B], probability_B[permitted_B]
    both = len(set(truth.tolist())) == 2
    return {
        "auroc": _round(roc_auc_score(truth, probability)) if both else None,
        "ece": expected_calibration_error(truth, probability) if truth.size else None,
        "brier": brier(truth, probability) if truth.size else None,
    }


def _round(value: Any) -> float:
    return round(float(value), 4)


def reliability(
    truth: np.ndarray, probability: np.ndarray, bins: int = 10
) -> tuple[list[float], list[float], list[int]]:
    """Return each filled bin's mean probability, share of true values, and count."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    filled = [place == b for b in range(bins) if (place == b).any()]
    return (
        [float(probability[at].mean()) for at in filled],
        [float(truth[at].mean()) for at in filled],
        [int(at.sum()) for at in filled],
    )
