"""Sentence vectors that training commands keep on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import WordEmbedder
from training.vectors import KeptVectors

TEXTS = [f"sentence number {number} of a smith" for number in range(80)]


class Counting(WordEmbedder):
    """Counts the texts that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode(self, texts):
        self.asked += texts
        return super().encode(texts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "vectors.npz"


def test_vectors_are_the_embedders_own_in_the_order_of_the_texts(path):
    inner = Counting()
    kept = KeptVectors(inner, path)
    assert (kept.id, kept.dim) == (inner.id, inner.dim)
    said = [*TEXTS, TEXTS[3], "a much longer sentence that comes last but is not read last", "no"]
    assert np.array_equal(kept.encode(said), inner.encode(said))
    assert kept.encode([]).shape == (0, inner.dim)


def test_a_text_is_read_once_whoever_asks_again(path):
    KeptVectors(Counting(), path).encode(TEXTS)
    later = Counting()
    again = KeptVectors(later, path)
    assert np.array_equal(again.encode(TEXTS[::-1]), WordEmbedder().encode(TEXTS[::-1]))
    assert later.asked == []
    mixed = [TEXTS[1], "new one", TEXTS[0]]
    assert np.array_equal(again.encode(mixed), WordEmbedder().encode(mixed))
    assert later.asked == ["new one"]


def test_vectors_of_another_embedder_are_not_used(path):
    KeptVectors(Counting(), path).encode(TEXTS)
    other = Counting()
    other.id = "another"
    KeptVectors(other, path).encode(TEXTS)
    assert sorted(other.asked) == sorted(TEXTS)


def test_a_broken_file_is_made_again_and_said(path, caplog):
    path.parent.mkdir()
    path.write_bytes(b"PK not really")
    inner = Counting()
    KeptVectors(inner, path).encode(TEXTS)
    assert "vectors.npz cannot be read" in caplog.text
    assert sorted(inner.asked) == sorted(TEXTS)
    after = Counting()
    KeptVectors(after, path).encode(TEXTS)
    assert after.asked == []
