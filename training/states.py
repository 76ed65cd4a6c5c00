"""Hidden states at <STATE> that an adapter reads, kept on disk row by row.

Reading five thousand rows takes a CPU the better part of an hour, so what was read is kept by weights
and prompt: a run that is killed goes on where it was, and a changed row costs one row. Knows nothing of
labels or figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.dataset import Example

# Rows between two writes to disk.
_SAVE_EVERY = 400

Reader = Callable[[Sequence[Example]], np.ndarray]


class StateStore:
    """States by prompt, in an .npz file that is written whole or not at all.

    Args:
        path: of the file; made when there is something to keep.
        weights: says which base and adapter the states are of; those of others are forgotten.
    """

    def __init__(self, path: Path, weights: str) -> None:
        self._path = path
        self._weights = weights
        self._held: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path) as stored:
                if str(stored["weights"]) == weights:
                    keys = (str(key) for key in stored["keys"])
                    self._held = dict(zip(keys, stored["states"], strict=True))

    def read(self, examples: Sequence[Example], reader: Reader) -> np.ndarray:
        """Return the states of all examples, float32, shape (B, H); `reader` is asked for new ones.

        It gets examples that end at <STATE>: what stands behind it has no part in the state.
        """
        keys = [_key(one) for one in examples]
        new = {key: one for key, one in zip(keys, examples, strict=True) if key not in self._held}
        # Rows of one stage side by side: they share a prefix, which is then read once.
        order = sorted(new, key=lambda key: new[key].ids)
        for start in range(0, len(order), _SAVE_EVERY):
            part = order[start : start + _SAVE_EVERY]
            found = reader([until_state(new[key]) for key in part]).astype(np.float32)
            self._held.update(zip(part, found, strict=True))
            self._save()
        return np.stack([self._held[key] for key in keys])

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".part.npz")
        np.savez(
            fresh,
            weights=self._weights,
            keys=np.array(list(self._held)),
            states=np.stack(list(self._held.values())),
        )
        fresh.replace(self._path)


def until_state(one: Example) -> Example:
    """Return an example without what stands behind <STATE>."""
    return replace(one, ids=one.ids[: one.state + 1], reply=one.state + 1)


def _key(one: Example) -> str:
    return hashlib.sha256(np.array(one.ids[: one.state + 1], dtype=np.int64).tobytes()).hexdigest()
