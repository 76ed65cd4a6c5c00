"""`python -m training evaluate`: everything that is claimed of a bundle, measured anew.

    the base alone       → perplexity, answers in JSON, features for logistic regression
    the bundle, served   → heads at <STATE>, perplexity, lines written to a known decision, probes
    both, and baselines  → figures by part, by language, by flag

The model is put together as the engine does it, rows are those of the bundle's own division, and flags
and deltas are measured by `training.report`, so that the figures are the very ones of the card. Knows
nothing of files, tables or plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.embed import Embedder
from engine.listen import listener_of
from engine.model import LanguageModel
from engine.schema import FLAGS
from heads.bundle import Bundle
from training.agreement import Case, agreement, as_read, find_cases, write_lines
from training.baselines import Scores
from training.corpus import Corpus
from training.dataset import encode_example
from training.features import FeatureStore
from training.feeding import Feeder, Readings, read_examples
from training.fit import FitArgs, frozen_method
from training.oracle import Judged, judge
from training.probes import Bench, run_probes
from training.record import plain
from training.report import PARTS, Method, part_figures, report
from training.rows import Row
from training.sides import BaseSide, Source, aligned, base_side, encode, rows_of

KEYS = (
    "rows",
    "flag_macro_f1",
    "flag_micro_f1",
    "flag_macro_auprc",
    "flag_macro_auroc",
    "ece",
    "brier",
    "delta_mae",
    "delta_spearman",
    "delta_sign_accuracy",
    "pairs_both_right",
    "agreement_named",
    "agreement_named_unaided",
    "agreement_overpromise",
    "agreement_rows",
    "false_grants",
    "perplexity",
    "base_perplexity",
)
"""Figures that every part has; None where there was nothing to measure."""


class EvaluationError(ValueError):
    """A bundle that cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True)
class Evaluation:
    """Figures, and what plots are drawn from.

    Args:
        figures: plain values: {"test": …, "unseen": …, "baselines": …, "probes": …}.
        heads: the heads' word on the rows of both parts.
        features: the frozen base's, of every row and layer; None where the base was left out.
    """

    figures: dict[str, Any]
    heads: Method
    features: np.ndarray | None


@dataclass(frozen=True)
class _Lines:
    """What was written, and what a player reads of it, by row; what is looked at, by part."""

    cases: Mapping[str, Sequence[Case]]
    written: Mapping[int, str]
    read: Mapping[int, str]


def evaluate(
    corpus: Corpus,
    bundle: Bundle,
    source: Source,
    encoder: Embedder,
    *,
    limit: int = 60,
    store: FeatureStore | None = None,
    heads_only: bool = False,
    with_base: bool = True,
) -> Evaluation:
    """Measure a bundle and its rivals on the test and the unseen part.

    Args:
        corpus: labelled rows, divided with the bundle's seed.
        bundle: what is measured.
        source: its base.
        encoder: for the gate, where a probe makes new rows.
        limit: lines that are written, and answers asked for in JSON, a part at most.
        store: keeps what the frozen base read; None: it reads everything anew.
        heads_only: leave out the base alone and the words, whose figures do not hang on the heads.
        with_base: False leaves out the base alone, whose figures hang on no bundle.

    Raises:
        EvaluationError: the bundle knows other flags or hears by another embedder, or there are too
            few rows.
        NotReady: the bundle was made for another base.
        ModelError: the model gave values that are not finite.
    """
    if bundle.info.spec.flags != FLAGS:
        raise EvaluationError(
            "the bundle's flags are not those of this program; train one again with: "
            "python -m training fit"
        )
    wanted = bundle.info.embedder_id
    if wanted and listener_of(wanted, encoder) is None:
        raise EvaluationError(
            f"the bundle hears utterances by {wanted}, and {encoder.id} is what there is: set "
            "EMBEDDER to the one it was made with"
        )
    index, seed = rows_of(corpus), bundle_seed(bundle)
    if not (index and corpus.split.train and corpus.split.valid):
        raise EvaluationError(
            "there are too few rows: some must fall into train and valid, which the baselines are "
            "fitted on, and into test or unseen"
        )
    if heads_only:
        return _heads(corpus, source.served(bundle), encoder, index, seed)
    base = None
    if with_base:
        store = store or FeatureStore(None, "")
        base = base_side(corpus, bundle, source, store, limit=limit, seed=seed)
    model = source.served(bundle)
    examples = encode(model, corpus, index)
    read = read_examples(model, list(examples.values()))
    readings = _all_rows(read, index, len(corpus.rows))
    heads = Method(readings.scores, readings.threshold_BN)
    cases = {
        part: find_cases(
            corpus, getattr(corpus.split, part), model.languages, limit=limit, seed=seed
        )
        for part in PARTS
    }
    every = [case for part in PARTS for case in cases[part]]
    written = write_lines(Feeder(model), corpus, examples, every)
    completed = {case.row: as_read(corpus, case, written[case.row]) for case in every}
    lines = _Lines(cases, written, completed)
    figures = report(corpus, model.languages, heads)
    for part in PARTS:
        _add_replies(figures[part], corpus, part, readings, base, lines)
    if base:
        figures["baselines"] |= _rivals(corpus, bundle, base)
    figures["probes"] = run_probes(_bench(corpus, heads, model, encoder, seed))
    return Evaluation(plain(figures), heads, base.features if base else None)


