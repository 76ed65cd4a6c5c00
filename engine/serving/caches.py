"""Keys and values: of one sequence while its prompt is read, and of a batch while it is decoded.

    RowCache   one sequence, of a fixed room; slices of a prompt are appended
    BatchCache many sequences side by side; each step appends one id to every one of them

A sequence's rows are copied from the one into the other when it joins the batch, so that a step never
has to gather. Knows nothing of models, prompts or turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from engine.serving.lean import Shape


class RowCache:
    """Keys and values of one sequence, shape (layers, 2, kv heads, room, head width).

    Args:
        shape: of the model.
        room: tokens that it can hold.
        dtype, device: of the model.
    """

    def __init__(
        self, shape: Shape, room: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.shape = shape
        self.data = torch.empty(
            shape.layers, 2, shape.kv_heads, room, shape.head_dim, dtype=dtype, device=device
        )
        self.length = 0
        self._mask: torch.Tensor | None = None

    @property
    def room(self) -> int:
        """Tokens that it can hold."""
        return int(self.data.shape[3])

    @property
    def bytes(self) -> int:
        """Bytes that it occupies."""
        return self.data.numel() * self.data.element_size()

    def take(self, stored: torch.Tensor) -> None:
        """Append keys and values of further tokens, shape (layers, 2, kv heads, T, head width)."""
        end = self.length + stored.shape[3]
        self.data[:, :, :, self.length : end].copy_(stored)
        self.length = end

    def part(self, start: int, end: int) -> torch.Tensor:
        """Return a copy of the tokens from `start` to `end`."""
        return self.data[:, :, :, start:end].clone()

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
        count = query_NHD.shape[0]
        start, end = self.length, self.length + count
        keys, values = self.data[layer, 0], self.data[layer, 1]
        keys[:, start:end].copy_(key_NHD.transpose(0, 1))
        values[:, start:end].copy_(value_NHD.transpose(0, 1))
        shape = self.shape
        # Query heads of one key-value head are further queries to it: nothing has to be repeated.
        query = query_NHD.view(count, shape.kv_heads, shape.groups, shape.head_dim)
        query = query.permute(1, 2, 0, 3).reshape(1, shape.kv_heads, -1, shape.head_dim)
        read = F.scaled_dot_product_attention(
            query, keys[None, :, :end], values[None, :, :end], attn_mask=self._mask
        )
        read = read.view(shape.kv_heads, shape.groups, count, shape.head_dim)
        return read.permute(2, 0, 1, 3).reshape(count, -1)


class BatchCache:
    """Keys and values of many sequences: a layer each, (2, slots, kv heads, room, head width).

    Sequences fill the slots from the first on; where one leaves, the last moves into its place. Slots
    and room grow as they are needed, and all is given back when nobody is there. Layers are held apart,
    so that growing needs one layer's memory twice and not the whole of it.

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
    def layers(self) -> Sequence[torch.Tensor]:
        """Keys and values, a layer each; the first `len` slots are taken."""
        return self._layers

    @property
    def bytes(self) -> int:
        """Bytes that it occupies."""
        return sum(layer.numel() * layer.element_size() for layer in self._layers)

    def join(self, row: RowCache, room: int) -> int:
        """Take a sequence in; return its slot.

        Args:
            row: its keys and values so far.
            room: tokens that it may grow to.
        """
        slot = len(self.lengths)
        self._grow(slot + 1, max(room, row.length))
        for layer, held in zip(self._layers, row.data, strict=True):
            layer[:, slot, :, : row.length].copy_(held[:, :, : row.length])
        self.lengths.append(row.length)
        return slot

    def leave(self, slot: int) -> int:
        """Let the sequence in `slot` go; return the slot that moved into its place (or `slot`)."""
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
        lengths = torch.tensor(self.lengths, device=self._device)
        self._longest = max(self.lengths) + 1
        self._places = lengths
        self._mask = None
        if min(self.lengths) + 1 != self._longest:
            seen = torch.arange(self._longest, device=self._device) <= lengths[:, None]
            self._mask = seen[:, None, None, :]
        return lengths

    def finish(self) -> None:
        """Count the step in, once all layers have seen it."""
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
