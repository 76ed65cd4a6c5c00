"""Hidden states at <STATE> that an adapter reads, kept on disk row by row.

Reading five thousand rows takes a CPU the better part of an hour, so what was read is kept by weights
and prompt: a changed row costs one row. Knows nothing of labels or figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.dataset import Example
from training.kept import KeptArrays, key_of

# Rows between two writes to disk.
_SAVE_EVERY = 400

Reader = Callable[[Sequence[Example]], np.ndarray]


class StateStore:
    """States by prompt.

    Args:
        path: of an .npz file.
        weights: says which base and adapter the states are of; those of others are forgotten.
    """

    def __init__(self, path: Path, weights: str) -> None:
        self._kept = KeptArrays(path, weights, save_every=_SAVE_EVERY)

    def read(self, examples: Sequence[Example], reader: Reader) -> np.ndarray:
        """Return the states of all examples, float32, shape (B, H); `reader` is asked for new ones.

        It gets examples that end at <STATE>: what stands behind it has no part in the state.
        """
        cut = [until_state(one) for one in examples]
        by_key = {key_of(one.ids): one for one in cut}
        # Rows of one stage side by side: they share a prefix, which is then read once.
        order = sorted(by_key, key=lambda key: by_key[key].ids)

        def make(part: Sequence[str]) -> np.ndarray:
            return reader([by_key[key] for key in part]).astype(np.float32)

        found = self._kept.read(order, make)
        return np.stack([found[key_of(one.ids)] for one in cut])


def until_state(one: Example) -> Example:
    """Return an example without what stands behind <STATE>."""
    return replace(one, ids=one.ids[: one.state + 1], reply=one.state + 1)
