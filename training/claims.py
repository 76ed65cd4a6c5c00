"""Claims: the same words from one who has the thing, and from one who has not.

    what is asked for and named × what is so (`heads.evidence`) ─→ added to the acts' logits

"Here is the sword" is help where the sword is carried and a lie where it is not. No sum of words and
state tells the two apart, so their product is given to the acts as well. Arrays in, maps out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.model_selection import GroupKFold

# Parts of the training rows whose logits the others' map gives: one's own rows are known too well.
_FOLDS = 4
# A logit of what was never seen lies below this.
_NEVER = -20.0


@dataclass(frozen=True)
class Fit:
    """A fit on top of logits that are there: those times `scale`, and features · weightᵀ, and bias."""

    scale: float
    weight_AF: np.ndarray
    bias_A: np.ndarray

    def __call__(self, logits_BA: np.ndarray, features_BF: np.ndarray) -> np.ndarray:
        """Return the logits with all on top, shape (B, A)."""
        summed_BA: np.ndarray = (
            self.scale * logits_BA + features_BF @ self.weight_AF.T + self.bias_A
        )
        return summed_BA


def others_logits(
    index: Sequence[int],
    groups: Sequence[str],
    fit: Callable[[Sequence[int]], Callable[[Sequence[int]], np.ndarray]],
) -> np.ndarray:
    """Return each row's logits by a map that was fitted without it and its group, a row each.

    Args:
        index: of the training rows.
        groups: what belongs together, one a row of `index`.
        fit: fits on some rows, and returns what gives the logits of others.

    Raises:
        ValueError: fewer groups than folds, or what `fit` raises.
    """
    rows = np.asarray(index)
    parts = list(GroupKFold(_FOLDS).split(rows, groups=groups))
    found = [(out, fit(rows[kept].tolist())(rows[out].tolist())) for kept, out in parts]
    logits_BN = np.zeros((len(rows), found[0][1].shape[1]))
    for out, logits in found:
        logits_BN[out] = logits
    return logits_BN


def fit_on_top(
    logits_BA: np.ndarray, features_BF: np.ndarray, act_B: np.ndarray, strength: float
) -> Fit:
    """Fit a multinomial regression on top of logits that another one gives.

    Args:
        logits_BA: of rows that the other was not fitted on.
        features_BF: what is added.
        act_B: the true act.
        strength: of the penalty on squared weights and biases.
    """
    # An act that only one group knows was never seen by the map that tells that group's rows.
    known_B = logits_BA[np.arange(len(act_B)), act_B] > _NEVER
    logits_BA, features_BF, act_B = logits_BA[known_B], features_BF[known_B], act_B[known_B]
    (rows, acts), features = logits_BA.shape, features_BF.shape[1]
    truth_BA = np.eye(acts)[act_B]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_AF = flat[1 : 1 + acts * features].reshape(acts, features)
        bias_A = flat[1 + acts * features :]
        all_BA = flat[0] * logits_BA + features_BF @ weight_AF.T + bias_A
        miss = (logsumexp(all_BA, axis=1) - all_BA[np.arange(rows), act_B]).mean()
        back_BA = (softmax(all_BA, axis=1) - truth_BA) / rows
        penalty = 0.5 * strength * float((flat[1:] ** 2).sum())
        slope = np.concatenate(
            [[(back_BA * logits_BA).sum()], (back_BA.T @ features_BF).ravel(), back_BA.sum(axis=0)]
        )
        slope[1:] += strength * flat[1:]
        return float(miss) + penalty, slope

    start = np.zeros(1 + acts * features + acts)
    start[0] = 1.0
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Fit(
        float(best[0]),
        best[1 : 1 + acts * features].reshape(acts, features),
        best[1 + acts * features :],
    )
