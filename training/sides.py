"""The two models that an evaluation holds against each other: the bundle as served, the base alone.

One is loaded after the other, so that a big base need not fit twice. Knows nothing of figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.model import LanguageModel, Precision, default_marker_rows
from heads.bundle import Bundle
from training.ask_json import ask_base
from training.baselines import Scores
from training.corpus import Corpus
from training.dataset import Example, encode_example
from training.features import FeatureStore, Reader
from training.feeding import Feeder, read_examples
from training.fit import corpus_prompts
from training.prompts import row_parts
from training.report import PARTS, Method


@dataclass(frozen=True)
class Source:
    """Where the base comes from.

    Args:
        load: gives the base and its tokenizer, anew at each call: an adapter is merged into it.
        id, fingerprint: of the base, held against the bundle's.
        precision: that `load` loads in.
        max_tokens: longest prompt.
    """

    load: Callable[[], tuple[Any, Any]]
    id: str
    fingerprint: str
    precision: Precision = "fp32"
    max_tokens: int = 1536

    def served(self, bundle: Bundle) -> LanguageModel:
        """Return the bundle's model, as the engine puts it together.

        Raises:
            NotReady: the bundle was made for another base.
        """
        return self._joined(*self.load(), bundle)

    def plain(self, bundle: Bundle) -> LanguageModel:
        """Return the base alone: no adapter, and the bundle's markers with rows never trained."""
        model, tokenizer = self.load()
        rows_MH = default_marker_rows(model, tokenizer)
        return self._joined(model, tokenizer, replace(bundle, adapter=None, marker_rows_MH=rows_MH))

    def _joined(self, model: Any, tokenizer: Any, bundle: Bundle) -> LanguageModel:
        return LanguageModel(
            model,
            tokenizer,
            bundle,
            base_id=self.id,
            base_fingerprint=self.fingerprint,
            precision=self.precision,
            max_prompt_tokens=self.max_tokens,
            max_text_tokens=1024,  # as in training
        )


@dataclass(frozen=True)
class BaseSide:
    """What the base alone has to say; arrays are aligned with the corpus's rows.

    `loss_B` is each reply's summed loss in nats; `asked` the corpus with only those rows in its parts
    that were asked about in JSON, `answers` what came, `understood_B` which answers could be read;
    `features` are the frozen base's, of every row and layer.
    """

    loss_B: np.ndarray
    asked: Corpus
    answers: Method
    understood_B: np.ndarray
    features: np.ndarray


def base_side(
    corpus: Corpus, bundle: Bundle, source: Source, store: FeatureStore, *, limit: int, seed: int
) -> BaseSide:
    """Have the base alone do all that it has to do; it is let go at the end.

    Args:
        corpus: rows of every part.
        bundle: whose markers and prompt the base is given.
        source: of the base.
        store: keeps what the frozen base read.
        limit: rows that are asked about in JSON, a part at most.
        seed: of their choice.
    """
    model, rows = source.plain(bundle), len(corpus.rows)
    examples = encode(model, corpus, rows_of(corpus))
    told = [at for at, one in examples.items() if one.reply_tokens]
    read = read_examples(model, [examples[at] for at in told], what="reading replies with the base")
    asked = _some(corpus, limit, seed)
    chosen = rows_of(asked)
    parts = [
        row_parts(corpus.rows[at], corpus.registry, model.languages, corpus.judged[at].permitted)
        for at in chosen
    ]
    scores, understood = ask_base(Feeder(model), parts)
    spread = Scores(
        aligned(scores.probability_BN, chosen, rows), aligned(scores.delta_B2, chosen, rows)
    )
    markers = dict(bundle.info.markers)
    reader = Reader(model.model, model.encoder, markers, model.bundle.marker_rows_MH)
    return BaseSide(
        loss_B=aligned(read.loss_B, told, rows),
        asked=asked,
        answers=Method(spread, np.full(scores.probability_BN.shape[1], 0.5)),
        understood_B=aligned(understood, chosen, rows),
        features=store.read(reader, corpus_prompts(corpus, reader, model.languages)),
    )


def rows_of(corpus: Corpus) -> list[int]:
    """Return the indices of all rows that figures are made of."""
    return [row for part in PARTS for row in getattr(corpus.split, part)]


def encode(model: LanguageModel, corpus: Corpus, index: Sequence[int]) -> dict[int, Example]:
    """Encode rows as in training, by index."""
    heard = corpus.heard_by(model.bundle.info.spec, index)
    return {
        at: encode_example(
            corpus.rows[at],
            corpus.judged[at],
            model.encoder,
            corpus.registry,
            model.languages,
            heard_of_it,
        )
        for at, heard_of_it in zip(index, heard, strict=True)
    }


def aligned(values: np.ndarray, index: Sequence[int], rows: int) -> np.ndarray:
    """Give values of some rows the places that those have among all; the others stay zero."""
    full = np.zeros((rows, *values.shape[1:]), dtype=values.dtype)
    full[list(index)] = values
    return full


def _some(corpus: Corpus, limit: int, seed: int) -> Corpus:
    """Return the corpus with at most `limit` rows in each part that is measured."""
    dealer = random.Random(seed)
    parts = {part: getattr(corpus.split, part) for part in PARTS}
    fewer = {
        part: tuple(sorted(dealer.sample(list(rows), min(limit, len(rows)))))
        for part, rows in parts.items()
    }
    return replace(corpus, split=replace(corpus.split, **fewer))
