"""The heads' last fit: on what the model made of the rows, and on what was heard of the utterances.

    trained heads ─┐
    regressions on [hidden ; meaning] ─┼─ the best on `valid` ─┐
    trained heads + sentence vector ─┘                          ├─ alone or together ─→ flags
    regressions on the words, counted ──────────────────────────┘                  └─→ delta ─┬─→ delta
    claims: what is asked for × what is so ────────────────────────────────────────────┘
    a flag head that served before is a candidate for flags as it is

Steps of gradient shape the features; on a thousand rows a regression then makes more of them than the
heads that were trained along, and a small base hears less in a sentence than a sentence model does;
both blur words, which are therefore counted beside them. All these maps are linear, and so is their
sum; claims (`training.claims`) come on top of the acts that it gives.
Knows nothing of models, files or bundles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from scipy.special import softmax

from engine.schema import FLAGS
from heads.worth import places_of
from training.claims import fit_on_top, others_logits
from training.corpus import Corpus
from training.fit_heads import (
    Claims,
    Linear,
    act_delta,
    claim_features,
    fit_act_words,
    fit_acts,
    fit_delta,
    fit_flags,
    fit_nearness,
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
# What is asked for: strengths of its regressions on what is read and on the words.
_ASKS_STRENGTH, _ASKS_WORDS = 0.003, 10.0
# Penalties on what claims are worth.
_CLAIM_STRENGTHS = (0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001)

WORTH = np.array(WORTH_A2)

_Map = TypeVar("_Map")
_Reader = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Trained:
    """Heads that were trained along, on hidden states; None where there were none."""

    flags: Linear | None = None
    delta: Linear | None = None
    acts: Linear | None = None


@dataclass(frozen=True)
class _Recipe:
    """How a regression over the acts is fitted; without `words`, on what is read alone."""

    strength: float
    share: float = 0.0
    words: float = 0.0

    @property
    def name(self) -> str:
        """What it is called among the candidates."""
        read = f"acts {self.strength:g}"
        return _worded(read, self.share, self.words) if self.words else read


def _worded(name: str, share: float, words: float) -> str:
    return f"{name} + {share:g} words {words:g}"


_RECIPES = {
    one.name: one
    for strength in _ACT_STRENGTHS
    for one in (
        _Recipe(strength),
        *(_Recipe(strength, share, words) for words in _WORD_STRENGTHS for share in _SHARES),
    )
}


@dataclass(frozen=True)
class Others:
    """The acts' probabilities of the rows `index`, shape (B, A), by maps that do not know them."""

    index: tuple[int, ...]
    act_BA: np.ndarray


@dataclass(frozen=True)
class Refit:
    """The chosen maps on [hidden ; meaning ; words]; `acts` says whether `delta` gives acts.

    `claims` is added to the acts; None: nothing is. `place_A2` are the acts' places (`heads.worth`).
    `figures` says what every candidate reached on `valid`. `others` says how rows are judged by maps
    that were not fitted on them; None where nothing was fitted so.
    """

    flags: Linear
    delta: Linear
    acts: bool
    figures: dict[str, dict[str, float]]
    claims: Claims | None = None
    others: Others | None = None
    place_A2: np.ndarray = field(default_factory=lambda: WORTH)

    def act_probabilities(self, joined_BW: np.ndarray, evidence_BE: np.ndarray) -> np.ndarray:
        """Return the probabilities of the acts, shape (B, A); (B, 0) where the map gives none."""
        if not self.acts:
            return np.zeros((len(joined_BW), 0))
        logits_BA = self.delta(joined_BW)
        if self.claims:
            logits_BA = logits_BA + self.claims(joined_BW, evidence_BE)
        found: np.ndarray = softmax(logits_BA, axis=1)
        return found

    def deltas(self, joined_BW: np.ndarray, evidence_BE: np.ndarray) -> np.ndarray:
        """Return the deltas, shape (B, 2)."""
        if self.acts:
            return act_delta(self.act_probabilities(joined_BW, evidence_BE), WORTH, self.place_A2)
        plain_B2: np.ndarray = np.tanh(self.delta(joined_BW))
        return plain_B2


def places(corpus: Corpus) -> np.ndarray:
    """Return the acts' places in the order of worth among the training rows, shape (A, 2)."""
    counts_A = np.bincount(corpus.acts[list(corpus.split.train)], minlength=len(ACTS))
    place_A2: np.ndarray = places_of(torch.from_numpy(counts_A), torch.from_numpy(WORTH)).numpy()
    return place_A2


def deltas_of(delta: Linear, acts: bool, place_A2: np.ndarray, joined_BW: np.ndarray) -> np.ndarray:
    """Return the deltas of a map that gives acts, or the deltas themselves before tanh."""
    if acts:
        return act_delta(softmax(delta(joined_BW), axis=1), WORTH, place_A2)
    deltas: np.ndarray = np.tanh(delta(joined_BW))
    return deltas


