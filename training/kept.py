"""Arrays by key in an .npz file: what took long to read is read once.

The file is written whole or not at all, some rows at a time, so that a run that is stopped goes on
where it was. Knows nothing of models or prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from training.processes import is_first


class KeptArrays:
    """Arrays of one shape by key, all of one maker.

    Of several processes that train together the first alone writes.

    Args:
        path: of the file, read now and written as arrays are made; None keeps them in memory only.
        maker: says what they were made with; those of another maker are forgotten.
        save_every: a stop loses at most so many arrays.
    """

    def __init__(self, path: Path | None, maker: str, *, save_every: int) -> None:
        self._path = path
        self._maker = maker
        self._save_every = save_every
        self._held: dict[str, np.ndarray] = {}
        if path is not None and path.is_file():
            with np.load(path) as stored:
                if "maker" in stored and str(stored["maker"]) == maker:
                    keys = (str(key) for key in stored["keys"])
                    self._held = dict(zip(keys, stored["arrays"], strict=True))

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __getitem__(self, key: str) -> np.ndarray:
        return self._held[key]

    def read(
        self, keys: Sequence[str], make: Callable[[Sequence[str]], np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return the arrays by key; `make` is asked for those that are new, in the keys' order."""
        new = [key for key in dict.fromkeys(keys) if key not in self._held]
        for start in range(0, len(new), self._save_every):
            part = new[start : start + self._save_every]
            self._held.update(zip(part, make(part), strict=True))
            self._save()
        return {key: self._held[key] for key in keys}

    def _save(self) -> None:
        if self._path is None or not is_first():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".part.npz")
        np.savez(
            fresh,
            maker=self._maker,
            keys=np.array(list(self._held)),
            arrays=np.stack(list(self._held.values())),
        )
        fresh.replace(self._path)


def key_of(ids: Sequence[int]) -> str:
    """Return the key of a sequence of token ids."""
    return hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).hexdigest()
