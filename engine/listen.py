"""What the heads hear of an utterance: its sentence vector, and its words, counted by hash.

    utterance ─┬─ sentence embedder ──────────────── unit vector ─┐
               ├─ words and pairs of words, hashed ─ unit vector ─┼─ what the heads read beside <STATE>
               └─ letters in runs of 2 to 4, hashed ─ unit vector ┘

A sentence vector of a small model blurs what exactly was asked for ("open the gate", "tell me of the
gate"); counted words keep it apart, and runs of letters do the same for Korean's particles and for
typing mistakes. Hashing needs no list of words, so nothing but the heads' weights has to ship.
Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009.
Knows nothing of heads or flags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer

from engine.embed import Embedder, Vectors
from engine.text import fold

_PLACES = 4096
WORD_SIZE = 2 * _PLACES
"""Numbers that tell an utterance's words: as many places for words as for runs of letters."""

# Part of the id: heads that were trained on other counts must not be given these.
_SUFFIX = f"+words{_PLACES}"

_COUNTERS = tuple(
    HashingVectorizer(
        analyzer=analyzer,
        ngram_range=lengths,
        n_features=_PLACES,
        alternate_sign=False,
        norm="l2",
        lowercase=False,
        dtype=np.float32,
    )
    for analyzer, lengths in (("word", (1, 2)), ("char_wb", (2, 4)))
)


def counted_words(texts: Sequence[str]) -> csr_matrix:
    """Return the words of texts, counted by hash, float32, shape (len(texts), WORD_SIZE).

    Each half of a row is of length 1, or 0 where a text has nothing to count.
    """
    folded = [fold(text) for text in texts]
    return csr_matrix(hstack([counter.transform(folded) for counter in _COUNTERS]))


class Listener:
    """An embedder whose vectors tell the words too; its `id` says so.

    Args:
        embedder: gives the sentence vectors, and is there as `sentences`.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.sentences = embedder
        self.id = embedder.id + _SUFFIX

    @property
    def dim(self) -> int:
        """Length of a vector: the sentence vector's and the words'."""
        return self.sentences.dim + WORD_SIZE

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, float32, shape (len(texts), dim)."""
        words_BK = counted_words(texts).toarray() if texts else np.zeros((0, WORD_SIZE), np.float32)
        return np.hstack([self.sentences.encode(texts), words_BK])


def listener_of(wanted: str, embedder: Embedder) -> Embedder | None:
    """Return what gives vectors of the id `wanted`: `embedder` alone or with words; else None."""
    if embedder.id == wanted:
        return embedder
    listener = Listener(embedder)
    return listener if listener.id == wanted else None
