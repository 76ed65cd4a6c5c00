"""Sentence vectors of the rows, kept on disk: every command asks for them, and only new ones take time.

A processor without matrix units needs minutes for some thousand sentences. Vectors are kept by text
and embedder, so a changed row costs one sentence. Knows nothing of rows or labels.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.embed import Embedder, Vectors
from training.kept import KeptArrays

logger = logging.getLogger(__name__)

# So many new texts at once are worth a write to disk; a few are left to the embedder's own memory.
_WORTH_KEEPING = 64
# Texts between two writes, and between two moves of the bar.
_SAVE_EVERY, _STEP = 2048, 128


class KeptVectors:
    """An embedder that keeps what it made; `id` and `dim` are those of the one that makes it.

    Args:
        embedder: is asked for new texts.
        path: of an .npz file; one that is broken or of another embedder is written anew.
    """

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self._embedder = embedder
        self.id = embedder.id
        self.dim = embedder.dim
        try:
            self._kept = KeptArrays(path, embedder.id, save_every=_SAVE_EVERY)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
            logger.warning("%s cannot be read (%s): its vectors are made again", path, exc)
            path.unlink(missing_ok=True)
            self._kept = KeptArrays(path, embedder.id, save_every=_SAVE_EVERY)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector a text, float32, shape (len(texts), dim)."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        by_key = {_key(text): text for text in texts}
        new = [key for key in by_key if key not in self._kept]
        if len(new) < _WORTH_KEEPING:
            made = self._embedder.encode([by_key[key] for key in new])
            found = dict(zip(new, made, strict=True))
        else:
            found = self._kept.read(new, lambda part: self._make([by_key[key] for key in part]))
        found |= {key: self._kept[key] for key in by_key if key not in found}
        return np.stack([found[_key(text)] for text in texts])

    def _make(self, texts: Sequence[str]) -> np.ndarray:
        made = np.zeros((len(texts), self.dim), dtype=np.float32)
        # By length: the library fills a batch up to its longest text.
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        with tqdm(total=len(texts), desc="reading sentences", unit="text") as bar:
            for start in range(0, len(order), _STEP):
                part = order[start : start + _STEP]
                made[part] = self._embedder.encode([texts[at] for at in part])
                bar.update(len(part))
        return made


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
