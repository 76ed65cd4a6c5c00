"""A decoder's weights in the form that the lean forward multiplies by: whole, int8 or int4.

At the size of the embedded base a step spends its time on starting operators and on reading weights, so
projections that share an input are one matrix, and weight-only quantisation halves or quarters what is
read. Takes the library's modules; knows nothing of caches or turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

Storage = Literal["whole", "int8", "int4"]
Multiply = Callable[[torch.Tensor], torch.Tensor]

_GROUP = 32
# The packed int4 kernel works in blocks of so many output rows.
_BLOCK = 32


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; the maps take (N, in) and return (N, out)."""

    attention_norm_H: torch.Tensor
    query_key_value: Multiply
    output: Multiply
    mlp_norm_H: torch.Tensor
    gate_up: Multiply
    down: Multiply


@dataclass(frozen=True)
class DecoderWeights:
    """All that a forward pass reads.

    Args:
        storage: how the matrices are held.
        embedding_VH: rows of the vocabulary.
        layers: in order.
        norm_H: of the last norm.
        head: hidden state to logits.
        bytes: of all matrices that a step reads.
    """

    storage: Storage
    embedding_VH: torch.Tensor
    layers: Sequence[LayerWeights]
    norm_H: torch.Tensor
    head: Multiply
    bytes: int


def gather_weights(model: Any, storage: Storage = "whole") -> DecoderWeights:
    """Take a causal language model's weights; quantised storage is a copy, "whole" shares them.

    Args:
        model: of Llama or Qwen2 type, adapter merged, or in 4-bit with its modules kept as they are.
        storage: "int8" (one scale a row) or "int4" (scale and zero for groups of 32) are weight-only:
            activations stay in the model's type, which must be bfloat16 for them.

    Raises:
        ValueError: the weights cannot be held that way.
    """
    packer = _Packer(storage)
    layers = [
        LayerWeights(
            attention_norm_H=layer.input_layernorm.weight.detach(),
            query_key_value=packer.join(
                layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
            ),
            output=packer.join(layer.self_attn.o_proj),
            mlp_norm_H=layer.post_attention_layernorm.weight.detach(),
            gate_up=packer.join(layer.mlp.gate_proj, layer.mlp.up_proj),
            down=packer.join(layer.mlp.down_proj),
        )
        for layer in model.model.layers
    ]
    head = packer.join(model.lm_head)
    return DecoderWeights(
        storage=storage,
        embedding_VH=model.model.embed_tokens.weight.detach(),
        layers=layers,
        norm_H=model.model.norm.weight.detach(),
        head=head,
        bytes=packer.bytes,
    )


class _Packer:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.bytes = 0

    def join(self, *modules: nn.Module) -> Multiply:
        """Return one map for modules that read the same input."""
        if not all(type(module) is nn.Linear for module in modules):
            if self._storage != "whole":
                raise ValueError("weights that are quantised already cannot be packed again")
            # 4-bit modules, with an adapter beside them or not, multiply in their own way.
            self.bytes += sum(_held(module) for module in modules)
            if len(modules) == 1:
                return modules[0]
            return lambda rows: torch.cat([module(rows) for module in modules], dim=-1)
        linear = [module for module in modules if isinstance(module, nn.Linear)]
        weight_NK = linear[0].weight.detach()
        bias_N = linear[0].bias.detach() if linear[0].bias is not None else None
        if len(linear) > 1:
            weight_NK = torch.cat([module.weight.detach() for module in linear])
            if bias_N is not None:
                bias_N = torch.cat([module.bias.detach() for module in linear])
            if self._storage == "whole":
                # The library's modules become views of the joined matrix: no weight is held twice.
                parts = weight_NK.split([module.out_features for module in linear])
                for module, part in zip(linear, parts, strict=True):
                    module.weight.data = part
        return self._pack(weight_NK, bias_N)

    def _pack(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Multiply:
        storage = self._storage
        if storage == "int4" and (
            weight_NK.shape[1] % _GROUP or weight_NK.shape[0] % _BLOCK or weight_NK.shape[0] > 2**15
        ):
            storage = "int8"  # the vocabulary's rows too: there int4 costs most and saves least
        if storage == "whole":
            self.bytes += weight_NK.numel() * weight_NK.element_size()
            return lambda rows: F.linear(rows, weight_NK, bias_N)
        if weight_NK.dtype is not torch.bfloat16 or weight_NK.device.type != "cpu":
            raise ValueError("int8 and int4 are for bfloat16 on a CPU")
        multiply = self._int8(weight_NK) if storage == "int8" else self._int4(weight_NK)
        if bias_N is None:
            return multiply
        return lambda rows: multiply(rows) + bias_N

    def _int8(self, weight_NK: torch.Tensor) -> Multiply:
        scale_N = weight_NK.float().abs().amax(dim=1).clamp(min=1e-8) / 127.0
        whole_NK = (weight_NK.float() / scale_N[:, None]).round().clamp(-127, 127).to(torch.int8)
        scales = scale_N.to(torch.bfloat16)
        self.bytes += whole_NK.numel() + 2 * scales.numel()
        return lambda rows: torch._weight_int8pack_mm(rows, whole_NK, scales)

    def _int4(self, weight_NK: torch.Tensor) -> Multiply:
        count, width = weight_NK.shape
        grouped = weight_NK.float().view(count, width // _GROUP, _GROUP)
        low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
        scale = ((high - low) / 15.0).clamp(min=1e-8)
        # The kernel computes (q - 8) · scale + middle; middle is rounded before q, so that q mends it.
        scale, middle = scale.to(torch.bfloat16), (low + 8.0 * scale).to(torch.bfloat16)
        levels = (grouped - middle.float()[..., None]) / scale.float()[..., None] + 8.0
        whole_NK = levels.round().clamp(0, 15).to(torch.int32).view(count, width)
        packed = torch._convert_weight_to_int4pack_for_cpu(whole_NK, 1)
        factors = torch.stack([scale, middle], dim=-1).transpose(0, 1).contiguous()
        self.bytes += count * width // 2 + 2 * factors.numel()
        return lambda rows: torch._weight_int4pack_mm_for_cpu(rows, packed, _GROUP, factors)


def _held(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