def _heads(
    corpus: Corpus, model: LanguageModel, encoder: Embedder, index: Sequence[int], seed: int
) -> Evaluation:
    """Measure the heads as served, and their probes."""
    examples = encode(model, corpus, index)
    read = read_examples(model, list(examples.values()), replies=False)
    readings = _all_rows(read, index, len(corpus.rows))
    heads = Method(readings.scores, readings.threshold_BN)
    figures = report(corpus, model.languages, heads)
    figures["probes"] = run_probes(_bench(corpus, heads, model, encoder, seed))
    return Evaluation(plain(figures), heads, None)


def bundle_seed(bundle: Bundle) -> int:
    """Return the seed of the bundle's division.

    Raises:
        EvaluationError: the bundle does not say it.
    """
    seed = bundle.info.training.get("seed")
    if not isinstance(seed, int):
        raise EvaluationError(
            "the bundle does not say with which seed its rows were divided, so that no row can be "
            "called unseen; train one again with: python -m training fit"
        )
    return seed


def _all_rows(read: Readings, index: Sequence[int], rows: int) -> Readings:
    """Align what was read of some rows with the corpus."""
    return Readings(
        Scores(
            aligned(read.scores.probability_BN, index, rows),
            aligned(read.scores.delta_B2, index, rows),
        ),
        aligned(read.threshold_BN, index, rows),
        aligned(read.loss_B, index, rows),
        aligned(read.ids_B, index, rows),
    )


def _add_replies(
    figures: dict[str, Any],
    corpus: Corpus,
    part: str,
    readings: Readings,
    base: BaseSide | None,
    lines: _Lines,
) -> None:
    """Add what is said of the words to the figures of a part, in all and by language."""
    index = list(getattr(corpus.split, part))
    keys = [key for key in KEYS if base or key != "base_perplexity"]
    figures |= dict.fromkeys(key for key in keys if key not in figures)
    figures |= _reply_figures(index, readings, base, lines.cases[part], lines)
    for language, one in figures["by_language"].items():
        spoken = [at for at in index if corpus.rows[at].lang == language]
        cases = [case for case in lines.cases[part] if case.language == language]
        one |= _reply_figures(spoken, readings, base, cases, lines)


def _reply_figures(
    index: list[int],
    readings: Readings,
    base: BaseSide | None,
    cases: Sequence[Case],
    lines: _Lines,
) -> dict[str, Any]:
    count = int(readings.ids_B[index].sum())
    found = {
        **agreement(cases, lines.written, lines.read),
        "perplexity": _perplexity(readings.loss_B[index], count),
        "reply_tokens": count,
    }
    if base:
        found["base_perplexity"] = _perplexity(base.loss_B[index], count)
    return found


def _perplexity(loss_B: np.ndarray, ids: int) -> float | None:
    """Return exp of the mean loss of an id; None without any."""
    return round(float(np.exp(loss_B.sum() / ids)), 4) if ids else None


def _rivals(corpus: Corpus, bundle: Bundle, base: BaseSide) -> dict[str, Any]:
    """Return the figures of what the base reaches without any training of its own weights."""
    args = FitArgs(seed=bundle_seed(bundle), layer=bundle.info.spec.layer)
    frozen = frozen_method(corpus, base.features, args)
    asked = {
        part: {
            **part_figures(base.asked, part, base.answers),
            "understood": int(base.understood_B[list(getattr(base.asked.split, part))].sum()),
        }
        for part in PARTS
    }
    return {
        "frozen": {part: part_figures(corpus, part, frozen) for part in PARTS},
        "base_json": asked,
    }


def _bench(
    corpus: Corpus, heads: Method, model: LanguageModel, encoder: Embedder, seed: int
) -> Bench:
    wanted = model.bundle.info.embedder_id
    listener = listener_of(wanted, encoder) if wanted else None

    def read(rows: Sequence[Row], judged: Sequence[Judged], what: str) -> Readings:
        said = [row.player_utterance for row in rows]
        heard = listener.encode(said).tolist() if listener else [()] * len(rows)
        examples = [
            encode_example(row, one, model.encoder, corpus.registry, model.languages, meaning)
            for row, one, meaning in zip(rows, judged, heard, strict=True)
        ]
        return read_examples(model, examples, replies=False, what=what)

    def labelled(row: Row) -> Judged:
        return judge(row, corpus.registry, encoder)

    part = corpus.split.test or corpus.split.unseen
    return Bench(corpus, part, heads, read, labelled, seed)
