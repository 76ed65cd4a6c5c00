"""From how probable an act of deceit on no flag is granted: chosen on `valid`, shipped in the bundle.

An attack asks for what others ask for honestly, so a flag's own probability cannot tell them apart; how
the player treats the NPC can. Knows nothing of models.
"""

from __future__ import annotations

import numpy as np

from heads.bundle import BadFaith
from training.corpus import Corpus
from training.metrics import f1_scores
from training.rubric import ACTS

DECEIT = ("threat", "lie", "manipulation")
OUT_OF_REACH = 2.0
"""A threshold that no probability reaches."""

_LIMITS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
# Macro-F1 that caution may cost: attacks on `valid` are few, and what is talked out of an NPC costs a
# game more than what comes a turn late.
_CAUTION = 0.005


def deceit(act_BA: np.ndarray) -> np.ndarray:
    """Return how probable deceit is, shape (B,), of acts in the rubric's order."""
    summed: np.ndarray = act_BA[:, [list(ACTS).index(act) for act in DECEIT]].sum(axis=1)
    return summed


def choose_bad_faith(
    corpus: Corpus, proposed_BN: np.ndarray, act_BA: np.ndarray
) -> tuple[BadFaith, dict[str, dict[str, float]]]:
    """Return the rule that serves `valid`, and what every limit reached there.

    Of the limits that cost next to nothing, those with the fewest false grants; of these the lowest.
    Without attacks on `valid` nothing can be said for a limit, and there is none.

    Args:
        corpus: labelled turns, divided.
        proposed_BN: which flags reach their thresholds, for all rows.
        act_BA: probabilities of the acts, for all rows.
    """
    valid, labels = list(corpus.split.valid), corpus.labels
    attacks = np.array([corpus.rows[at].attack for at in valid])
    open_BN = proposed_BN[valid] & labels.permitted_BN[valid]
    reached: dict[str, dict[str, float]] = {}
    for limit in (1.0, *_LIMITS):
        fired_BN = open_BN & ~(deceit(act_BA[valid]) >= limit)[:, None]
        granted = fired_BN[attacks].any(axis=1)
        reached[f"{limit:.2f}"] = {
            "flag_macro_f1": f1_scores(labels.truth_BN[valid], fired_BN)["flag_macro_f1"],
            "false_grants": float(granted.mean()) if len(granted) else 0.0,
        }

    if not attacks.any():
        return BadFaith(DECEIT, 1.0), reached
    best = max(one["flag_macro_f1"] for one in reached.values())
    cheap = [limit for limit in reached if reached[limit]["flag_macro_f1"] >= best - _CAUTION]
    careful = min(cheap, key=lambda limit: (reached[limit]["false_grants"], float(limit)))
    return BadFaith(DECEIT, float(careful)), reached


def with_bad_faith(
    rule: BadFaith | None, act_BA: np.ndarray, threshold_BN: np.ndarray
) -> np.ndarray:
    """Return thresholds, shape (B, N), that are out of reach where the player deceives."""
    full_BN = np.broadcast_to(threshold_BN, (len(act_BA), threshold_BN.shape[-1])).copy()
    if rule is not None:
        full_BN[deceit(act_BA) >= rule.limit] = OUT_OF_REACH
    return full_BN
