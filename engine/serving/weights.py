"""A decoder's weights as the lean forward multiplies by them: projections of one input are one matrix.

Takes the library's modules; no plain matrix is held twice, but on a CPU a copy of each may lie beside
it as this processor reads it fastest (`engine.serving.products`). Knows nothing of caches or turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.serving.products import Multiply, int16_product, plain_product


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
        embedding_VH: rows of the vocabulary.
        layers: in order.
        norm_H: of the last norm.
        head: hidden state to logits.
        bytes: of all matrices that a step reads.
    """

    embedding_VH: torch.Tensor
    layers: Sequence[LayerWeights]
    norm_H: torch.Tensor
    head: Multiply
    bytes: int


def gather_weights(model: Any, *, int16: bool = False) -> DecoderWeights:
    """Take a causal language model's weights, and share them with it.

    Args:
        model: of Llama or Qwen2 type, adapter merged, or in 4-bit with its modules kept as they are.
        int16: multiply by whole numbers, of which two bytes are read each; for float32 on a CPU.

    Raises:
        ImportError: int16 where no loops can be compiled.
    """
    packer = _Packer(int16=int16)
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
        embedding_VH=model.model.embed_tokens.weight.detach(),
        layers=layers,
        norm_H=model.model.norm.weight.detach(),
        head=head,
        bytes=packer.bytes,
    )


class _Packer:
    def __init__(self, *, int16: bool) -> None:
        self.bytes = 0
        self._int16 = int16

    def join(self, *modules: nn.Module) -> Multiply:
        """Return one map for modules that read the same input."""
        if not all(type(module) is nn.Linear for module in modules):
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
            # The library's modules become views of the joined matrix: no weight is held twice.
            parts = weight_NK.split([module.out_features for module in linear])
            for module, part in zip(linear, parts, strict=True):
                module.weight.data = part
        self.bytes += weight_NK.numel() * (2 if self._int16 else weight_NK.element_size())
        return (int16_product if self._int16 else plain_product)(weight_NK, bias_N)


def _held(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
