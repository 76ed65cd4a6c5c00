"""Evidence: what the game's state says of what a player says, as numbers that heads read.

    [ per flag: at this stage, facts, nearness to its rule, nearness to its value ; what is named (4) ]

`engine.evidence` gathers it; the claim head reads it. Knows nothing of NPCs, prompts or texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

ABSENT, UNKNOWN, PRESENT = -1.0, 0.0, 1.0
"""What the game's state says of what a flag's conditions name; unknown where they name no facts."""

_PER_FLAG = 4  # at this stage, facts, rule, value
_NAMED = 4


@dataclass(frozen=True)
class Bearing:
    """What an utterance has to do with one flag of the stage, and the state with that.

    `facts` says whether all items, actions and game state that its conditions name are there; None
    where they name none. `rule` and `value` are cosines, of the utterance and what the rule does in
    words, and of the utterance and the words of its value.
    """

    facts: bool | None
    rule: float = 0.0
    value: float = 0.0


@dataclass(frozen=True)
class Named:
    """How clearly an utterance names what is there, and what is missing, of the NPC's world.

    `near_…` are the highest cosines with such a name, `said_…` the highest shares of a name's words
    that are said.
    """

    near_present: float = 0.0
    near_absent: float = 0.0
    said_present: float = 0.0
    said_absent: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What the state says of what is said: by flag of the stage, and of all that can be named."""

    flags: Mapping[str, Bearing] = field(default_factory=dict)
    named: Named = Named()

    def numbers(self, flags: Sequence[str]) -> list[float]:
        """Return it as heads of these flags read it, `evidence_size(len(flags))` numbers."""
        told: list[float] = []
        for flag in flags:
            one = self.flags.get(flag)
            told += [1.0, _count(one.facts), one.rule, one.value] if one else [0.0] * _PER_FLAG
        named = self.named
        return [
            *told,
            named.near_present,
            named.near_absent,
            named.said_present,
            named.said_absent,
        ]


NOTHING = Evidence()
"""What the state says where it says nothing: then nothing counts as claimed."""


def _count(facts: bool | None) -> float:
    return UNKNOWN if facts is None else PRESENT if facts else ABSENT


def evidence_size(flags: int) -> int:
    """Return how many numbers tell the evidence of a turn."""
    return _PER_FLAG * flags + _NAMED


def claims_size(flags: int) -> int:
    """Return how many numbers `claims_of` gives."""
    return 3 * flags + 3 + _NAMED


def at_stage(evidence_BE: torch.Tensor, flags: int) -> torch.Tensor:
    """Return which of so many flags are part of the stage, bool, shape (B, N)."""
    return _per_flag(evidence_BE, flags)[..., 0] > 0


def nearness_of(asks_logits_BN: torch.Tensor, evidence_BE: torch.Tensor) -> torch.Tensor:
    """Return what tells whether a flag is asked for: its logit and both cosines, shape (B, N, 3)."""
    per_flag_BN4 = _per_flag(evidence_BE, asks_logits_BN.shape[-1])
    return torch.cat([asks_logits_BN[..., None], per_flag_BN4[..., 2:]], dim=-1)


def claims_of(
    asks_logits_BN: torch.Tensor,
    evidence_BE: torch.Tensor,
    near_3: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Return what the claim head reads, shape (B, 3N + 7).

    Per flag: asked for, the same where the facts are absent, and where they are present; the highest of
    those where they are absent, present and unknown; and what is named. A flag that is no part of the
    stage counts as not asked for.

    Args:
        asks_logits_BN: logits of what is asked for, from what was heard and read.
        evidence_BE: of B turns.
        near_3: weights of `nearness_of`, the same for all flags: NPCs that no row knows have rules too.
        bias: of those.
    """
    per_flag_BN4 = _per_flag(evidence_BE, asks_logits_BN.shape[-1])
    logits_BN = nearness_of(asks_logits_BN, evidence_BE) @ near_3 + bias
    asked_BN = torch.sigmoid(logits_BN) * per_flag_BN4[..., 0]
    facts_BN = per_flag_BN4[..., 1]
    absent_BN, present_BN, unknown_BN = (
        asked_BN * (facts_BN == what) for what in (ABSENT, PRESENT, UNKNOWN)
    )
    highest = [one.amax(dim=-1, keepdim=True) for one in (absent_BN, present_BN, unknown_BN)]
    return torch.cat([asked_BN, absent_BN, present_BN, *highest, evidence_BE[:, -_NAMED:]], dim=-1)


def _per_flag(evidence_BE: torch.Tensor, flags: int) -> torch.Tensor:
    return evidence_BE[:, : _PER_FLAG * flags].reshape(-1, flags, _PER_FLAG)
