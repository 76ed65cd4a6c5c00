"""The heads: delta (2), flag (N, logits), threshold (N, sigmoid), and asks and claim where there are.

    input      [hidden state at <STATE> (H) ; what was heard of the utterance (M, may be 0)]
    flag       linear
    threshold  linear, sigmoid
    delta      softmax over acts (linear), and what those are worth together (`heads.worth`);
               without acts: linear, tanh
    asks       linear, sigmoid: what is asked for, whatever the state permits
    claim      what is asked for times whether the game's state bears it out; linear, added to the acts

All are linear on one vector; float32 throughout, since they cost nothing beside the model. A small base
reads a state well and a sentence poorly; the sentence vector, which a turn has anyway, and counted
words make up for it. Only claims are a product (`heads.evidence`): "here is the sword" is help from one
who has it and a lie from one who has not, which no sum of the two tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from heads.evidence import claims_of, claims_size, evidence_size
from heads.spec import DELTA_NAMES, HeadSpec
from heads.worth import mean_worth


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of a batch: delta (B, 2) in -1..1, flag logits (B, N), threshold (B, N) in 0..1.

    `act_BA` are the probabilities of the spec's acts, shape (B, A); without acts, (B, 0).
    """

    delta_B2: torch.Tensor
    flag_logits_BN: torch.Tensor
    threshold_BN: torch.Tensor
    act_BA: torch.Tensor


class StateHeads(nn.Module):
    """Reads delta, flags and thresholds from the hidden state at <STATE> and what was heard."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        acts = len(spec.acts)
        self.delta = nn.Linear(spec.width, acts or len(DELTA_NAMES))
        self.flag = nn.Linear(spec.width, len(spec.flags))
        self.threshold = nn.Linear(spec.width, len(spec.flags))
        if acts:
            self.worth_A2: torch.Tensor
            self.place_A2: torch.Tensor
            self.register_buffer("worth_A2", torch.zeros(acts, len(DELTA_NAMES)))
            self.register_buffer("place_A2", torch.zeros(acts, len(DELTA_NAMES)))
        if spec.claims:
            self.asks = nn.Linear(spec.width, len(spec.flags))
            self.near = nn.Linear(3, 1)
            self.claim = nn.Linear(claims_size(len(spec.flags)), acts, bias=False)

    def set_worth(self, worth_A2: torch.Tensor, place_A2: torch.Tensor | None = None) -> None:
        """Say what each act is worth, and its place among them; None: the worth is its place too."""
        self.worth_A2.copy_(worth_A2)
        self.place_A2.copy_(worth_A2 if place_A2 is None else place_A2)

    def forward(
        self,
        hidden_BH: torch.Tensor,
        meaning_BM: torch.Tensor | None = None,
        evidence_BE: torch.Tensor | None = None,
    ) -> HeadOutputs:
        """Read a batch.

        Args:
            hidden_BH: hidden states, shape (B, H).
            meaning_BM: what was heard of the utterances (unit sentence vectors, and where the bundle
                says so counted words behind them), shape (B, M), where the spec asks.
            evidence_BE: what the state says of what is said, for heads with claims, shape (B, E); see
                `heads.evidence`. None: nothing is known, and nothing claimed.

        Raises:
            ValueError: sentence vectors are missing, of another width, or not asked for.
        """
        given = 0 if meaning_BM is None else int(meaning_BM.shape[-1])
        if given != self.spec.meaning_size:
            raise ValueError(
                f"the heads read a sentence vector of width {self.spec.meaning_size}, not {given}"
            )
        input_BW = hidden_BH.float()
        if meaning_BM is not None:
            input_BW = torch.cat([input_BW, meaning_BM.float()], dim=-1)
        raw_BD = self.delta(input_BW)
        if self.spec.claims:
            asks_logits_BN = self.asks(input_BW)
            if evidence_BE is None:
                evidence_BE = input_BW.new_zeros(len(input_BW), evidence_size(len(self.spec.flags)))
            near_3, bias = self.near.weight[0], self.near.bias
            raw_BD = raw_BD + self.claim(claims_of(asks_logits_BN, evidence_BE, near_3, bias))
        if self.spec.acts:
            act_BA = torch.softmax(raw_BD, dim=-1)
            delta_B2 = mean_worth(act_BA, self.place_A2, self.worth_A2)
        else:
            act_BA, delta_B2 = raw_BD[:, :0], torch.tanh(raw_BD)
        return HeadOutputs(
            delta_B2=delta_B2,
            flag_logits_BN=self.flag(input_BW),
            threshold_BN=torch.sigmoid(self.threshold(input_BW)),
            act_BA=act_BA,
        )
