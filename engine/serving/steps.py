"""One decoding step of a batch: an id of each line in, the logits after it out.

    TorchStep   tensor operators alone: any device, any architecture that the lean forward serves
    WholeStep   matrix products by torch, the rest in compiled loops: many lines on a CPU
    Int8Step    int8 matrices, all of it in compiled loops: few lines on a CPU

At few lines a step's time goes into reading the weights and starting operators, at many into products,
which a processor's matrix units do best in bfloat16. Which form decodes how many lines is measured
(`engine.serving.tuning`). Prompts are read by the lean forward whatever the form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from engine.serving.caches import BatchCache
from engine.serving.forward import POOL, CompiledForward, as_array, bits_of

if TYPE_CHECKING:
    from engine.serving.lean import LeanDecoder
    from engine.serving.loops import Array, Matrix, Places

Form = Literal["whole", "int8"]
FORMS: tuple[Form, ...] = ("whole", "int8")
# (most lines, form), ascending; the last one, of 0 lines, serves any number.
Forms = tuple[tuple[int, Form], ...]


class Step(Protocol):
    """A way of taking a step."""

    bytes: int

    def logits(self, ids_B: torch.Tensor, batch: BatchCache) -> torch.Tensor:
        """Feed one id of each line of `batch`, which grows by it; return (B, V), of any float type."""


@dataclass(frozen=True)
class Steps:
    """The forms that serve, and which of them decodes how many lines.

    Args:
        forms: see `Forms`.
        by_form: a step each.
    """

    forms: Forms
    by_form: Mapping[Form, Step]

    def form(self, lines: int) -> Form:
        """Return the form that decodes so many lines."""
        return next((form for most, form in self.forms[:-1] if lines <= most), self.forms[-1][1])

    def logits(self, ids_B: torch.Tensor, batch: BatchCache) -> torch.Tensor:
        """See `Step`."""
        return self.by_form[self.form(len(batch))].logits(ids_B, batch)


def make_steps(decoder: LeanDecoder, forms: Forms = ((0, "whole"),)) -> Steps:
    """Return steps of the forms that are named; see `make_step` for what it raises."""
    return Steps(forms, {form: make_step(form, decoder) for form in {name for _, name in forms}})


def make_step(form: Form, decoder: LeanDecoder) -> Step:
    """Return the step of that form.

    Raises:
        ValueError: int8 asked for matrices that are not plain ones, or where no loops can be compiled.
    """
    if form == "int8":
        if decoder.compiled is None:
            raise ValueError("int8 needs compiled loops")
        return Int8Step(decoder, decoder.compiled)
    return WholeStep(decoder, decoder.compiled) if decoder.compiled else TorchStep(decoder)


class TorchStep:
    """The lean forward with a row each line."""

    def __init__(self, decoder: LeanDecoder) -> None:
        self._decoder = decoder
        self.bytes = decoder.weights.bytes

    def logits(self, ids_B: torch.Tensor, batch: BatchCache) -> torch.Tensor:
        """See `Step`."""
        positions = batch.begin()
        hidden_BH, _ = self._decoder.forward(ids_B, positions, batch)
        batch.finish()
        return self._decoder.logits(hidden_BH)


class WholeStep:
    """Matrix products in the model's type by torch; norms, rotation, attention and gate compiled."""

    def __init__(self, decoder: LeanDecoder, compiled: CompiledForward) -> None:
        self._decoder, self._compiled = decoder, compiled
        self.bytes = decoder.weights.bytes

    def logits(self, ids_B: torch.Tensor, batch: BatchCache) -> torch.Tensor:
        """See `Step`."""
        compiled, shape = self._compiled, self._decoder.shape
        queries = shape.kv_heads * shape.groups
        read = torch.empty(len(ids_B), queries * shape.head_dim, dtype=compiled.dtype)
        places, scores_PT = _places(compiled, batch, queries)
        read_BQ, parts = bits_of(read), torch.get_num_threads()

        def attend(index: int, joined: torch.Tensor) -> torch.Tensor:
            cache = bits_of(batch.layers[index])
            compiled.loops.attend(bits_of(joined), cache, places, scores_PT, read_BQ, parts)
            return read

        hidden_BH, _ = compiled.run(ids_B, attend)
        batch.finish()
        return self._decoder.logits(hidden_BH)


