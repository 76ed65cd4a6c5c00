from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decision import Reading, Rules, Verdict, decide, moved
from engine.npc import DeltaPolicy, Range, Temper
from engine.schema import FLAGS, Delta

PERMITTED = Verdict(True)


def reading(trust: float = 0.0, relationship: float = 0.0, **probabilities: float) -> Reading:
    found = dict.fromkeys(FLAGS, 0.0) | probabilities
    return Reading(trust, relationship, found, dict.fromkeys(FLAGS, 0.5))


def rules(**changes: Any) -> Rules:
    policy = DeltaPolicy(
        trust=Range(min=-0.5, max=0.5, per_turn_cap=0.15),
        relationship=Range(min=-0.5, max=0.5, per_turn_cap=0.25),
        repeat_factor=0.25,
    )
    given_rules: dict[str, Any] = {
        "verdicts": dict.fromkeys(FLAGS, PERMITTED),
        "overrides": {},
        "policy": policy,
        "standing": Delta(),
        "spent": Delta(),
    }
    return Rules(**{**given_rules, **changes})


def trust_of(value: float, **changes: Any) -> float:
    return decide(reading(trust=value), rules(**changes)).delta.trust


def test_flags_keep_the_order_of_the_bundle() -> None:
    assert tuple(decide(reading(), rules()).flags) == FLAGS


def test_probability_at_the_threshold_fires() -> None:
    decision = decide(reading(give_item=0.5, give_hint=0.499), rules())
    assert decision.fired == ("give_item",)
    assert decision.details["give_item"].reason is None
    assert decision.details["give_hint"].reason == "the model reads 0.499, below the threshold 0.5"


def test_what_people_see_decides() -> None:
    decision = decide(reading(give_item=0.4996), rules())
    assert decision.details["give_item"].probability == 0.5
    assert decision.flags["give_item"]


def test_threshold_of_the_npc_file_goes_before_the_bundles() -> None:
    high = decide(reading(give_item=0.8), rules(overrides={"give_item": 0.9}))
    assert not high.flags["give_item"]
    assert high.details["give_item"].threshold == 0.9
    low = decide(reading(give_item=0.2), rules(overrides={"give_item": 0.1}))
    assert low.flags["give_item"]


def test_gate_refuses_however_sure_the_model_is() -> None:
    refused = Verdict(False, "needs the item lantern")
    detail = decide(reading(give_item=1.0), rules(verdicts={"give_item": refused})).details[
        "give_item"
    ]
    assert (detail.fired, detail.permitted, detail.reason) == (
        False,
        False,
        "needs the item lantern",
    )
    assert detail.probability == 1.0


def test_flag_that_the_stage_does_not_have_says_so() -> None:
    detail = decide(reading(give_item=1.0), rules(verdicts={})).details["give_item"]
    assert (detail.fired, detail.reason) == (False, "is not part of this stage")


@pytest.mark.parametrize(("value", "expected"), [(0.9, 0.15), (-0.9, -0.15), (0.1, 0.1)])
def test_delta_stays_within_the_cap_of_a_turn(value: float, expected: float) -> None:
    assert trust_of(value) == expected


def test_each_standing_has_its_own_cap() -> None:
    delta = decide(reading(0.9, 0.9), rules()).delta
    assert delta == Delta(trust=0.15, relationship=0.25)


@pytest.mark.parametrize(
    ("value", "spent", "expected"),
    [
        (0.1, 0.45, 0.05),
        (0.1, 0.5, 0.0),
        (-0.1, -0.45, -0.05),
        (-0.1, -0.5, 0.0),
        (-0.1, 0.5, -0.1),
        (0.1, -0.5, 0.1),
    ],
)
def test_delta_stays_within_the_range_of_the_stage(
    value: float, spent: float, expected: float
) -> None:
    assert trust_of(value, spent=Delta(trust=spent)) == expected


@pytest.mark.parametrize(("value", "spent"), [(0.1, 0.8), (-0.1, -0.8)])
def test_what_was_spent_beyond_the_range_is_not_taken_back(value: float, spent: float) -> None:
    assert trust_of(value, spent=Delta(trust=spent)) == 0.0


@pytest.mark.parametrize(
    ("value", "standing", "expected"),
    [(0.1, 0.95, 0.05), (0.1, 1.0, 0.0), (-0.1, -0.95, -0.05), (-0.1, -1.0, 0.0)],
)
def test_standing_stays_within_minus_one_and_one(
    value: float, standing: float, expected: float
) -> None:
    assert trust_of(value, standing=Delta(trust=standing)) == expected


@pytest.mark.parametrize(("repeats", "expected"), [(0, 0.1), (1, 0.025), (2, 0.006), (9, 0.0)])
def test_gain_shrinks_each_time_the_same_is_said(repeats: int, expected: float) -> None:
    assert trust_of(0.1, repeats=repeats) == expected


@pytest.mark.parametrize("repeats", [0, 1, 5])
def test_loss_does_not_shrink_when_the_same_is_said(repeats: int) -> None:
    assert trust_of(-0.1, repeats=repeats) == -0.1