def join(state_BH: np.ndarray, heard_BL: np.ndarray) -> np.ndarray:
    """Return what the heads read: hidden states, and behind them what was heard."""
    return np.hstack([state_BH, heard_BL])


def refit(
    corpus: Corpus,
    state_BH: np.ndarray,
    trained: Trained | None = None,
    before: Linear | None = None,
) -> Refit:
    """Choose flags and delta on `valid`, among heads that were trained along and regressions.

    Args:
        corpus: labelled turns, divided; gives the sentence vectors and the words.
        state_BH: hidden states at <STATE> of all rows.
        trained: heads on those, which are candidates too.
        before: flag head on [hidden ; meaning ; words] that served so far: a candidate as it is.
    """
    trained, size = trained or Trained(), state_BH.shape[1]
    joined_BW = join(state_BH, corpus.meaning_BM)
    # The vector's own regression: the hidden state is there and says nothing.
    alone_BW = join(np.zeros_like(state_BH), corpus.meaning_BM)
    flags = dict(_flag_maps(corpus, joined_BW, alone_BW, trained, size))
    deltas = dict(_delta_maps(corpus, joined_BW, alone_BW, trained, size))
    valid, labels = list(corpus.split.valid), corpus.labels

    heard_VW = join(state_BH[valid], corpus.heard_of(valid))
    place_A2 = places(corpus)

    def ranking(one: Linear) -> float:
        gated_BN = np.where(labels.permitted_BN[valid], one(heard_VW), -1e3)
        return macro_auprc(labels.truth_BN[valid], gated_BN)

    def order(one: tuple[Linear, bool]) -> float:
        found_B2 = deltas_of(*one, place_A2, heard_VW)
        return float(delta_figures(labels.delta_B2[valid], found_B2)["delta_spearman"])

    room = corpus.counted.shape[1]
    flags = {name: _padded(one, room) for name, one in flags.items()}
    deltas = {name: (_padded(one, room), acts) for name, (one, acts) in deltas.items()}
    best_flags, reached_flags = _best(flags, ranking)
    best_delta, reached_delta = _best(deltas, order)
    flags = dict(_with_words(best_flags, flags[best_flags], _flag_words(corpus)))
    if before:
        flags["as before"] = before
    best_flags, with_words = _best(flags, ranking)
    reached_flags |= with_words
    # The best that can be fitted without a part of the rows goes on too: claims may make it the best.
    by_recipe = [name for name in deltas if name in _RECIPES]
    going_on = {best_delta, *sorted(by_recipe, key=lambda name: reached_delta[name])[-1:]}
    act_words = list(_act_words(corpus)) if any(deltas[name][1] for name in going_on) else []
    for name in sorted(going_on):
        if deltas[name][1]:
            summed = _with_words(name, deltas[name][0], act_words)
            deltas |= {called: (one, True) for called, one in summed}
    best_delta, reached_delta = _best(deltas, order)
    logger.info("flags: %s, delta: %s", best_flags, best_delta)
    figures = {"flags_auprc": reached_flags, "delta_spearman": reached_delta}
    chosen = Refit(flags[best_flags], *deltas[best_delta], figures, place_A2=place_A2)
    by_recipe = [name for name in deltas if name in _RECIPES]
    if not by_recipe:
        return chosen
    name = max(by_recipe, key=lambda name: reached_delta[name])
    alone = replace(chosen, delta=deltas[name][0], acts=True)
    best_claiming, claiming, reached = _with_claims(corpus, joined_BW, alone, name)
    figures = {**figures, "delta_spearman": {**reached_delta, **reached}}
    if claiming is None or reached[best_claiming] <= reached_delta[best_delta]:
        logger.info("claims are left out: without them %.4f", reached_delta[best_delta])
        return replace(chosen, figures=figures)
    logger.info("delta: %s", best_claiming)
    return replace(claiming, figures=figures)


