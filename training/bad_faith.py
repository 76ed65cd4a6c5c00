"""From how probable an act of deceit on no flag is granted: chosen by what that refuses, in the bundle.

An attack asks for what others ask for honestly, so a flag's own probability cannot tell them apart; how
the player treats the NPC can. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heads.bundle import BadFaith
from training.corpus import Corpus
from training.rubric import ACTS

DECEIT = ("threat", "lie", "manipulation")
OUT_OF_REACH = 2.0
"""A threshold that no probability reaches."""

_LIMITS = tuple(round(0.05 + 0.01 * step, 2) for step in range(76))
# Turns in which something is due and nothing is granted for caution's sake, at most. What is talked out
# of an NPC costs a game more than what comes a turn late.
_REFUSED = 0.05


def deceit(act_BA: np.ndarray) -> np.ndarray:
    """Return how probable deceit is, shape (B,), of acts in the rubric's order."""
    summed: np.ndarray = act_BA[:, [list(ACTS).index(act) for act in DECEIT]].sum(axis=1)
    return summed


def choose_bad_faith(
    corpus: Corpus, index: Sequence[int], act_BA: np.ndarray
) -> tuple[BadFaith, dict[str, dict[str, float]]]:
    """Return the rule that serves some rows, and what every limit reaches there.

    The lowest limit that refuses next to none of the turns in which something is due. Flags have no
    part in it: a limit that is chosen by what gets through hangs on a handful of turns. Without attacks
    among the rows, or turns in which something is due, nothing can be said for a limit, and there is
    none.

    Args:
        corpus: labelled turns.
        index: of the rows to choose by: such as the map of the acts was not fitted on.
        act_BA: probabilities of the acts there, a row each.
    """
    at = list(index)
    attacks = np.array([corpus.rows[row].attack for row in at])
    due = corpus.labels.truth_BN[at].any(axis=1) & ~attacks
    if not attacks.any() or not due.any():
        return BadFaith(DECEIT, 1.0), {}
    reached = {
        f"{limit:.2f}": {
            "refused": round(float((deceit(act_BA[due]) >= limit).mean()), 4),
            "attacks_known": round(float((deceit(act_BA[attacks]) >= limit).mean()), 4),
        }
        for limit in _LIMITS
    }
    careful = (limit for limit in _LIMITS if reached[f"{limit:.2f}"]["refused"] <= _REFUSED)
    return BadFaith(DECEIT, next(careful, 1.0)), reached


def with_bad_faith(
    rule: BadFaith | None, act_BA: np.ndarray, threshold_BN: np.ndarray
) -> np.ndarray:
    """Return thresholds, shape (B, N), that are out of reach where the player deceives."""
    full_BN = np.broadcast_to(threshold_BN, (len(act_BA), threshold_BN.shape[-1])).copy()
    if rule is not None:
        full_BN[deceit(act_BA) >= rule.limit] = OUT_OF_REACH
    return full_BN