class Int8Step:
    """All compiled, on a copy of the matrices in int8 with one scale a row.

    Raises:
        ValueError: the matrices are quantised already.
    """

    def __init__(self, decoder: LeanDecoder, compiled: CompiledForward) -> None:
        self._compiled, self._loops = compiled, compiled.loops
        self._queries = decoder.shape.kv_heads * decoder.shape.groups
        self._read = self._queries * decoder.shape.head_dim
        model = decoder.model
        self._inner = int(model.config.intermediate_size)
        layers = model.model.layers
        self._layers = self._loops.Layers(
            attention_norm=_stack(layer.input_layernorm.weight for layer in layers),
            query_key_value=self._matrices([_projections(layer) for layer in layers]),
            bias=_stack(_bias(_projections(layer)) for layer in layers),
            output=self._matrices([(layer.self_attn.o_proj,) for layer in layers]),
            mlp_norm=_stack(layer.post_attention_layernorm.weight for layer in layers),
            gate_up=self._matrices([(layer.mlp.gate_proj, layer.mlp.up_proj) for layer in layers]),
            down=self._matrices([(layer.mlp.down_proj,) for layer in layers]),
        )
        self._norm_H = as_array(model.model.norm.weight)
        self._head = self._matrix(model.lm_head)
        read = self._layers
        matrices = (self._head, read.query_key_value, read.output, read.gate_up, read.down)
        self.bytes = sum(int(one.whole.nbytes + one.scale.nbytes) for one in matrices)

    def logits(self, ids_B: torch.Tensor, batch: BatchCache) -> torch.Tensor:
        """See `Step`."""
        loops, layers, inner = self._loops, self._layers, self._inner
        places, scores_PT = _places(self._compiled, batch, self._queries)
        with POOL:
            hidden_BH, parts = self._compiled.start(ids_B)
            count, hidden = hidden_BH.shape
            floats = (hidden, layers.bias.shape[1], self._read, 2 * inner, inner, hidden)
            wholes = (hidden, self._read, inner)
            scratch = loops.Scratch(
                (*(np.empty((count, width), np.float32) for width in floats), scores_PT),
                tuple(np.empty((count, self._padded(width)), np.int16) for width in wholes),
                np.empty(count, np.float32),
            )
            logits_BV = np.empty((count, len(self._head.scale)), np.float32)
            loops.step_int8(
                hidden_BH,
                layers,
                self._norm_H,
                self._head,
                tuple(bits_of(cache) for cache in batch.layers),
                places,
                scratch,
                logits_BV,
                self._compiled.eps,
                parts,
            )
        batch.finish()
        return torch.from_numpy(logits_BV)

    def _matrices(self, layers: Sequence[tuple[Any, ...]]) -> Matrix:
        """Quantise one kind of matrix of all layers, a layer at a time."""
        made = [self._matrix(*modules) for modules in layers]
        return self._loops.Matrix(
            np.stack([one.whole for one in made]), np.stack([one.scale for one in made])
        )

    def _matrix(self, *modules: Any) -> Matrix:
        if not all(type(module) is torch.nn.Linear for module in modules):
            raise ValueError("weights that are quantised already cannot be packed again")
        whole_NK, scale_N = quantise_rows([module.weight for module in modules])
        width = whole_NK.shape[1]
        # NumPy asks the system for large pages, which a product that runs through them needs.
        padded_NK = np.zeros((len(whole_NK), self._padded(width)), np.int8)
        padded_NK[:, :width] = whole_NK.numpy()
        return self._loops.Matrix(padded_NK, scale_N.numpy())

    def _padded(self, width: int) -> int:
        lanes = self._loops.LANES
        return -(-width // lanes) * lanes


def quantise_rows(weights_NK: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the int8 matrix (N, K) nearest to the joined rows, and its scales (N,) in float32."""
    weight_NK = torch.cat([one.detach().float() for one in weights_NK])
    scale_N = weight_NK.abs().amax(dim=1).clamp(min=1e-8) / 127.0
    return (weight_NK / scale_N[:, None]).round().to(torch.int8), scale_N


def _projections(layer: Any) -> tuple[Any, Any, Any]:
    attention = layer.self_attn
    return attention.q_proj, attention.k_proj, attention.v_proj


def _bias(modules: Sequence[Any]) -> torch.Tensor:
    return torch.cat(
        [
            torch.zeros(one.out_features) if one.bias is None else one.bias.detach().float()
            for one in modules
        ]
    )


def _stack(tensors: Iterable[torch.Tensor]) -> Array:
    return np.stack([as_array(one) for one in tensors])


def _places(compiled: CompiledForward, batch: BatchCache, queries: int) -> tuple[Places, Array]:
    """Return where the lines stand, and scratch for their scores."""
    lengths_B = np.array(batch.lengths, dtype=np.int64)
    scores_PT = np.empty((len(lengths_B) * queries, int(lengths_B.max()) + 1), np.float32)
    return compiled.loops.Places(lengths_B, compiled.cos_TD, compiled.sin_TD), scores_PT
