"""Keys and values: of one sequence, and of the lines that are decoded together.

    RowCache    one sequence: a shared beginning that is never written, and a part of its own behind it
    LineCaches  the rows of a batch where they lie, for compiled loops on a CPU: nothing is copied
    BatchCache  the rows of a batch side by side in one tensor, for tensor operators: copied in and out

The beginning (an NPC's constant part, two thirds of a prompt) is held once for all who share it, so a
further player costs memory for what is its own, and a step reads it from the processor's cache for all
lines but the first. Knows nothing of models, prompts or turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional as F

from engine.serving.lean import Shape


class RowCache:
    """Keys and values of one sequence, shape (layers, 2, kv heads, tokens, head width).

    Args:
        shape: of the model.
        room: tokens that it can hold of its own.
        dtype, device: of the model.
        behind: beginning that it goes on from, of that shape; it is shared, and never written.
    """

    def __init__(
        self,
        shape: Shape,
        room: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        behind: torch.Tensor | None = None,
    ) -> None:
        self.shape = shape
        self.shared = behind
        self.data = torch.empty(
            shape.layers, 2, shape.kv_heads, room, shape.head_dim, dtype=dtype, device=device
        )
        self.length = self.border
        self._mask: torch.Tensor | None = None

    @property
    def border(self) -> int:
        """Tokens of the shared beginning."""
        return 0 if self.shared is None else int(self.shared.shape[3])

    @property
    def room(self) -> int:
        """Tokens that it can hold, the beginning's included."""
        return self.border + int(self.data.shape[3])

    @property
    def bytes(self) -> int:
        """Bytes that its own part occupies."""
        return self.data.numel() * self.data.element_size()

    def grow(self, room: int) -> None:
        """Make room for `room` tokens in all, where there is less."""
        if room <= self.room:
            return
        own, held = room - self.border, self.length - self.border
        fresh = self.data.new_empty(*self.data.shape[:3], own, self.shape.head_dim)
        fresh[:, :, :, :held].copy_(self.data[:, :, :, :held])
        self.data = fresh

    def take(self, stored: torch.Tensor) -> None:
        """Append keys and values of further tokens, shape (layers, 2, kv heads, T, head width)."""
        start = self.length - self.border
        end = start + stored.shape[3]
        self.data[:, :, :, start:end].copy_(stored)
        self.length += stored.shape[3]

    def begin(self, count: int) -> torch.Tensor:
        """Prepare for `count` ids; return their positions, (count,).

        Raises:
            IndexError: they do not fit.
        """
        if self.length + count > self.room:
            raise IndexError(f"{self.length + count} tokens do not fit into {self.room}")
        device = self.data.device
        positions = torch.arange(self.length, self.length + count, device=device)
        self._mask = None
        if count > 1:
            hidden_TS = positions[:, None] < torch.arange(self.length + count, device=device)
            # As numbers to add: truth values would be turned into them in every layer.
            mask_TS = torch.zeros(hidden_TS.shape, dtype=self.data.dtype, device=device)
            mask_TS.masked_fill_(hidden_TS, float("-inf"))
            self._mask = mask_TS.repeat(self.shape.groups, 1)
        return positions

    def finish(self, count: int) -> None:
        """Count the ids of a pass in, once all layers have seen them."""
        self.length += count

    def attend(
        self, layer: int, query_NHD: torch.Tensor, key_NHD: torch.Tensor, value_NHD: torch.Tensor
    ) -> torch.Tensor:
        """See `Attention`: the N rows are the next ids of this sequence."""
        self.keep(layer, key_NHD, value_NHD)
        count = query_NHD.shape[0]
        end = self.length - self.border + count
        keys, values = self.data[layer, 0, :, :end], self.data[layer, 1, :, :end]
        if self.shared is not None:
            keys = torch.cat([self.shared[layer, 0], keys], dim=1)
            values = torch.cat([self.shared[layer, 1], values], dim=1)
        shape = self.shape
        # Query heads of one key-value head are further queries to it: nothing has to be repeated.
        query = query_NHD.reshape(count, shape.kv_heads, shape.groups, shape.head_dim)
        query = query.permute(1, 2, 0, 3).reshape(1, shape.kv_heads, -1, shape.head_dim)
        read = F.scaled_dot_product_attention(query, keys[None], values[None], attn_mask=self._mask)
        read = read.view(shape.kv_heads, shape.groups, count, shape.head_dim)
        return read.permute(2, 0, 1, 3).reshape(count, -1)

    def keep(self, layer: int, key_NHD: torch.Tensor, value_NHD: torch.Tensor) -> None:
        """See `Attention`."""
        start = self.length - self.border
        end = start + key_NHD.shape[0]
        self.data[layer, 0, :, start:end].copy_(key_NHD.transpose(0, 1))
        self.data[layer, 1, :, start:end].copy_(value_NHD.transpose(0, 1))