def test_temper_bends_what_is_read_before_the_bounds() -> None:
    grudging = rules(temper=Temper(gain=0.5, loss=1.5))
    assert decide(reading(trust=0.1, relationship=-0.06), grudging).delta == Delta(
        trust=0.05, relationship=-0.09
    )
    assert decide(reading(trust=-0.4), grudging).delta.trust == -0.15  # the cap of a turn


def test_delta_has_three_digits() -> None:
    assert trust_of(0.0123456) == 0.012
    assert trust_of(-0.0126) == -0.013


@pytest.mark.parametrize("value", [-0.0, -0.0004, 0.0])
def test_no_change_is_never_minus_zero(value: float) -> None:
    assert math.copysign(1.0, trust_of(value)) == 1.0


def test_cap_of_zero_holds_the_standing() -> None:
    policy = DeltaPolicy(trust=Range(per_turn_cap=0.0))
    assert trust_of(-0.9, policy=policy) == 0.0


def test_moved_adds_and_stays_within_bounds() -> None:
    assert moved(Delta(trust=0.1), Delta(trust=0.2)) == Delta(trust=0.3)
    assert moved(Delta(trust=0.9), Delta(trust=0.5, relationship=-0.5)) == Delta(
        trust=1.0, relationship=-0.5
    )


units = st.floats(-1.0, 1.0)
thousandths = st.integers(-1000, 1000).map(lambda count: count / 1000)
probabilities = st.fixed_dictionaries(dict.fromkeys(FLAGS, st.floats(0.0, 1.0)))


@st.composite
def any_rules(draw: st.DrawFn) -> Rules:
    def a_range() -> Range:
        low, high, cap = draw(st.tuples(*[st.integers(0, 1000)] * 3))
        return Range(min=-low / 1000, max=high / 1000, per_turn_cap=cap / 1000)

    def a_delta() -> Delta:
        return Delta(trust=draw(thousandths), relationship=draw(thousandths))

    return Rules(
        verdicts={
            flag: Verdict(draw(st.booleans()), "refused")
            for flag in FLAGS
            if draw(st.integers(0, 3))
        },
        overrides=draw(st.dictionaries(st.sampled_from(FLAGS), st.floats(0.0, 1.0))),
        policy=DeltaPolicy(
            trust=a_range(), relationship=a_range(), repeat_factor=draw(st.floats(0.0, 1.0))
        ),
        standing=a_delta(),
        spent=a_delta(),
        repeats=draw(st.integers(0, 20)),
    )


@given(units, units, probabilities, probabilities, any_rules())
def test_decision_keeps_every_bound_whatever_the_model_reads(
    trust: float,
    relationship: float,
    chances: dict[str, float],
    thresholds: dict[str, float],
    bounds: Rules,
) -> None:
    read = Reading(trust, relationship, chances, thresholds)
    decision = decide(read, bounds)

    assert decision == decide(read, bounds)
    permitted = {flag for flag, verdict in bounds.verdicts.items() if verdict.permitted}
    assert set(decision.fired) <= permitted
    for flag, detail in decision.details.items():
        assert (detail.reason is None) == detail.fired == decision.flags[flag]
    after = moved(bounds.standing, decision.delta)
    for name in ("trust", "relationship"):
        delta, limits = getattr(decision.delta, name), getattr(bounds.policy, name)
        spent, standing = getattr(bounds.spent, name), getattr(bounds.standing, name)
        assert abs(delta) <= limits.per_turn_cap
        assert delta == round(delta, 3)
        assert math.copysign(1.0, delta) == (-1.0 if delta < 0 else 1.0)
        if delta > 0:
            assert spent + delta <= limits.max + 1e-9
        if delta < 0:
            assert spent + delta >= limits.min - 1e-9
        assert getattr(after, name) == pytest.approx(standing + delta, abs=1e-9)


def deceitful(probability: float, limit: float = 0.3) -> Reading:
    return replace(
        reading(give_item=0.9, npc_action=0.9),
        acts={"lie": probability, "help": 1.0 - probability},
        bad_faith=probability,
        bad_faith_limit=limit,
    )


def test_nothing_is_granted_to_a_player_who_seems_to_deceive() -> None:
    decision = decide(deceitful(0.3), rules())
    assert decision.fired == ()
    assert decision.details["give_item"].permitted
    reason = "the player seems to act in bad faith (0.3, limit 0.3)"
    assert decision.details["give_item"].reason == reason
    assert decision.acts == {"lie": 0.3, "help": 0.7}
    assert decide(deceitful(0.299), rules()).fired == ("give_item", "npc_action")


def test_what_an_npc_does_because_it_is_deceived_still_happens() -> None:
    decision = decide(deceitful(0.8), rules(even_in_bad_faith=frozenset({"npc_action"})))
    assert decision.fired == ("npc_action",)


def test_a_flag_below_its_threshold_is_told_as_such_even_in_bad_faith() -> None:
    low = replace(deceitful(0.8), probabilities=dict.fromkeys(FLAGS, 0.1))
    assert "below the threshold" in (decide(low, rules()).details["give_item"].reason or "")


def test_a_bundle_without_acts_never_sees_bad_faith() -> None:
    assert not replace(reading(), bad_faith=1.0, bad_faith_limit=0.5).deceives
