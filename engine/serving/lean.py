"""The forward pass of a Llama- or Qwen2-type decoder in the fewest operators.

    rows of token ids (N,) → embedding → layers (norm, attention, norm, MLP) → hidden states (N, H)

The N rows are either the next ids of one sequence (a slice of a prompt) or one id of each of N
sequences (a decoding step); who attends to what is the cache's to say. The library's model is the
reference that this must equal. Knows nothing of turns, sampling or heads.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from engine.serving.forward import CompiledForward, Tap
from engine.serving.weights import gather_weights

logger = logging.getLogger(__name__)

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Attention(Protocol):
    """Keys and values behind the N rows of a pass."""

    def attend(
        self, layer: int, query_NHD: torch.Tensor, key_NHD: torch.Tensor, value_NHD: torch.Tensor
    ) -> torch.Tensor:
        """Take in a layer's new keys and values, and return what its queries read, (N, H·D)."""


class Keeper(Protocol):
    """Keys and values that nobody attends to in this pass."""

    def keep(self, layer: int, key_NHD: torch.Tensor, value_NHD: torch.Tensor) -> None:
        """Take in a layer's new keys and values."""


@dataclass(frozen=True)
class Shape:
    """What a cache must hold: layers, key-value heads, query heads a key-value head, head width."""

    layers: int
    kv_heads: int
    groups: int
    head_dim: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in a 16-bit type."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


def why_not_lean(model: Any) -> str | None:
    """Return why the lean forward cannot stand in for `model`, or None where it can."""
    config = model.config
    if config.model_type not in ("llama", "qwen2"):
        return f"type {config.model_type}"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    if getattr(config, "use_sliding_window", False):
        return "a sliding window"
    rope = getattr(model.model.rotary_emb, "rope_type", "default")
    if rope not in _ROPE_TYPES:
        return f"rotary embedding of type {rope}"
    return None


class LeanDecoder:
    """A decoder's weights with the tables that its passes share.

    Args:
        model: the library's model, its adapter merged (or in 4-bit).
        max_positions: longest sequence, in tokens.
        int16: multiply by whole numbers, for float32 on a CPU (`engine.serving.products`).

    Raises:
        ImportError: int16 where no loops can be compiled.
    """

    def __init__(self, model: Any, max_positions: int, *, int16: bool = False) -> None:
        config = model.config
        heads = int(config.num_attention_heads)
        kv_heads = int(config.num_key_value_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self.shape = Shape(int(config.num_hidden_layers), kv_heads, heads // kv_heads, head_dim)
        self.device = model.model.embed_tokens.weight.device
        self.dtype: torch.dtype = model.model.norm.weight.dtype
        self.hidden_size = int(config.hidden_size)
        self.vocabulary = int(model.model.embed_tokens.weight.shape[0])
        self._eps = float(config.rms_norm_eps)
        self.model = model
        self.int16 = int16
        self.weights = gather_weights(model, int16=int16)
        positions_1T = torch.arange(max_positions, device=self.device)[None]
        probe = torch.zeros(1, dtype=self.dtype, device=self.device)
        with torch.inference_mode():
            cos_1TD, sin_1TD = model.model.rotary_emb(probe, positions_1T)
        half = head_dim // 2
        sin_TD = sin_1TD[0].clone()
        sin_TD[:, :half].neg_()  # so that a rotation is a swap of halves and two products
        self._cos_T1D, self._sin_T1D = cos_1TD[0][:, None], sin_TD[:, None]
        self.compiled = self._compile((cos_1TD[0], sin_TD))

    def _compile(self, tables: tuple[torch.Tensor, torch.Tensor]) -> CompiledForward | None:
        try:
            return CompiledForward(
                self.weights, tables, eps=self._eps, head_dim=self.shape.head_dim
            )
        except (ImportError, ValueError) as exc:
            logger.info("tensor operators alone: %s", exc)
            return None

    def forward(
        self,
        ids_N: torch.Tensor,
        positions_N: torch.Tensor,
        attention: Attention,
        *,
        tap: Tap | None = None,
        keeper: Keeper | None = None,
    ) -> torch.Tensor | None:
        """Feed N ids.

        Args:
            ids_N: ids.
            positions_N: their places in their sequences.
            attention: the caches behind them; it grows by these rows.
            tap: whom to show a layer's output to.
            keeper: takes the last layer's keys and values, where these are all that is wanted of it.

        Returns:
            The last norm's output, (N, H); None where there is a keeper.
        """
        if self.compiled:
            return self._forward_compiled(self.compiled, ids_N, positions_N, attention, tap, keeper)
        weights = self.weights
        shape, eps, width = self.shape, self._eps, (self.hidden_size,)
        queries = shape.kv_heads * shape.groups
        rotated, heads = queries + shape.kv_heads, queries + 2 * shape.kv_heads
        half = shape.head_dim // 2
        cos_N1D, sin_N1D = self._cos_T1D[positions_N], self._sin_T1D[positions_N]
        hidden_NH = F.embedding(ids_N, weights.embedding_VH)
        count, final = hidden_NH.shape[0], len(weights.layers) - 1
        for index, layer in enumerate(weights.layers):
            normed_NH = F.rms_norm(hidden_NH, width, layer.attention_norm_H, eps)
            joined = layer.query_key_value(normed_NH).view(count, heads, shape.head_dim)
            turning = joined[:, :rotated]
            swapped = torch.cat((turning[..., half:], turning[..., :half]), dim=-1)
            turned = torch.addcmul(turning * cos_N1D, swapped, sin_N1D)
            if index == final and keeper:
                keeper.keep(index, turned[:, queries:], joined[:, rotated:])
                return None
            read = attention.attend(
                index, turned[:, :queries], turned[:, queries:], joined[:, rotated:]
            )
            hidden_NH = hidden_NH + layer.output(read)
            normed_NH = F.rms_norm(hidden_NH, width, layer.mlp_norm_H, eps)
            gate, up = layer.gate_up(normed_NH).chunk(2, dim=-1)
            hidden_NH = hidden_NH + layer.down(F.silu(gate) * up)
            if tap and index + 1 == tap.layer:
                tap.show(hidden_NH)
        return F.rms_norm(hidden_NH, width, weights.norm_H, eps)

    def _forward_compiled(
        self,
        compiled: CompiledForward,
        ids_N: torch.Tensor,
        positions_N: torch.Tensor,
        attention: Attention,
        tap: Tap | None,
        keeper: Keeper | None,
    ) -> torch.Tensor | None:
        shape, positions = self.shape, positions_N.numpy()
        queries = shape.kv_heads * shape.groups
        rotated, heads = queries + shape.kv_heads, queries + 2 * shape.kv_heads

        final = shape.layers - 1

        def attend(index: int, joined: torch.Tensor) -> torch.Tensor | None:
            compiled.rotate(joined, positions, rotated)
            parts = joined.view(len(joined), heads, shape.head_dim)
            key_NHD, value_NHD = parts[:, queries:rotated], parts[:, rotated:]
            if index == final and keeper:
                keeper.keep(index, key_NHD, value_NHD)
                return None
            return attention.attend(index, parts[:, :queries], key_NHD, value_NHD)

        return compiled.run(ids_N, attend, tap=tap)

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return the logits after each of N rows, (N, V), in the model's type."""
        return self.weights.head(hidden_NH)
