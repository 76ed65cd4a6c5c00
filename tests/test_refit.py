"""The heads' last fit and the rule of bad faith, on small made-up features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from heads.bundle import BadFaith
from heads.evidence import Bearing, Evidence, claims_size, evidence_size
from heads.spec import HeadSpec
from tests.test_trainer import corpus as _corpus
from training.bad_faith import DECEIT, OUT_OF_REACH, choose_bad_faith, deceit, with_bad_faith
from training.claims import fit_on_top, others_logits
from training.corpus import Corpus
from training.cut import choose_cut
from training.fit_heads import (
    Claims,
    Linear,
    Scaling,
    act_delta,
    build_heads,
    choose_thresholds,
    claim_features,
    fit_acts,
    fit_flags,
    fit_nearness,
    steady_thresholds,
)
from training.metrics import f1_scores
from training.refit import WORTH, Others, Refit, Trained, join, refit
from training.rubric import ACTS
from training.split import Split

corpus = _corpus


def _divided(corpus: Corpus) -> Corpus:
    """Return the keeper's rows with every third one for choosing."""
    everything = range(len(corpus.rows))
    valid = tuple(at for at in everything if at % 3 == 0)
    train = tuple(at for at in everything if at % 3)
    return replace(corpus, split=Split(train=train, valid=valid, test=valid))


def _opened(corpus: Corpus) -> Corpus:
    """Return the corpus with every flag permitted, so that the heads alone decide."""
    everywhere = np.ones_like(corpus.labels.permitted_BN)
    return replace(corpus, labels=replace(corpus.labels, permitted_BN=everywhere))


def _telling(corpus: Corpus) -> np.ndarray:
    """Return hidden states that say whether the key is handed over."""
    random = np.random.default_rng(1)
    states = random.normal(size=(len(corpus.rows), 8)) * 0.1
    states[:, 0] += corpus.labels.truth_BN.any(axis=1) * 4.0
    return states


def test_the_last_fit_says_what_each_candidate_reached_and_takes_the_best(corpus: Corpus) -> None:
    divided = _opened(_divided(corpus))
    states = _telling(divided)
    useless = Linear(np.zeros((8, 8)), np.zeros(8))
    found = refit(divided, states, Trained(useless, Linear(np.zeros((2, 8)), np.zeros(2))))
    reached = found.figures["flags_auprc"]
    assert reached["trained"] < max(reached.values()) == pytest.approx(1.0)
    logits = found.flags(join(states, divided.heard))
    best = max(reached.values())
    assert {"trained", "regression 0.003"} < set(reached)
    assert best == pytest.approx(1.0)
    truth = divided.labels.truth_BN[:, 0]
    assert logits[truth, 0].min() > logits[~truth, 0].max()
    deltas = found.deltas(join(states, divided.heard), divided.labels.evidence_BE)
    assert deltas.shape == (len(divided.rows), 2)


def test_acts_that_were_never_seen_are_never_read() -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(200, 4))
    seen = np.array([3, 7, 11])
    truth = seen[features[:, :3].argmax(axis=1)]
    acts = fit_acts(features, truth, len(ACTS), 1.0)
    read = acts(features).argmax(axis=1)
    assert set(read.tolist()) == set(seen.tolist())
    assert (read == truth).mean() > 0.9


def test_two_acts_are_told_apart_by_one_logit() -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(200, 4))
    truth = np.where(features[:, 1] > 0, 2, 9)
    read = fit_acts(features, truth, len(ACTS), 1.0)(features).argmax(axis=1)
    assert (read == truth).mean() > 0.95


# Far from what the acts are worth, as places are.
PLACES = np.sign(WORTH) * np.sqrt(np.abs(WORTH))


def test_heads_in_torch_mix_acts_as_numpy_does() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(60, 9)).astype(np.float32)
    flags = fit_flags(features, random.random((60, 1)) > 0.5, np.ones((60, 1), bool), 0.1)
    acts = fit_acts(features, random.integers(0, 16, 60), 16, 0.1, meaning=4)
    heads = build_heads(
        HeadSpec(("a",), 5, meaning_size=4, acts=tuple(ACTS)), acts, flags, [0.5], WORTH, PLACES
    )
    given = torch.from_numpy(features)
    out = heads(given[:, :5], given[:, 5:])
    mixed_B2 = act_delta(softmax(acts(features), axis=1), WORTH, PLACES)
    assert np.abs(out.delta_B2.detach().numpy() - mixed_B2).max() < 1e-6