class Batch(Protocol):
    """The lines that are decoded together. They fill slots from the first on."""

    def __len__(self) -> int:
        """How many lines there are."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each line so far."""

    @property
    def bytes(self) -> int:
        """Bytes that the lines occupy, shared beginnings not counted."""

    def join(self, row: RowCache, room: int) -> int:
        """Take a sequence in, which may grow to `room` tokens; return its slot."""

    def leave(self, slot: int) -> int:
        """Let the sequence in `slot` go; return the slot that moved into its place (or `slot`)."""

    def finish(self) -> None:
        """Count a step in, once all layers have seen it."""


class LineCaches:
    """The rows of a batch where they lie; see `Batch`."""

    def __init__(self) -> None:
        self.rows: list[RowCache] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each line so far."""
        return [row.length for row in self.rows]

    @property
    def bytes(self) -> int:
        """See `Batch`."""
        return sum(row.bytes for row in self.rows)

    def join(self, row: RowCache, room: int) -> int:
        """See `Batch`; the row is the batch's from here on."""
        row.grow(room)
        self.rows.append(row)
        return len(self.rows) - 1

    def leave(self, slot: int) -> int:
        """See `Batch`."""
        last = len(self.rows) - 1
        self.rows[slot] = self.rows[last]
        self.rows.pop()
        return last

    def finish(self) -> None:
        """See `Batch`."""
        for row in self.rows:
            row.finish(1)


