"""Vectors from the embedder, checked, and how far they are from each other.

Knows nothing of the index or of what the texts are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rag.errors import KnowledgeError

Embed = Callable[[Sequence[str]], "NDArray[Any]"]


def checked_vectors(
    embed: Embed, texts: Sequence[str], dimension: int | None
) -> NDArray[np.float32]:
    """Return float32 vectors of shape (texts, dimension); None takes whatever dimension comes.

    Raises:
        KnowledgeError: the embedder failed, or gave another shape or a number that is not finite.
    """
    try:
        vectors = np.asarray(embed(texts), dtype=np.float32)
    except Exception as exc:
        raise KnowledgeError(f"the embedder failed: {exc}") from exc
    fits = vectors.ndim == 2 and len(vectors) == len(texts) and vectors.shape[1] > 0
    if not fits or dimension not in (None, vectors.shape[1]):
        raise KnowledgeError(
            f"the embedder gave shape {vectors.shape}; "
            f"expected ({len(texts)}, {dimension or 'any dimension'})"
        )
    if not np.isfinite(vectors).all():
        raise KnowledgeError("the embedder gave a number that is not finite")
    return vectors


def cosine_distances(query_D: NDArray[Any], vectors_ND: NDArray[Any]) -> NDArray[Any]:
    """Return the cosine distances (N,) of vectors (N, D) from a query (D,), 0 to 2.

    A vector of zeros is at distance 1 from everything. Rounded to what float32 can tell apart, so
    that equal vectors are equally far.
    """
    lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(query_D)
    dots_N = vectors_ND @ query_D
    cosines_N = np.divide(dots_N, lengths_N, out=np.zeros_like(dots_N), where=lengths_N > 0)
    return np.round(np.clip(1.0 - cosines_N, 0.0, 2.0), 6)
