"""Keys and values of prompt beginnings that are worth keeping, up to a limit of memory.

    shared   the constant part of an NPC's stage: the same ids for every player and turn
    own      what a session's last turn had behind that: its next turn often begins alike

An entry is found by its token ids alone, so an edited NPC file or another language simply has other
ids; a cache belongs to one model at one precision and goes with it. What is handed out is never
changed. Least recently used goes first. Knows nothing of models or turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Ids = tuple[int, ...]


@dataclass(frozen=True)
class _Entry:
    ids: Ids
    stored: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.stored.numel() * self.stored.element_size()


@dataclass(frozen=True)
class Found:
    """What is kept of a prompt: its constant part, and the beginning of what comes behind that."""

    shared: torch.Tensor | None = None
    own: torch.Tensor | None = None


class PromptCache:
    """The kept beginnings.

    Args:
        limit_bytes: of all entries together; 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        # One order of use for both kinds: ("shared", ids) and ("own", shared ids, session).
        self._entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, shared: Ids, rest: Ids, session: str, *, most: int, grain: int = 1) -> Found:
        """Return what is kept of a prompt.

        Args:
            shared: the prompt's constant part.
            rest: what comes behind it.
            session: whose prompt it is; "" for nobody's.
            most: of the ids of `rest` that may come from here; the last one must be read anew.
            grain: of `rest` only a multiple of it is taken: in 16 bits a prompt that is cut elsewhere
                is read a little differently, and no decision must hang on what was kept.
        """
        kept = self._use(("shared", shared))
        if kept is None:
            self.misses += 1
            return Found()
        self.hits += 1
        own = self._use(("own", shared, session)) if session else None
        if own is None:
            return Found(kept.stored)
        alike = min(common_length(own.ids, rest), most)
        alike -= alike % grain
        return Found(kept.stored, own.stored[:, :, :, :alike] if alike else None)

    def keep_shared(self, shared: Ids, stored: torch.Tensor) -> None:
        """Keep the constant part of a prompt, (layers, 2, kv heads, T, head width)."""
        self._keep(("shared", shared), _Entry(shared, stored))

    def keep_own(self, shared: Ids, rest: Ids, session: str, stored: torch.Tensor) -> None:
        """Keep what a session's turn had behind `shared`; its former one is dropped."""
        if session:
            self._keep(("own", shared, session), _Entry(rest, stored))

    def _use(self, key: tuple[object, ...]) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def _keep(self, key: tuple[object, ...], entry: _Entry) -> None:
        former = self._entries.pop(key, None)
        if former is not None:
            self.bytes -= former.bytes
        if entry.bytes > self.limit_bytes:
            return
        self._entries[key] = entry
        self.bytes += entry.bytes
        while self.bytes > self.limit_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.bytes


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return index
    return min(len(a), len(b))