class BatchCache:
    """Keys and values of many sequences: a layer each, (2, slots, kv heads, room, head width).

    Where a sequence leaves, the last moves into its place. Slots and room grow as they are needed, and
    all is given back when nobody is there. Layers are held apart, so that growing needs one layer's
    memory twice and not the whole of it.

    Args:
        shape: of the model.
        dtype, device: of the model.
    """

    _STEP = 32

    def __init__(
        self, shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.shape = shape
        self._dtype, self._device = dtype, device
        self._layers: list[torch.Tensor] = []
        self._slots = self._room = 0
        self.lengths: list[int] = []
        self._places = torch.zeros(0, dtype=torch.long, device=device)
        self._mask: torch.Tensor | None = None
        self._longest = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """See `Batch`; rows without a line count as well."""
        return sum(layer.numel() * layer.element_size() for layer in self._layers)

    def join(self, row: RowCache, room: int) -> int:
        """See `Batch`; the row is copied."""
        slot, border, end = len(self.lengths), row.border, row.length
        self._grow(slot + 1, max(room, end))
        for index, layer in enumerate(self._layers):
            if row.shared is not None:
                layer[:, slot, :, :border].copy_(row.shared[index])
            layer[:, slot, :, border:end].copy_(row.data[index, :, :, : end - border])
        self.lengths.append(end)
        return slot

    def leave(self, slot: int) -> int:
        """See `Batch`."""
        last = len(self.lengths) - 1
        if slot != last:
            held = self.lengths[last]
            for layer in self._layers:
                layer[:, slot, :, :held].copy_(layer[:, last, :, :held])
            self.lengths[slot] = held
        self.lengths.pop()
        if not self.lengths:
            self._layers, self._slots, self._room = [], 0, 0
        return last

    def _grow(self, slots: int, room: int) -> None:
        if slots <= self._slots and room <= self._room:
            return
        if slots > self._slots:  # an eighth more at a time: few copies, little waste
            self._slots = max(slots, self._slots + self._slots // 8)
        if room > self._room:
            self._room = -(-room // self._STEP) * self._STEP
        count, most = len(self.lengths), max(self.lengths, default=0)
        shape = (2, self._slots, self.shape.kv_heads, self._room, self.shape.head_dim)
        former: list[torch.Tensor | None] = [*self._layers] or [None] * self.shape.layers
        self._layers = []
        for index in range(self.shape.layers):
            # Zeros, for what lies behind a sequence's end is masked, but multiplied all the same.
            fresh = torch.zeros(shape, dtype=self._dtype, device=self._device)
            old = former[index]
            if old is not None:
                fresh[:, :count, :, :most].copy_(old[:, :count, :, :most])
            former[index] = None
            self._layers.append(fresh)

    def begin(self) -> torch.Tensor:
        """Prepare for one id of each sequence; return their positions, (sequences,)."""
        lengths = torch.tensor(self.lengths, dtype=torch.long, device=self._device)
        if not self.lengths:
            return lengths
        self._longest = max(self.lengths) + 1
        self._places = lengths
        self._mask = None
        if min(self.lengths) + 1 != self._longest:
            seen = torch.arange(self._longest, device=self._device) <= lengths[:, None]
            self._mask = seen[:, None, None, :]
        return lengths

    def finish(self) -> None:
        """See `Batch`."""
        self.lengths = [length + 1 for length in self.lengths]

    def attend(
        self, layer: int, query_NHD: torch.Tensor, key_NHD: torch.Tensor, value_NHD: torch.Tensor
    ) -> torch.Tensor:
        """See `Attention`: row n is the next id of the sequence in slot n."""
        count, shape = query_NHD.shape[0], self.shape
        keys, values = self._layers[layer][0, :count], self._layers[layer][1, :count]
        if self._mask is None:  # all of one length: one write each
            at = self._longest - 1
            keys[:, :, at].copy_(key_NHD)
            values[:, :, at].copy_(value_NHD)
        else:
            rows = torch.arange(count, device=self._device)
            keys[rows, :, self._places] = key_NHD
            values[rows, :, self._places] = value_NHD
        query = query_NHD.reshape(count, shape.kv_heads, shape.groups, shape.head_dim)
        longest = self._longest
        read = F.scaled_dot_product_attention(
            query, keys[:, :, :longest], values[:, :, :longest], attn_mask=self._mask
        )
        return read.reshape(count, -1)


class Together:
    """Attention of one pass over a step's ids, one a line, and the next ids of other sequences.

    Args:
        batch: the lines, which come first; its `begin` was called.
        entering: the others, each with how many rows are its; `begin` was called for each.
    """

    def __init__(self, batch: BatchCache, entering: Sequence[tuple[RowCache, int]]) -> None:
        self._batch, self._entering = batch, entering

    def attend(
        self, layer: int, query_NHD: torch.Tensor, key_NHD: torch.Tensor, value_NHD: torch.Tensor
    ) -> torch.Tensor:
        """See `Attention`."""
        end = len(self._batch)
        read = []
        if end:
            read.append(self._batch.attend(layer, query_NHD[:end], key_NHD[:end], value_NHD[:end]))
        for row, count in self._entering:
            start, end = end, end + count
            own = (query_NHD[start:end], key_NHD[start:end], value_NHD[start:end])
            read.append(row.attend(layer, *own))
        return torch.cat(read)
