"""The three heads: delta (2, tanh), flag (N, logits), threshold (N, sigmoid).

All are linear on one vector; float32 throughout, since they cost nothing beside the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from heads.spec import DELTA_NAMES, HeadSpec


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of a batch: delta (B, 2) in -1..1, flag logits (B, N), threshold (B, N) in 0..1."""

    delta_B2: torch.Tensor
    flag_logits_BN: torch.Tensor
    threshold_BN: torch.Tensor


class StateHeads(nn.Module):
    """Reads delta, flags and thresholds from the hidden state at <STATE>."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.delta = nn.Linear(spec.hidden_size, len(DELTA_NAMES))
        self.flag = nn.Linear(spec.hidden_size, len(spec.flags))
        self.threshold = nn.Linear(spec.hidden_size, len(spec.flags))

    def forward(self, hidden_BH: torch.Tensor) -> HeadOutputs:
        """Read a batch of hidden states, shape (B, H)."""
        hidden_BH = hidden_BH.float()
        return HeadOutputs(
            delta_B2=torch.tanh(self.delta(hidden_BH)),
            flag_logits_BN=self.flag(hidden_BH),
            threshold_BN=torch.sigmoid(self.threshold(hidden_BH)),
        )
