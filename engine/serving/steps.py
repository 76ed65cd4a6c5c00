"""One decoding step of a batch: an id of each line in, the logits after it out; and with it what turns
that join have to read before their first word.

    TorchStep   tensor operators alone: any device, any architecture that the lean forward serves
    WholeStep   matrix products as prompts have them, the rest in compiled loops: many lines on a CPU
    Int8Step    int8 matrices, all of it in compiled loops: few lines on a CPU, or any number of them
                where it has matrix units for int8

At few lines a step's time goes into reading the weights and starting operators, at many into products,
which a processor's matrix units do best in bfloat16. Which form decodes how many lines is measured
(`engine.serving.tuning`). Prompts are read by the lean forward whatever the form.

A joining turn's decision in words is some twenty ids: read by itself it costs as much as a step, since
both wait for the weights; read along with a step it costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from engine.serving.caches import Batch, BatchCache, LineCaches, RowCache, Together
from engine.serving.forward import CompiledForward, as_array, bits_of
from engine.serving.products import POOL, padded, quantise_rows

if TYPE_CHECKING:
    from engine.serving.lean import LeanDecoder
    from engine.serving.loops import Array, Matrix, Places

Form = Literal["whole", "int8"]
FORMS: tuple[Form, ...] = ("whole", "int8")
# (most lines, form), ascending; the last one, of 0 lines, serves any number.
Forms = tuple[tuple[int, Form], ...]


@dataclass(frozen=True)
class Entry:
    """A sequence outside the batch and the ids that it is to read; they must fit into its cache."""

    row: RowCache
    ids: Sequence[int]


class Step(Protocol):
    """A way of taking a step."""

    bytes: int

    def batch(self) -> Batch:
        """Return an empty batch of the kind that this step decodes."""

    def logits(
        self, ids_B: torch.Tensor, batch: Any, entries: Sequence[Entry] = ()
    ) -> torch.Tensor:
        """Feed one id of each line of `batch`, and all ids of each entry; their caches grow.

        Returns:
            Logits after each line and then after each entry, (B + entries, V), of any float type; the
            caller's to change, until the next step.
        """


@dataclass(frozen=True)
class Steps:
    """The forms that serve, and which of them decodes how many lines.

    Args:
        forms: see `Forms`.
        by_form: a step each.
    """

    forms: Forms
    by_form: Mapping[Form, Step]

    def form(self, rows: int) -> Form:
        """Return the form that decodes so many lines, or takes in so many ids."""
        return next((form for most, form in self.forms[:-1] if rows <= most), self.forms[-1][1])

    def batch(self) -> Batch:
        """See `Step`."""
        return next(iter(self.by_form.values())).batch()

    def logits(
        self, ids_B: torch.Tensor, batch: Batch, entries: Sequence[Entry] = ()
    ) -> torch.Tensor:
        """See `Step`."""
        rows = len(batch) + sum(len(one.ids) for one in entries)
        return self.by_form[self.form(rows)].logits(ids_B, batch, entries)


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
    """The lean forward with a row each line, and one each id of what enters."""

    def __init__(self, decoder: LeanDecoder) -> None:
        self._decoder = decoder
        self.bytes = decoder.weights.bytes

    def batch(self) -> BatchCache:
        """See `Step`."""
        return BatchCache(self._decoder.shape, self._decoder.dtype, self._decoder.device)

    def logits(
        self, ids_B: torch.Tensor, batch: BatchCache, entries: Sequence[Entry] = ()
    ) -> torch.Tensor:
        """See `Step`."""
        positions = torch.cat([batch.begin(), *_begin(entries)])
        attention = Together(batch, [(one.row, len(one.ids)) for one in entries])
        hidden_NH = self._decoder.forward(_fed(ids_B, entries), positions, attention)
        assert hidden_NH is not None  # the last norm's output is wanted
        batch.finish()
        _finish(entries)
        return self._decoder.logits(hidden_NH[_ends(len(batch), entries)])


class WholeStep:
    """Matrix products as prompts have them; norms, rotation, attention and gate compiled."""

    def __init__(self, decoder: LeanDecoder, compiled: CompiledForward) -> None:
        self._decoder, self._compiled = decoder, compiled
        self.bytes = decoder.weights.bytes

    def batch(self) -> LineCaches:
        """See `Step`."""
        return LineCaches()

    def logits(
        self, ids_B: torch.Tensor, batch: LineCaches, entries: Sequence[Entry] = ()
    ) -> torch.Tensor:
        """See `Step`."""
        compiled, shape = self._compiled, self._decoder.shape
        queries = shape.kv_heads * shape.groups
        rows, ids_N = _rows(batch, entries), _fed(ids_B, entries)
        places, scores_PT = _places(compiled, rows, queries)
        read = torch.empty(len(ids_N), queries * shape.head_dim, dtype=compiled.dtype)
        read_NQ, parts = bits_of(read), torch.get_num_threads()
        like = bits_of(torch.empty(0, dtype=compiled.dtype))

        def attend(index: int, joined: torch.Tensor) -> torch.Tensor:
            compiled.loops.attend(
                bits_of(joined), shape.kv_heads, index, places, scores_PT, read_NQ, like, parts
            )
            return read

        hidden_NH = compiled.run(ids_N, attend)
        assert hidden_NH is not None  # `attend` always returns something
        batch.finish()
        _finish(entries)
        return self._decoder.logits(hidden_NH[_ends(len(batch), entries)])


class Int8Step:
    """All compiled, on a copy of the matrices in int8 with one scale a row.

    A line's activations are int16 in effect, so what is rounded is the weights. Matrix units and
    vectors add up the same whole numbers.

    Args:
        decoder: whose matrices they are.
        compiled: its loops.
        tiles: multiply by matrix units; None: where there are any.

    Raises:
        ValueError: the matrices are quantised already, or of a width that the loops do not serve.
    """

    def __init__(
        self, decoder: LeanDecoder, compiled: CompiledForward, *, tiles: bool | None = None
    ) -> None:
        self._compiled, self._loops = compiled, compiled.loops
        self._tiles = self._loops.have_tiles() if tiles is None else tiles
        self._kv_heads = decoder.shape.kv_heads
        self._queries = decoder.shape.kv_heads * decoder.shape.groups
        self._read = self._queries * decoder.shape.head_dim
        model = decoder.model
        self._inner = int(model.config.intermediate_size)
        if self._inner % self._loops.PANEL_ROWS:
            raise ValueError(f"int8 needs an inner width of a multiple of {self._loops.PANEL_ROWS}")
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
        self._logits_WV = np.empty((0, len(self._head.scale)), np.float32)
        read = self._layers
        matrices = (self._head, read.query_key_value, read.output, read.gate_up, read.down)
        self.bytes = sum(int(one.whole.nbytes + one.scale.nbytes) for one in matrices)

    def batch(self) -> LineCaches:
        """See `Step`."""
        return LineCaches()

    def logits(
        self, ids_B: torch.Tensor, batch: LineCaches, entries: Sequence[Entry] = ()
    ) -> torch.Tensor:
        """See `Step`."""
        loops, layers, inner = self._loops, self._layers, self._inner
        rows, wanted_W = _rows(batch, entries), np.array(_ends(len(batch), entries))
        places, scores_PT = _places(self._compiled, rows, self._queries)
        with POOL:
            hidden_NH, parts = self._compiled.start(_fed(ids_B, entries))
            count, hidden = hidden_NH.shape
            floats = (hidden, layers.bias.shape[1], self._read, 2 * inner, inner, hidden)
            scratch = loops.Scratch(
                (*(np.empty((count, width), np.float32) for width in floats), scores_PT),
                tuple(self._wholes(count, width) for width in (hidden, self._read, inner)),
                np.empty(count, np.float32),
            )
            logits_WV = self._room_for(len(wanted_W))
            loops.step_int8(
                hidden_NH,
                layers,
                wanted_W,
                self._norm_H,
                self._head,
                self._kv_heads,
                places,
                scratch,
                bits_of(torch.empty(0, dtype=self._compiled.dtype)),
                logits_WV,
                self._compiled.eps,
                parts,
            )
        batch.finish()
        _finish(entries)
        return torch.from_numpy(logits_WV)

    def _room_for(self, count: int) -> Array:
        """Return room for so many rows of logits: megabytes that the system would clear every time."""
        if len(self._logits_WV) < count:
            self._logits_WV = np.empty((count, len(self._head.scale)), np.float32)
        return self._logits_WV[:count]

    def _wholes(self, count: int, width: int) -> Array:
        """Return room for so many lines as whole numbers."""
        lanes = self._loops.LANES
        width = -(-width // lanes) * lanes
        if self._tiles:
            return np.empty((2, count, width), np.int8)
        return np.empty((count + self._loops.LINES, width), np.int16)

    def _matrices(self, layers: Sequence[tuple[Any, ...]]) -> Matrix:
        """Quantise one kind of matrix of all layers, a layer at a time."""
        made = [self._matrix(*modules) for modules in layers]
        return self._loops.Matrix(
            np.stack([one.whole for one in made]), np.stack([one.scale for one in made])
        )

    def _matrix(self, *modules: Any) -> Matrix:
        if not all(type(module) is torch.nn.Linear for module in modules):
            raise ValueError("weights that are quantised already cannot be packed again")
        whole, scale_N = quantise_rows([module.weight for module in modules])
        whole_NK = padded(whole.numpy(), self._loops.LANES)
        lay_out = self._loops.as_tiles if self._tiles else self._loops.as_panels
        return self._loops.Matrix(lay_out(whole_NK), scale_N.numpy())


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


def _rows(batch: LineCaches, entries: Sequence[Entry]) -> list[tuple[RowCache, int]]:
    """Return the cache of each id that is fed, and its place there."""
    lines = [(row, row.length) for row in batch.rows]
    return lines + [(one.row, one.row.length + at) for one in entries for at in range(len(one.ids))]


def _places(
    compiled: CompiledForward, rows: Sequence[tuple[RowCache, int]], queries: int
) -> tuple[Places, Array]:
    """Return where the rows stand, and scratch for their scores.

    Raises:
        IndexError: a cache has no room for a row.
    """
    address_B2 = np.zeros((len(rows), 2), dtype=np.int64)
    room_B2, border_B = np.zeros_like(address_B2), np.zeros(len(rows), dtype=np.int64)
    for index, (row, _) in enumerate(rows):
        for which, part in enumerate((row.shared, row.data)):
            if part is not None:
                address_B2[index, which], room_B2[index, which] = part.data_ptr(), part.shape[3]
        border_B[index] = row.border
    lengths_B = np.array([place for _, place in rows], dtype=np.int64)
    if np.any(lengths_B >= border_B + room_B2[:, 1]):
        raise IndexError("a line has no room for a further token")
    scores_PT = np.empty((len(rows) * queries, int(lengths_B.max()) + 1), np.float32)
    places = compiled.loops.Places(
        address_B2, room_B2, border_B, lengths_B, compiled.cos_TD, compiled.sin_TD
    )
    return places, scores_PT


def _fed(ids_B: torch.Tensor, entries: Sequence[Entry]) -> torch.Tensor:
    """Return the lines' ids and behind them those of the entries."""
    more = [torch.tensor(list(one.ids), device=ids_B.device) for one in entries]
    return torch.cat([ids_B, *more])


def _begin(entries: Sequence[Entry]) -> list[torch.Tensor]:
    return [one.row.begin(len(one.ids)) for one in entries]


def _finish(entries: Sequence[Entry]) -> None:
    for one in entries:
        one.row.finish(len(one.ids))


def _ends(lines: int, entries: Sequence[Entry]) -> list[int]:
    """Return the rows that a token is chosen after: each line's, and the last of each entry."""
    ends = accumulate((len(one.ids) for one in entries), initial=lines)
    return [*range(lines), *(end - 1 for end in list(ends)[1:])]
