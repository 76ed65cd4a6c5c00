"""The heads as they are trained: on standardised features, with hints that are thrown away.

A decoder layer's raw output has dimensions of very different size (in a 135M model a mean of 4 with
outliers of 150), so one learning rate cannot fit them all: the outliers' gradients drown the rest. Here
the heads see every dimension with mean 0 and deviation 1; `fold` gives the plain heads that ship.

Knows nothing of models or rows.
"""

from __future__ import annotations

import torch
from torch import nn

from heads.modules import HeadOutputs, StateHeads
from heads.spec import HeadSpec
from training.losses import DELTA_UNIT


class ScaledHeads(nn.Module):
    """Delta, flag and threshold head on (hidden - mean) / scale, and two heads that only teach.

    `asks` (N logits) says what the player asks for whatever the state is, `act` (logits over the
    rubric) how the player treats the NPC: the two judgements that flags and delta follow from. They
    give every row something to teach, and do not ship (though acts may, as a candidate of the last
    fit; what claims read is a map of their own).

    Args:
        heads: plain heads to start from.
        mean_H, scale_H: of the features that the heads will see.
        acts: size of the rubric.
    """

    def __init__(
        self, heads: StateHeads, mean_H: torch.Tensor, scale_H: torch.Tensor, acts: int
    ) -> None:
        super().__init__()
        self.spec: HeadSpec = heads.spec
        self.mean_H: torch.Tensor
        self.scale_H: torch.Tensor
        # What features are held against belongs to the run: a resumed one must not measure anew.
        self.register_buffer("mean_H", mean_H.detach().float().clone())
        self.register_buffer("scale_H", scale_H.detach().float().clone())
        size = heads.spec.hidden_size
        self.delta = nn.Linear(size, heads.delta.out_features)
        self.flag = nn.Linear(size, heads.flag.out_features)
        self.threshold = nn.Linear(size, heads.threshold.out_features)
        self.asks = nn.Linear(size, heads.flag.out_features)
        self.act = nn.Linear(size, acts)
        with torch.no_grad():
            for mine, plain, unit in self._pairs(heads):
                mine.weight.copy_(plain.weight * self.scale_H / unit)
                mine.bias.copy_((plain.bias + plain.weight @ self.mean_H) / unit)
            for fresh in (self.asks, self.act):
                fresh.weight.zero_()
                fresh.bias.zero_()

    def _pairs(self, heads: StateHeads) -> list[tuple[nn.Linear, nn.Linear, float]]:
        # A delta is a few hundredths: in that unit its weights are as large as the others'.
        return [
            (self.delta, heads.delta, DELTA_UNIT),
            (self.flag, heads.flag, 1.0),
            (self.threshold, heads.threshold, 1.0),
        ]

    def scaled(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        """Return standardised features, float32, shape (B, H)."""
        return (hidden_BH.float() - self.mean_H) / self.scale_H

    def forward(self, hidden_BH: torch.Tensor) -> HeadOutputs:
        """Read a batch of hidden states, shape (B, H); equals the folded heads."""
        return self.outputs(self.scaled(hidden_BH))

    def outputs(self, features_BH: torch.Tensor) -> HeadOutputs:
        """Read features that are standardised already."""
        return HeadOutputs(
            delta_B2=torch.tanh(self.delta(features_BH) * DELTA_UNIT),
            flag_logits_BN=self.flag(features_BH),
            threshold_BN=torch.sigmoid(self.threshold(features_BH)),
            act_BA=torch.softmax(self.act(features_BH), dim=-1),
        )

    def hints(self, features_BH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits of what is asked for (B, N), and of the act (B, acts)."""
        return self.asks(features_BH), self.act(features_BH)

    @torch.no_grad()
    def plain(self, head: nn.Linear, unit: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one head's weight (N, H) and bias (N,) on raw hidden states, in double precision."""
        mean_H, scale_H = self.mean_H.double().cpu(), self.scale_H.double().cpu()
        weight_NH = head.weight.double().cpu() * unit / scale_H
        return weight_NH, head.bias.double().cpu() * unit - weight_NH @ mean_H

    @torch.no_grad()
    def fold(self) -> StateHeads:
        """Return plain heads on raw hidden states that give the same, on the CPU."""
        plain = StateHeads(self.spec)
        for mine, theirs, unit in self._pairs(plain):
            weight_NH, bias_N = self.plain(mine, unit)
            theirs.weight.copy_(weight_NH)
            theirs.bias.copy_(bias_N)
        return plain.eval()
