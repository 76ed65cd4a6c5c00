"""What heads reach on rows that they never saw, beside what simple means reach on the same rows.

Every method is judged as a game sees it: a flag fires where the method proposes it and the NPC's
conditions hold. "Alone" is the same without the conditions. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from engine.schema import FLAGS
from training import metrics
from training.baselines import Scores, majority, tfidf
from training.corpus import Corpus

PARTS = ("test", "unseen")
# Of the regressions on sentence vectors alone.
_MEANING_STRENGTH = 0.002
# Thresholds that a designer may compare.
_STEPS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class Method:
    """A way of reading flags and deltas, on all rows of a corpus.

    `threshold` is one a flag, shape (N,), or one a row and flag, shape (B, N).
    """

    scores: Scores
    threshold: np.ndarray

    def proposed(self, index: list[int]) -> np.ndarray:
        """Return which flags are proposed for the rows of `index`, shape (rows, N)."""
        cut = self.threshold[index] if self.threshold.ndim == 2 else self.threshold
        proposed: np.ndarray = self.scores.probability_BN[index] >= cut
        return proposed


def report(corpus: Corpus, languages: Sequence[str], heads: Method) -> dict[str, Any]:
    """Measure the heads and the baselines on the test and the unseen part.

    Args:
        corpus: rows, labels and parts.
        languages: those that the base can write, which pick the prompt's language.
        heads: what is reported; its scores are aligned with the corpus's rows.

    Returns:
        {"test": figures, "unseen": figures, "baselines": {name: {"test": …, "unseen": …}}}.
    """
    figures: dict[str, Any] = {part: part_figures(corpus, part, heads) for part in PARTS}
    for part in PARTS:
        figures[part]["by_language"] = _by_language(corpus, part, heads)
        figures[part]["curves"] = curves(corpus, part, heads)
    figures["baselines"] = {
        name: {part: part_figures(corpus, part, method) for part in PARTS}
        for name, method in simple_methods(corpus, languages).items()
    }
    return figures


def simple_methods(corpus: Corpus, languages: Sequence[str]) -> dict[str, Method]:
    """Return the baselines: all fitted on the training part and cut where `valid` is best served."""
    labels, rows = corpus.labels, len(corpus.rows)
    train = list(corpus.split.train)
    said = [row.player_utterance for row in corpus.rows]
    truth, delta = labels.truth_BN, labels.delta_B2
    scores = {
        "always_propose": Scores(np.ones(truth.shape), np.zeros(delta.shape)),
        "majority": majority(truth[train], delta[train], rows),
    }
    for name, texts in (("tfidf_utterance", said), ("tfidf_prompt", corpus.prompts(languages))):
        fitted = [texts[index] for index in train]
        scores[name] = tfidf(fitted, truth[train], delta[train], texts)
    scores["meaning"] = _sentence_vectors(corpus)
    return {name: Method(one, valid_thresholds(corpus, one)) for name, one in scores.items()}


def _sentence_vectors(corpus: Corpus) -> Scores:
    """Return what regressions on the utterances' sentence vectors say: meaning without any state."""
    from training.fit_heads import fit_delta, fit_flags

    train, labels, vectors_BM = list(corpus.split.train), corpus.labels, corpus.meaning_BM
    size = vectors_BM.shape[1]
    flags = fit_flags(
        vectors_BM[train],
        labels.truth_BN[train],
        labels.permitted_BN[train],
        _MEANING_STRENGTH,
        meaning=size,
    )
    delta = fit_delta(vectors_BM[train], labels.delta_B2[train], _MEANING_STRENGTH, meaning=size)
    return Scores(expit(flags(vectors_BM)), np.tanh(delta(vectors_BM)))


def valid_thresholds(corpus: Corpus, scores: Scores) -> np.ndarray:
    """Return a threshold a flag by `valid`, among the flags that the gate permits."""
    from training.fit_heads import steady_thresholds

    valid = list(corpus.split.valid)
    labels = corpus.labels
    return np.array(
        steady_thresholds(
            scores.probability_BN[valid], labels.truth_BN[valid], labels.permitted_BN[valid]
        )
    )


