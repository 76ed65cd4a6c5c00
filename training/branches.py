"""Attention over a pack: one shared prefix, many branches, no branch seeing another.

A mask over the whole sequence would give the same values, but would also compute the scores of every
pair of branches and throw them away. Here the prefix attends to itself, and the branches, padded to
one length, to the prefix and themselves: with seven branches that is a quarter of the work. Works for
every architecture that calls transformers' attention interface. Knows nothing of rows or losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "branched"


@dataclass(frozen=True)
class Branches:
    """Where the parts of a packed sequence of T ids lie.

    Args:
        prefix: P, how many leading ids are shared.
        places_KS: index of each branch's ids in the sequence; padding points anywhere.
        valid_KS: which of `places_KS` are ids and not padding.
    """

    prefix: int
    places_KS: torch.Tensor
    valid_KS: torch.Tensor

    @classmethod
    def of(cls, prefix: int, lengths: list[int], device: torch.device | None = None) -> Branches:
        """Lay out branches of these lengths, one after the other behind the prefix."""
        lengths_K = torch.tensor(lengths, device=device)
        starts_K = prefix + lengths_K.cumsum(0) - lengths_K
        steps_S = torch.arange(max(lengths), device=device)
        valid_KS = steps_S < lengths_K[:, None]
        places_KS = torch.where(valid_KS, starts_K[:, None] + steps_S, starts_K[:, None])
        return cls(prefix, places_KS, valid_KS)


def attend(
    module: Any,
    query_1HTD: torch.Tensor,
    key_1GTD: torch.Tensor,
    value_1GTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    branches: Branches | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within a pack; called by the decoder's layers in place of their usual attention.

    Args:
        module: the layer's attention module, unused.
        query_1HTD: queries of H heads.
        key_1GTD: keys of G groups; H is a multiple of G.
        value_1GTD: their values.
        attention_mask: must be None: the layout says it all.
        scaling: of the scores.
        dropout: must be 0.
        branches: the layout.
        kwargs: what other attention functions want.

    Returns:
        (1, T, H, D), and None for the weights.

    Raises:
        ValueError: no layout, a mask or dropout.
    """
    if branches is None or attention_mask is not None or dropout:
        raise ValueError("branched attention needs a layout, no mask and no dropout")
    repeat = query_1HTD.shape[1] // key_1GTD.shape[1]
    key_1HTD = key_1GTD.repeat_interleave(repeat, dim=1)
    value_1HTD = value_1GTD.repeat_interleave(repeat, dim=1)
    p = branches.prefix
    parts = []
    if p:
        parts.append(
            F.scaled_dot_product_attention(
                query_1HTD[:, :, :p],
                key_1HTD[:, :, :p],
                value_1HTD[:, :, :p],
                is_causal=True,
                scale=scaling,
            )
        )
    parts.append(_branches(query_1HTD, key_1HTD, value_1HTD, scaling, branches))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _branches(
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    scaling: float,
    branches: Branches,
) -> torch.Tensor:
    """Return the branches' outputs in the order of the sequence, (1, H, T - P, D)."""
    p, (k, s) = branches.prefix, branches.places_KS.shape
    steps = torch.arange(s, device=query_1HTD.device)
    # Padding keys lie behind every valid query of their branch, so that the causal mask hides them.
    own_SS = steps[:, None] >= steps[None, :]
    mask = torch.cat([own_SS.new_ones(s, p), own_SS], dim=1)

    def split(tensor_1HTD: torch.Tensor) -> torch.Tensor:
        return tensor_1HTD[0][:, branches.places_KS].transpose(0, 1)  # K, H, S, D

    def with_prefix(tensor_1HTD: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor_1HTD[:, :, :p].expand(k, -1, -1, -1), split(tensor_1HTD)], dim=2)

    out_KHSD = F.scaled_dot_product_attention(
        split(query_1HTD),
        with_prefix(key_1HTD),
        with_prefix(value_1HTD),
        attn_mask=mask,
        scale=scaling,
    )
    return out_KHSD.transpose(1, 2)[branches.valid_KS].transpose(0, 1)[None]


def install(model: Any) -> None:
    """Let `model` use branched attention; every call then needs `branches=…`."""
    AttentionInterface.register(NAME, attend)
    model.config._attn_implementation = NAME
