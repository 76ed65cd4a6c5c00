"""The heads' last fit: on what the model made of the rows, and on what was heard of the utterances.

    trained heads ─┐
    regressions on [hidden ; meaning] ─┼─ the best on `valid` ─┐
    trained heads + sentence vector ─┘                          ├─ alone or together ─→ flags, delta
    regressions on the words, counted ──────────────────────────┘

Steps of gradient shape the features; on a thousand rows a regression then makes more of them than the
heads that were trained along, and a small base hears less in a sentence than a sentence model does;
both blur words, which are therefore counted beside them. All maps are linear, and so is their sum.
Knows nothing of models, files or bundles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import softmax

from engine.schema import FLAGS
from training.corpus import Corpus
from training.fit_heads import (
    Linear,
    act_delta,
    fit_act_words,
    fit_acts,
    fit_delta,
    fit_flags,
    fit_words,
)
from training.metrics import delta_figures, macro_auprc
from training.rubric import ACTS, WORTH_A2

logger = logging.getLogger(__name__)

# Strengths of the regressions, on standardised features.
_FLAG_STRENGTHS = (0.001, 0.003, 0.01)
_ACT_STRENGTHS = (0.001, 0.003, 0.01, 0.03)
_RIDGE_STRENGTHS = (0.0003, 0.001, 0.003)
# How much the sentence vector's own regression counts beside a head that was trained along.
_SHARES = (0.3, 0.6, 1.0)
# The same for what the words say, and the strengths of their regressions.
_WORD_STRENGTHS = (1.0, 3.0, 10.0)

WORTH = np.array(WORTH_A2)

_Map = TypeVar("_Map")


@dataclass(frozen=True)
class Trained:
    """Heads that were trained along, on hidden states; None where there were none."""

    flags: Linear | None = None
    delta: Linear | None = None
    acts: Linear | None = None


@dataclass(frozen=True)
class Refit:
    """The chosen maps on [hidden ; meaning ; words]; `acts` says whether `delta` gives acts.

    `figures` says what every candidate reached on `valid`.
    """

    flags: Linear
    delta: Linear
    acts: bool
    figures: dict[str, dict[str, float]]

    def act_probabilities(self, joined_BW: np.ndarray) -> np.ndarray:
        """Return the probabilities of the acts, shape (B, A); (B, 0) where the map gives none."""
        if not self.acts:
            return np.zeros((len(joined_BW), 0))
        found: np.ndarray = softmax(self.delta(joined_BW), axis=1)
        return found

    def deltas(self, joined_BW: np.ndarray) -> np.ndarray:
        """Return the deltas, shape (B, 2)."""
        return deltas_of(self.delta, self.acts, joined_BW)


def deltas_of(delta: Linear, acts: bool, joined_BW: np.ndarray) -> np.ndarray:
    """Return the deltas of a map that gives acts, or the deltas themselves before tanh."""
    if acts:
        return act_delta(delta, WORTH, joined_BW)
    deltas: np.ndarray = np.tanh(delta(joined_BW))
    return deltas


def join(state_BH: np.ndarray, heard_BL: np.ndarray) -> np.ndarray:
    """Return what the heads read: hidden states, and behind them what was heard."""
    return np.hstack([state_BH, heard_BL])


def refit(corpus: Corpus, state_BH: np.ndarray, trained: Trained | None = None) -> Refit:
    """Choose flags and delta on `valid`, among heads that were trained along and regressions.

    Args:
        corpus: labelled turns, divided; gives the sentence vectors and the words.
        state_BH: hidden states at <STATE> of all rows.
        trained: heads on those, which are candidates too.
    """
    trained, size = trained or Trained(), state_BH.shape[1]
    joined_BW = join(state_BH, corpus.meaning_BM)
    # The vector's own regression: the hidden state is there and says nothing.
    alone_BW = join(np.zeros_like(state_BH), corpus.meaning_BM)
    flags = dict(_flag_maps(corpus, joined_BW, alone_BW, trained, size))
    deltas = dict(_delta_maps(corpus, joined_BW, alone_BW, trained, size))
    valid, labels = list(corpus.split.valid), corpus.labels

    heard_VW = join(state_BH[valid], corpus.heard_of(valid))

    def ranking(one: Linear) -> float:
        gated_BN = np.where(labels.permitted_BN[valid], one(heard_VW), -1e3)
        return macro_auprc(labels.truth_BN[valid], gated_BN)

    def order(one: tuple[Linear, bool]) -> float:
        found_B2 = deltas_of(*one, heard_VW)
        return float(delta_figures(labels.delta_B2[valid], found_B2)["delta_spearman"])

    room = corpus.counted.shape[1]
    flags = {name: _padded(one, room) for name, one in flags.items()}
    deltas = {name: (_padded(one, room), acts) for name, (one, acts) in deltas.items()}
    best_flags, reached_flags = _best(flags, ranking)
    best_delta, reached_delta = _best(deltas, order)
    flags = dict(_with_words(best_flags, flags[best_flags], _flag_words(corpus)))
    best_flags, with_words = _best(flags, ranking)
    reached_flags |= with_words
    map_, acts = deltas[best_delta]
    if acts:
        summed = _with_words(best_delta, map_, _act_words(corpus))
        deltas = {name: (one, True) for name, one in summed}
        best_delta, with_words = _best(deltas, order)
        reached_delta |= with_words
    logger.info("flags: %s, delta: %s", best_flags, best_delta)
    figures = {"flags_auprc": reached_flags, "delta_spearman": reached_delta}
    return Refit(flags[best_flags], *deltas[best_delta], figures)


def _flag_words(corpus: Corpus) -> Iterable[tuple[float, Linear]]:
    train = list(corpus.split.train)
    asks_BN = np.array([[flag in row.asks for flag in FLAGS] for row in corpus.rows])
    for strength in _WORD_STRENGTHS:
        yield strength, fit_words(corpus.counted[train], asks_BN[train], strength)


def _act_words(corpus: Corpus) -> Iterable[tuple[float, Linear]]:
    train = list(corpus.split.train)
    for strength in _WORD_STRENGTHS:
        words_BK = corpus.counted[train]
        yield strength, fit_act_words(words_BK, corpus.acts[train], len(ACTS), strength)


def _with_words(
    name: str, one: Linear, words: Iterable[tuple[float, Linear]]
) -> Iterable[tuple[str, Linear]]:
    """Yield a map alone, and with shares of what the words say, which stand at the end."""
    yield name, one
    for strength, heard in words:
        before = one.weight_NH.shape[1] - heard.weight_NH.shape[1]
        placed = Linear(np.pad(heard.weight_NH, ((0, 0), (before, 0))), heard.bias_N)
        for share in _SHARES:
            yield f"{name} + {share:g} words {strength:g}", _sum(one, placed, share)


def _best(maps: dict[str, _Map], measure: Callable[[_Map], float]) -> tuple[str, dict[str, float]]:
    reached = {name: round(measure(one), 4) for name, one in maps.items()}
    return max(reached, key=lambda name: reached[name]), reached


def _flag_maps(
    corpus: Corpus, joined_BW: np.ndarray, alone_BW: np.ndarray, trained: Trained, size: int
) -> Iterable[tuple[str, Linear]]:
    train, labels = list(corpus.split.train), corpus.labels
    meaning = joined_BW.shape[1] - size

    def fitted(features_BW: np.ndarray, strength: float) -> Linear:
        return fit_flags(
            features_BW[train],
            labels.truth_BN[train],
            labels.permitted_BN[train],
            strength,
            meaning=meaning,
        )

    for strength in _FLAG_STRENGTHS:
        yield f"regression {strength:g}", fitted(joined_BW, strength)
    if trained.flags:
        yield "trained", _padded(trained.flags, meaning)
        heard = fitted(alone_BW, _FLAG_STRENGTHS[1])
        for share in _SHARES:
            yield (
                f"trained + {share:g} meaning",
                _sum(_padded(trained.flags, meaning), heard, share),
            )


def _delta_maps(
    corpus: Corpus, joined_BW: np.ndarray, alone_BW: np.ndarray, trained: Trained, size: int
) -> Iterable[tuple[str, tuple[Linear, bool]]]:
    train, meaning = list(corpus.split.train), joined_BW.shape[1] - size
    truth_B2, act_B = corpus.labels.delta_B2[train], corpus.acts[train]
    for strength in _RIDGE_STRENGTHS:
        ridge = fit_delta(joined_BW[train], truth_B2, strength, meaning=meaning)
        yield f"ridge {strength:g}", (ridge, False)
    if trained.delta:
        yield "trained", (_padded(trained.delta, meaning), False)
    if len(set(act_B.tolist())) < 2:
        return

    def acts(features_BW: np.ndarray, strength: float) -> Linear:
        return fit_acts(features_BW[train], act_B, len(ACTS), strength, meaning=meaning)

    for strength in _ACT_STRENGTHS:
        yield f"acts {strength:g}", (acts(joined_BW, strength), True)
    if trained.acts:
        own = _padded(trained.acts, meaning)
        yield "trained acts", (own, True)
        heard = acts(alone_BW, _ACT_STRENGTHS[2])
        for share in _SHARES:
            yield f"trained acts + {share:g} meaning", (_sum(own, heard, share), True)


def _padded(one: Linear, room: int) -> Linear:
    """Return a map as one that is given `room` numbers more, and makes nothing of them."""
    return Linear(np.pad(one.weight_NH, ((0, 0), (0, room))), one.bias_N)


def _sum(first: Linear, second: Linear, share: float) -> Linear:
    return Linear(first.weight_NH + share * second.weight_NH, first.bias_N + share * second.bias_N)
