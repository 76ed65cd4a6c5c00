"""A decoder's weights as the lean forward multiplies by them: projections of one input are one matrix.

Takes the library's modules; no plain matrix is held twice, but on a CPU in bfloat16 a copy of each lies
beside it as the matrix units read it. Knows nothing of caches or turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Multiply = Callable[[torch.Tensor], torch.Tensor]

# Rows of a product that a packed matrix's layout is chosen for: a slice of a prompt.
_USUAL_ROWS = 128


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


def gather_weights(model: Any) -> DecoderWeights:
    """Take a causal language model's weights, and share them with it.

    Args:
        model: of Llama or Qwen2 type, adapter merged, or in 4-bit with its modules kept as they are.
    """
    packer = _Packer()
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
    def __init__(self) -> None:
        self.bytes = 0

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
        self.bytes += weight_NK.numel() * weight_NK.element_size()
        return packed_product(weight_NK, bias_N) or (lambda rows: F.linear(rows, weight_NK, bias_N))


def packed_product(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Multiply | None:
    """Return the product with a copy of the matrix that lies as this processor's matrix units read it.

    A plain matrix is laid out anew for every product, which is a third of the time for a prompt of a
    hundred tokens. None where that is not to be had: on a GPU, in float32, without oneDNN.
    """
    if weight_NK.device.type != "cpu" or weight_NK.dtype is not torch.bfloat16:
        return None
    probe = torch.ones(_USUAL_ROWS, weight_NK.shape[1], dtype=weight_NK.dtype)
    try:
        pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        packed = pack(weight_NK.contiguous(), _USUAL_ROWS)
        found = multiply(probe, packed, bias_N, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    if not torch.allclose(found, F.linear(probe, weight_NK, bias_N), rtol=0.02, atol=0.02):
        return None
    return lambda rows: multiply(rows, packed, bias_N, "none", [], "")


def _held(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