def _claimants(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return asks of one of two things (logits), evidence, and acts: help or a lie, by what one has."""
    random = np.random.default_rng(6)
    asked_B, has_BN = random.integers(0, 3, count), random.random((count, 2)) > 0.5
    asks_BN = np.where(asked_B[:, None] == np.arange(2), 4.0, -4.0)
    acts = list(ACTS)
    has_it = has_BN[np.arange(count), np.minimum(asked_B, 1)]
    made = np.where(has_it, acts.index("help"), acts.index("lie"))
    told = [
        Evidence({flag: Bearing(bool(has)) for flag, has in zip("ab", has_N, strict=True)})
        for has_N in has_BN
    ]
    evidence_BE = np.array([one.numbers("ab") for one in told])
    return asks_BN, evidence_BE, np.where(asked_B < 2, made, acts.index("neutral"))


_LOGIT_ALONE = Linear(np.array([[1.0, 0.0, 0.0]]), np.zeros(1))


def test_claims_tell_what_no_sum_tells() -> None:
    asks_BN, evidence_BE, act_B = _claimants(400)
    both = np.hstack([asks_BN, evidence_BE]).astype(np.float64)
    summed = fit_acts(both, act_B, len(ACTS), 1.0)(both)
    assert (summed.argmax(axis=1) != act_B).mean() > 0.1
    features_BF = claim_features(asks_BN, evidence_BE, _LOGIT_ALONE)
    fit = fit_on_top(summed, features_BF, act_B, 1e-4)
    assert (fit(summed, features_BF).argmax(axis=1) == act_B).all()


def test_nearness_to_a_rule_tells_what_is_asked_for_where_the_logit_does_not() -> None:
    random = np.random.default_rng(4)
    asks_BN = random.random((500, 2)) > 0.7
    near_BN = np.where(asks_BN, 0.6, 0.2) + random.normal(scale=0.1, size=asks_BN.shape)
    told = [
        Evidence({flag: Bearing(None, rule=rule) for flag, rule in zip("ab", near_N, strict=True)})
        for near_N in near_BN
    ]
    evidence_BE = np.array([one.numbers("ab") for one in told])
    near = fit_nearness(random.normal(size=asks_BN.shape), evidence_BE, asks_BN)
    weight_3 = near.weight_NH[0]
    assert weight_3[1] > 5.0
    assert abs(weight_3[0]) < 1.0
    # A flag that is nowhere part of the stage has no part in it.
    elsewhere_BE = np.array([Evidence().numbers("ab")] * 500)
    alone = fit_nearness(asks_BN * 1.0, elsewhere_BE, asks_BN)
    assert alone.weight_NH.tolist() == _LOGIT_ALONE.weight_NH.tolist()


def test_a_fit_on_top_that_has_nothing_to_add_leaves_what_is_there() -> None:
    random = np.random.default_rng(5)
    logits = random.normal(size=(3000, 16)) * 2
    act_B = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    fit = fit_on_top(logits, random.normal(size=(3000, 3)), act_B, 0.01)
    assert fit.scale == pytest.approx(1.0, abs=0.1)
    assert np.abs(fit.weight_AF).mean() < 0.1


def test_no_row_is_told_by_a_map_that_knows_its_group() -> None:
    seen: list[set[int]] = []

    def fit(some: Sequence[int]) -> Callable[[Sequence[int]], np.ndarray]:
        seen.append(set(some))
        return lambda index: np.array([[float(at in seen[-1]), float(at)] for at in index])

    index = list(range(10, 50))
    groups = [str(at // 2) for at in index]
    told = others_logits(index, groups, fit)
    assert told[:, 0].tolist() == [0.0] * 40
    assert told[:, 1].tolist() == [float(at) for at in index]
    assert all({at ^ 1 for at in some} == some for some in seen)  # pairs stay together


def test_heads_in_torch_read_claims_as_numpy_does() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(60, 9)).astype(np.float32)
    evidence_BE = random.random((60, evidence_size(2)))
    evidence_BE[:, [1, 5]] = random.integers(-1, 2, (60, 2))
    acts = fit_acts(features, random.integers(0, 16, 60), 16, 0.1, meaning=4)
    asks, flags = (Linear(random.normal(size=(2, 9)), random.normal(size=2)) for _ in range(2))
    near = Linear(random.normal(size=(1, 3)), random.normal(size=1))
    claims = Claims(asks, near, random.normal(size=(16, claims_size(2))))
    chosen = Refit(flags, acts, acts=True, figures={}, claims=claims)
    spec = HeadSpec(("a", "b"), 5, meaning_size=4, acts=tuple(ACTS), claims=True)
    heads = build_heads(spec, acts, flags, [0.5, 0.5], WORTH, claims=claims)
    given = torch.from_numpy(features)
    out = heads(given[:, :5], given[:, 5:], torch.from_numpy(evidence_BE).float())
    expected = chosen.deltas(features, evidence_BE)
    assert np.abs(out.delta_B2.detach().numpy() - expected).max() < 1e-5


def test_a_flag_head_that_served_so_far_is_a_candidate(corpus: Corpus) -> None:
    divided = _opened(_divided(corpus))
    states = np.random.default_rng(1).normal(size=(len(divided.rows), 8))
    states[:, :8] += 9.0 * divided.labels.truth_BN  # told, but in places that no row of train shows
    train = list(divided.split.train)
    states[train] = 0.0
    width = join(states, divided.heard).shape[1]
    known = Linear(np.eye(8, width), np.zeros(8))
    found = refit(divided, states, before=known)
    assert found.figures["flags_auprc"]["as before"] == pytest.approx(1.0)
    assert found.flags is known


def test_claims_bring_what_other_maps_say_of_the_training_rows(corpus: Corpus) -> None:
    divided = _divided(corpus)
    state_BH = np.random.default_rng(1).normal(size=(len(divided.rows), 8))
    found = refit(divided, state_BH)
    assert (found.others is not None) == (found.claims is not None)
    if found.others is not None:
        assert found.others.index == tuple(divided.split.train)
        assert found.others.act_BA.shape == (len(divided.split.train), len(ACTS))


def test_few_rows_are_fitted_without_claims(corpus: Corpus) -> None:
    divided = _divided(corpus)
    train = [at for at in divided.split.train if not divided.rows[at].group][:3]
    few = replace(divided, split=replace(divided.split, train=tuple(train)))
    assert refit(few, np.zeros((len(few.rows), 8))).claims is None


def test_a_sentence_vector_weighs_as_much_as_the_hidden_state() -> None:
    random = np.random.default_rng(4)
    meaning = random.normal(size=(50, 6))
    meaning /= np.linalg.norm(meaning, axis=1, keepdims=True)
    scaled = Scaling.of(join(random.normal(size=(50, 10)) * 30, meaning), 6)(
        join(random.normal(size=(50, 10)) * 30, meaning)
    )
    lengths = np.linalg.norm(scaled[:, 10:], axis=1)
    assert lengths == pytest.approx(10**0.5)


def _acts(deceitful: np.ndarray) -> np.ndarray:
    act_BA = np.zeros((len(deceitful), len(ACTS)))
    act_BA[:, list(ACTS).index("lie")] = deceitful
    act_BA[:, list(ACTS).index("neutral")] = 1.0 - deceitful
    return act_BA


def test_the_limit_of_bad_faith_keeps_attacks_out_and_honest_turns_in(corpus: Corpus) -> None:
    divided = _divided(corpus)
    attacks = ~divided.labels.truth_BN.any(axis=1)
    rows = [
        row.model_copy(update={"attack": bool(attack)})
        for row, attack in zip(divided.rows, attacks, strict=True)
    ]
    opened = _opened(replace(divided, rows=rows))
    acts = _acts(np.where(attacks, 0.6, 0.3))
    rule, reached = choose_bad_faith(opened, range(len(rows)), acts)
    assert rule.acts == DECEIT
    assert 0.3 < rule.limit <= 0.6
    assert reached["0.30"] == {"refused": 1.0, "attacks_known": 1.0}
    assert reached["0.60"] == {"refused": 0.0, "attacks_known": 1.0}
    cut = with_bad_faith(rule, _acts(np.array([0.9, 0.1])), np.array([0.5, 0.4]))
    assert cut.tolist() == [[OUT_OF_REACH] * 2, [0.5, 0.4]]


def test_without_attacks_there_is_no_limit(corpus: Corpus) -> None:
    opened = _opened(_divided(corpus))
    honest = replace(opened, rows=[row.model_copy(update={"attack": False}) for row in opened.rows])
    truth = honest.labels.truth_BN
    acts = _acts(np.full(len(truth), 0.1))
    rule, _ = choose_bad_faith(honest, range(len(truth)), acts)
    assert rule.limit == 1.0


def test_the_limit_is_chosen_by_training_rows_that_others_told(corpus: Corpus) -> None:
    divided = _opened(_divided(corpus))
    attacks = ~divided.labels.truth_BN.any(axis=1)
    rows = [
        row.model_copy(update={"attack": bool(attack) and at % 3 > 0})  # none of `valid`
        for at, (row, attack) in enumerate(zip(divided.rows, attacks, strict=True))
    ]
    divided = replace(divided, rows=rows)
    logits = np.where(divided.labels.truth_BN, 3.0, -3.0)
    acts = _acts(np.where(attacks, 0.6, 0.3))
    nothing = Linear(np.zeros((8, 1)), np.zeros(8))
    blind = Refit(nothing, nothing, acts=True, figures={})
    assert choose_cut(divided, blind, logits, acts).bad_faith == BadFaith(DECEIT, 1.0)
    train = tuple(divided.split.train)
    seeing = replace(blind, others=Others(train, acts[list(train)]))
    cut = choose_cut(divided, seeing, logits, acts)
    assert cut.bad_faith is not None
    assert 0.3 < cut.bad_faith.limit <= 0.6


def test_without_the_rule_thresholds_stay() -> None:
    acts: Any = _acts(np.array([0.9]))
    assert with_bad_faith(None, acts, np.array([0.5])).tolist() == [[0.5]]
    assert deceit(acts).tolist() == [0.9]
    assert BadFaith(DECEIT, 1.0).limit == 1.0


def test_thresholds_hold_beyond_the_rows_that_they_were_chosen_on() -> None:
    random = np.random.default_rng(5)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        truth = random.random((count, 6)) < 0.2
        return np.clip(0.45 * truth + 0.3 + random.normal(0, 0.15, truth.shape), 0, 1), truth

    few, few_truth = drawn(60)
    many, many_truth = drawn(4000)
    everywhere = np.ones_like(few_truth)
    own = choose_thresholds(few, few_truth, everywhere)
    steady = steady_thresholds(few, few_truth, everywhere)
    assert np.ptp(steady) < np.ptp(own)
    scores = [
        f1_scores(many_truth, many >= np.array(cut))["flag_macro_f1"] for cut in (steady, own)
    ]
    assert scores[0] >= scores[1]


def test_thresholds_of_flags_that_differ_stay_apart() -> None:
    random = np.random.default_rng(6)
    truth = random.random((600, 2)) < 0.3
    probability = np.where(truth, [0.3, 0.9], [0.1, 0.7]) + random.normal(0, 0.02, truth.shape)
    low, high = steady_thresholds(probability, truth, np.ones_like(truth))
    assert low < 0.35 < 0.65 < high


def test_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    from training.fit_heads import _f1

    random = np.random.default_rng(7)
    truth, fired = random.random((40, 5)) < 0.3, random.random((40, 5)) < 0.4
    truth[:, 4] = fired[:, 4] = False
    expected = f1_score(truth, fired, average=None, zero_division=0.0)
    assert _f1(truth, fired, axis=0) == pytest.approx(expected)