def _with_claims(
    corpus: Corpus, joined_BW: np.ndarray, alone: Refit, name: str
) -> tuple[str, Refit | None, dict[str, float]]:
    """Put claims on top of acts by regression; return the best on `valid`, and what each reached.

    Args:
        corpus: as for `refit`.
        joined_BW: hidden states and sentence vectors.
        alone: what is there without claims.
        name: of its delta, a recipe's.

    Returns:
        Its name, and it; "" and None where the rows are too few to be told by each other.
    """
    recipe = _RECIPES[name]
    train = list(corpus.split.train)
    # A name that two NPCs' groups share only ties more rows together.
    groups = [corpus.rows[at].group or str(at) for at in train]
    meaning = corpus.meaning_BM.shape[1]
    asks_BN = _asks(corpus)
    everywhere = np.ones_like(asks_BN)

    def fit_asked(some: Sequence[int]) -> Linear:
        at = list(some)
        read = fit_flags(
            joined_BW[at], asks_BN[at], everywhere[at], _ASKS_STRENGTH, meaning=meaning
        )
        return _beside(read, fit_words(corpus.counted[at], asks_BN[at], _ASKS_WORDS), 1.0)

    def fit_act(some: Sequence[int]) -> Linear:
        at = list(some)
        act_B, strength = corpus.acts[at], recipe.strength
        read = fit_acts(joined_BW[at], act_B, len(ACTS), strength, meaning=meaning)
        if not recipe.words:
            return _padded(read, corpus.counted.shape[1])
        heard = fit_act_words(corpus.counted[at], act_B, len(ACTS), recipe.words)
        return _beside(read, heard, recipe.share)

    def heard_by(fit: Callable[[Sequence[int]], Linear]) -> Callable[[Sequence[int]], _Reader]:
        def fitted(some: Sequence[int]) -> _Reader:
            map_ = fit(some)
            return lambda index: map_(_full(corpus, joined_BW, index))

        return fitted

    try:
        asked_BN = others_logits(train, groups, heard_by(fit_asked))
        logits_BA = others_logits(train, groups, heard_by(fit_act))
    except ValueError as exc:  # fewer groups than parts, or one act alone in the others
        logger.info("no claims: %s", exc)
        return "", None, {}
    told = _Told(tuple(train), asked_BN, logits_BA)
    return _on_top(corpus, joined_BW, alone, name, fit_asked(train), told)


@dataclass(frozen=True)
class _Told:
    """What maps say of rows that they were not fitted on: logits of what is asked for, and of acts."""

    index: tuple[int, ...]
    asked_BN: np.ndarray
    logits_BA: np.ndarray


def _on_top(
    corpus: Corpus, joined_BW: np.ndarray, alone: Refit, name: str, asks: Linear, told: _Told
) -> tuple[str, Refit, dict[str, float]]:
    """Put claims on top of acts; return the best on `valid`, its name, and what each reached.

    Args:
        corpus: as for `refit`.
        joined_BW: hidden states and sentence vectors.
        alone: what is there without claims.
        name: of its delta.
        asks: what is asked for, as it is to serve.
        told: what maps of the same make say of rows that they do not know.
    """
    index, valid, labels = list(told.index), list(corpus.split.valid), corpus.labels
    evidence_BE = labels.evidence_BE
    near = fit_nearness(told.asked_BN, evidence_BE[index], _asks(corpus)[index])
    features_BF = claim_features(told.asked_BN, evidence_BE[index], near)
    heard_VW = _full(corpus, joined_BW, valid)
    reached, found = dict[str, float](), dict[str, Refit]()
    for strength in _CLAIM_STRENGTHS:
        fit = fit_on_top(told.logits_BA, features_BF, corpus.acts[index], strength)
        delta = Linear(
            fit.scale * alone.delta.weight_NH, fit.scale * alone.delta.bias_N + fit.bias_A
        )
        one = replace(
            alone,
            delta=delta,
            claims=Claims(asks, near, fit.weight_AF),
            # What is on top has few weights: it knows these rows hardly better than others.
            others=Others(told.index, softmax(fit(told.logits_BA, features_BF), axis=1)),
        )
        deltas_B2 = one.deltas(heard_VW, evidence_BE[valid])
        called = f"{name} + claims {strength:g}"
        found[called] = one
        figure = delta_figures(labels.delta_B2[valid], deltas_B2)["delta_spearman"]
        reached[called] = round(float(figure), 4)
    best = max(found, key=lambda called: reached[called])
    return best, found[best], reached


def _asks(corpus: Corpus) -> np.ndarray:
    """Return what every row asks for, whatever the state permits, bool, shape (B, N)."""
    return np.array([[flag in row.asks for flag in FLAGS] for row in corpus.rows])


def _full(corpus: Corpus, joined_BW: np.ndarray, index: Sequence[int]) -> np.ndarray:
    """Return all that maps are given of some rows: hidden state, sentence vector, words."""
    at = list(index)
    return join(joined_BW[at], corpus.counted[at].toarray())


def _flag_words(corpus: Corpus) -> Iterable[tuple[float, Linear]]:
    train = list(corpus.split.train)
    asks_BN = _asks(corpus)
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
            yield _worded(name, share, strength), _sum(one, placed, share)


def _beside(read: Linear, heard: Linear, share: float) -> Linear:
    """Return one map on [what is read ; words], of a map on each."""
    weight_NW = np.hstack([read.weight_NH, share * heard.weight_NH])
    return Linear(weight_NW, read.bias_N + share * heard.bias_N)


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
        yield _Recipe(strength).name, (acts(joined_BW, strength), True)
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
