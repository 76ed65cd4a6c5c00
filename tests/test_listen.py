"""What the heads hear of an utterance: a sentence vector and counted words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.listen import WORD_SIZE, Listener, counted_words, listener_of
from tests.fakes import WordEmbedder


def lengths(texts: list[str]) -> np.ndarray:
    """Return the lengths of both halves, shape (len(texts), 2)."""
    halves = counted_words(texts).toarray().reshape(len(texts), 2, WORD_SIZE // 2)
    return np.linalg.norm(halves, axis=2)


def test_words_and_letters_are_of_length_one_each() -> None:
    assert lengths(["Open the gate, please.", "문 좀 열어 주세요."]) == pytest.approx(
        np.ones((2, 2))
    )


def test_what_says_nothing_is_heard_as_nothing() -> None:
    assert not lengths(["", "…", "\u200b"])[:, 0].any()


def test_case_width_and_invisible_characters_make_no_difference() -> None:
    plain, typed = counted_words(["open the gate", "ＯPEN the\u200b gate"]).toarray()
    assert np.array_equal(plain, typed)


def test_the_order_of_words_is_heard_and_a_letter_amiss_is_heard_as_near() -> None:
    said, turned, amiss, other = counted_words(
        ["open the gate", "the gate open", "open the gaet", "tell me of your brother"]
    ).toarray()
    assert not np.array_equal(said, turned)
    assert said @ amiss > 2 * (said @ other)


@given(st.text(max_size=200))
def test_any_text_is_counted_alike_alone_and_among_others(text: str) -> None:
    alone, among = counted_words([text]), counted_words(["The sea.", text])[1]
    assert (alone != among).nnz == 0
    assert np.isfinite(alone.toarray()).all()


def test_a_listener_gives_the_sentence_vector_and_the_words_behind_it() -> None:
    embedder = WordEmbedder()
    listener = Listener(embedder)
    texts = ["Good evening.", "The key!"]
    heard = listener.encode(texts)
    assert heard.shape == (2, listener.dim)
    assert heard.dtype == np.float32
    assert np.array_equal(heard[:, : embedder.dim], embedder.encode(texts))
    assert np.array_equal(heard[:, embedder.dim :], counted_words(texts).toarray())
    assert listener.encode([]).shape == (0, listener.dim)


def test_heads_get_what_they_were_trained_on_or_nothing() -> None:
    embedder = WordEmbedder()
    assert listener_of(embedder.id, embedder) is embedder
    found = listener_of(Listener(embedder).id, embedder)
    assert isinstance(found, Listener)
    assert listener_of("another embedder", embedder) is None
    assert listener_of(f"{embedder.id}+words1", embedder) is None