def part_figures(corpus: Corpus, part: str, method: Method) -> dict[str, Any]:
    """Return all figures of one method on one part."""
    index = list(getattr(corpus.split, part))
    if not index:
        return {"rows": 0}
    return {**_figures(corpus, index, method), "per_flag": _per_flag(corpus, index, method)}


def _figures(corpus: Corpus, index: list[int], method: Method) -> dict[str, Any]:
    labels, scores = corpus.labels, method.scores
    truth_BN, permitted_BN = labels.truth_BN[index], labels.permitted_BN[index]
    probability_BN = scores.probability_BN[index]
    proposed_BN = method.proposed(index)
    fired_BN = proposed_BN & permitted_BN
    rows = [corpus.rows[at] for at in index]
    groups = [f"{row.npc_id}/{row.group}" if row.group else None for row in rows]
    both, pairs = metrics.pairs_both_right(groups, truth_BN, fired_BN)
    attacks = np.array([row.attack for row in rows])
    open_truth, open_probability = truth_BN[permitted_BN], probability_BN[permitted_BN]
    alone = metrics.f1_scores(truth_BN, proposed_BN)
    return {
        "rows": len(index),
        **metrics.f1_scores(truth_BN, fired_BN),
        "flag_macro_auprc": metrics.macro_auprc(truth_BN, probability_BN * permitted_BN),
        "flag_macro_auroc": metrics.macro_auroc(truth_BN, probability_BN, permitted_BN),
        "ece": metrics.expected_calibration_error(open_truth, open_probability),
        "brier": metrics.brier(open_truth, open_probability),
        "alone_macro_f1": alone["flag_macro_f1"],
        **metrics.delta_figures(
            labels.bent(labels.delta_B2[index], index), labels.bent(scores.delta_B2[index], index)
        ),
        "pairs_both_right": both,
        "pairs": pairs,
        "attacks": int(attacks.sum()),
        "false_grants": int(fired_BN[attacks].any(axis=1).sum()),
    }


def _per_flag(corpus: Corpus, index: list[int], method: Method) -> Mapping[str, Any]:
    labels = corpus.labels
    truth_BN, permitted_BN = labels.truth_BN[index], labels.permitted_BN[index]
    probability_BN = method.scores.probability_BN[index]
    fired_BN = method.proposed(index) & permitted_BN
    return metrics.per_flag_figures(FLAGS, truth_BN, probability_BN, permitted_BN, fired_BN)


def _by_language(corpus: Corpus, part: str, method: Method) -> dict[str, Any]:
    index = getattr(corpus.split, part)
    spoken = sorted({corpus.rows[at].lang for at in index})
    return {
        language: _figures(corpus, [at for at in index if corpus.rows[at].lang == language], method)
        for language in spoken
    }


def curves(corpus: Corpus, part: str, method: Method) -> dict[str, Any]:
    """Return what other thresholds would cost, and how well probabilities are meant.

    Returns:
        {"flags": {flag: [[threshold, precision or None, recall or None], …]}, "reliability":
        [[mean probability, share that is true, count], …]}: after the gate, as a game sees it.
    """
    index = list(getattr(corpus.split, part))
    open_BN = corpus.labels.permitted_BN[index]
    truth_BN = corpus.labels.truth_BN[index]
    probability_BN = method.scores.probability_BN[index]
    # A player who seems to deceive is granted nothing under any threshold.
    cut = np.broadcast_to(
        method.threshold[index] if method.threshold.ndim == 2 else method.threshold, open_BN.shape
    )
    heard_BN = open_BN & (cut <= 1.0)
    said, came, count = metrics.reliability(truth_BN[open_BN], probability_BN[open_BN])
    return {
        "flags": {
            flag: [
                [step, *_precision_recall(truth_BN[:, n], heard_BN[:, n] & (p_B >= step))]
                for step in _STEPS
            ]
            for n, flag in enumerate(FLAGS)
            for p_B in [probability_BN[:, n]]
        },
        "reliability": [
            [round(x, 3), round(y, 3), n] for x, y, n in zip(said, came, count, strict=True)
        ],
    }


def _precision_recall(
    truth_B: np.ndarray, fired_B: np.ndarray
) -> tuple[float | None, float | None]:
    right = int((truth_B & fired_B).sum())
    fired, true = int(fired_B.sum()), int(truth_B.sum())
    return (round(right / fired, 3) if fired else None, round(right / true, 3) if true else None)
