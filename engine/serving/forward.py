"""A forward pass whose matrix products are torch's and whose rest is compiled loops, for a CPU.

Norms, rotation and gate are a third of the time when a prompt is read by tensor operators, and more
when a line is written. The residual stream is float32 whatever the model's type. Same results as
`engine.serving.lean`'s operators, to rounding. Knows nothing of sequences: the caller attends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from engine.serving.products import POOL, use_threads
from engine.serving.weights import DecoderWeights

if TYPE_CHECKING:
    from engine.serving.loops import Array

# Takes a layer's index and its joined queries, keys and values, (N, ·), not rotated; returns what the
# queries read, (N, Q), or None where nobody wants to know.
Attend = Callable[[int, torch.Tensor], "torch.Tensor | None"]


@dataclass(frozen=True)
class Tap:
    """Whom to show a layer's output to, (N, H), while the pass goes on. Layers are counted from 1."""

    layer: int
    show: Callable[[torch.Tensor], None]


class CompiledForward:
    """The pass, and what all compiled loops need.

    Args:
        weights: of a model on a CPU, in float32 or bfloat16.
        tables: rotary cosine and sine, (T, D), the sine's first half negated.
        eps: of the norms.
        head_dim: numbers of a head.

    Raises:
        ImportError: there is no Numba for this processor.
        ValueError: the loops do not serve such a model.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        tables: tuple[torch.Tensor, torch.Tensor],
        *,
        eps: float,
        head_dim: int,
    ) -> None:
        held = weights.embedding_VH
        if held.device.type != "cpu" or held.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError("compiled loops are for float32 or bfloat16 on a CPU")
        from engine.serving import loops  # compiled at a first call, and only where it serves

        if head_dim % loops.HEAD_STEP:
            raise ValueError(f"compiled loops are for heads of a multiple of {loops.HEAD_STEP}")
        self.loops = loops
        self.weights = weights
        self.dtype = held.dtype
        self.cos_TD, self.sin_TD = as_array(tables[0]), as_array(tables[1])
        self.eps = np.float32(eps)
        self._norms = [
            (as_array(one.attention_norm_H), as_array(one.mlp_norm_H)) for one in weights.layers
        ]
        self._norm_H = as_array(weights.norm_H)

    def start(self, ids_N: torch.Tensor) -> tuple[Array, int]:
        """Return the ids' rows in float32, (N, H), and into how many parts loops are cut."""
        return F.embedding(ids_N, self.weights.embedding_VH).float().numpy(), use_threads()

    def run(
        self, ids_N: torch.Tensor, attend: Attend, *, tap: Tap | None = None
    ) -> torch.Tensor | None:
        """Feed N ids and return the last norm's output; None as soon as `attend` returns it."""
        loops, eps = self.loops, self.eps
        with POOL:
            hidden_NH, parts = self.start(ids_N)
            normed = torch.empty(hidden_NH.shape, dtype=self.dtype)
            normed_NH = bits_of(normed)
            added = torch.zeros(hidden_NH.shape, dtype=self.dtype)
            for index, (layer, norms) in enumerate(
                zip(self.weights.layers, self._norms, strict=True)
            ):
                loops.add_and_norm(hidden_NH, bits_of(added), norms[0], eps, normed_NH, parts)
                if tap and index == tap.layer:
                    tap.show(torch.from_numpy(hidden_NH))
                read = attend(index, layer.query_key_value(normed))
                if read is None:
                    return None
                added = layer.output(read)
                loops.add_and_norm(hidden_NH, bits_of(added), norms[1], eps, normed_NH, parts)
                gate_up = layer.gate_up(normed)
                inner = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
                loops.gate(bits_of(gate_up), bits_of(inner), parts)
                added = layer.down(inner)
            loops.add_and_norm(hidden_NH, bits_of(added), self._norm_H, eps, normed_NH, parts)
            if tap and tap.layer == len(self._norms):
                tap.show(torch.from_numpy(hidden_NH))
        return normed

    def rotate(self, joined: torch.Tensor, positions: Array, heads: int) -> None:
        """Rotate the first `heads` heads of each row in place, (N, ·), by the rows' positions."""
        parts = torch.get_num_threads()
        self.loops.rotate(bits_of(joined), positions, self.cos_TD, self.sin_TD, heads, parts)


def as_array(tensor: torch.Tensor) -> Array:
    """Return a tensor as float32 in NumPy."""
    found: Any = tensor.detach().float().contiguous().numpy()
    return found


def bits_of(tensor: torch.Tensor) -> Array:
    """Return a tensor's memory as NumPy has it: float32, or bfloat16's bits."""
    held = tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor
    found: Any = held.numpy()
    return found
