"""The multi-head loss: language, delta, flags, threshold, hints; sums, so that packs add up.

Knows nothing of trainers: whoever calls divides by the examples (or reply ids) of the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from heads.modules import HeadOutputs
from training.collate import IGNORED

# A usual delta: errors are counted in this unit, so that the parts of the loss are alike in size.
DELTA_UNIT = 0.05
# How sharply the threshold loss tells "above" from "below", in probability.
THRESHOLD_WIDTH = 0.1


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts.

    `closed` is the weight of a flag that the gate does not permit, against 1 for one that it does:
    what cannot fire anyway needs little learning. `attack` is how much an attack row's flags count
    against 1 for any other's: a flag that is talked out of an NPC costs a game more than one that comes
    a turn late. `asks` and `act` are of the heads that only teach (see `training.scaled`).
    """

    language: float = 2.0
    delta: float = 1.0
    flags: float = 2.0
    threshold: float = 0.2
    asks: float = 0.5
    act: float = 1.0
    closed: float = 0.1
    attack: float = 3.0


@dataclass(frozen=True)
class LossParts:
    """Sums over a pack: `language` over reply ids, the others over examples."""

    language: torch.Tensor
    delta: torch.Tensor
    flags: torch.Tensor
    threshold: torch.Tensor
    asks: torch.Tensor
    act: torch.Tensor

    def weighted(self, weights: LossWeights, *, examples: float, reply_ids: float) -> torch.Tensor:
        """Return the loss, averaged over a step's `examples` and `reply_ids`."""
        heads = (
            weights.delta * self.delta
            + weights.flags * self.flags
            + weights.threshold * self.threshold
            + weights.asks * self.asks
            + weights.act * self.act
        )
        return weights.language * self.language / max(reply_ids, 1.0) + heads / max(examples, 1.0)

    def detached(self) -> dict[str, float]:
        """Return the sums as numbers, for the log."""
        return {field.name: float(getattr(self, field.name).detach()) for field in fields(self)}


def language_loss(logits_PV: torch.Tensor, labels_P: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, summed over the P positions that have a label."""
    return F.cross_entropy(logits_PV.float(), labels_P, ignore_index=IGNORED, reduction="sum")


def head_losses(
    outputs: HeadOutputs,
    truth_KN: torch.Tensor,
    permitted_KN: torch.Tensor,
    delta_K2: torch.Tensor,
    attack_K: torch.Tensor,
    *,
    positive_N: torch.Tensor,
    weights: LossWeights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the losses of delta, flags and threshold, each summed over the K examples.

    Args:
        outputs: of the heads for K examples.
        truth_KN: which flags fire (0 or 1).
        permitted_KN: which flags the gate permits (0 or 1).
        delta_K2: true deltas.
        attack_K: which examples are attacks (0 or 1).
        positive_N: weight of a flag's positives.
        weights: for `closed` and `attack`.
    """
    error_K2 = (outputs.delta_B2 - delta_K2) / DELTA_UNIT
    delta = F.smooth_l1_loss(error_K2, torch.zeros_like(error_K2), reduction="none").mean(1).sum()
    importance_KN = permitted_KN + weights.closed * (1.0 - permitted_KN)
    importance_KN = importance_KN * (1.0 + (weights.attack - 1.0) * attack_K[:, None])
    flags = F.binary_cross_entropy_with_logits(
        outputs.flag_logits_BN,
        truth_KN,
        weight=importance_KN,
        pos_weight=positive_N,
        reduction="sum",
    )
    # The threshold learns where to cut; the probability is not to be moved by it.
    above_KN = (
        torch.sigmoid(outputs.flag_logits_BN).detach() - outputs.threshold_BN
    ) / THRESHOLD_WIDTH
    threshold = F.binary_cross_entropy_with_logits(
        above_KN, truth_KN, weight=importance_KN, reduction="sum"
    )
    return delta, flags, threshold


def hint_losses(
    asks_logits_KN: torch.Tensor,
    act_logits_KA: torch.Tensor,
    asks_KN: torch.Tensor,
    act_K: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of what is asked for and of the act, each summed over the K examples."""
    return (
        F.binary_cross_entropy_with_logits(asks_logits_KN, asks_KN, reduction="sum"),
        F.cross_entropy(act_logits_KA, act_K, reduction="sum"),
    )
