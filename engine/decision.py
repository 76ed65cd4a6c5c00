"""From what the heads read to what happens: calibrated, thresholded, gated, bounded. Pure.

Knows nothing of models, files or storage: the same values in give the same decision out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.npc import DeltaPolicy, Range, Temper
from engine.schema import Delta, FlagDetail, round3


@dataclass(frozen=True)
class Reading:
    """What the heads read at <STATE>: delta in -1..1, calibrated probability and threshold a flag.

    The deltas are those of an NPC of even temper.
    `acts` are the probabilities of the ways in which the player may treat the NPC (none where the
    bundle knows none), `bad_faith` how probable it is that the player deceives, and `bad_faith_limit`
    from where on that counts.
    """

    trust: float
    relationship: float
    probabilities: Mapping[str, float]
    thresholds: Mapping[str, float]
    acts: Mapping[str, float] = field(default_factory=dict)
    bad_faith: float = 0.0
    bad_faith_limit: float = 1.0

    @property
    def deceives(self) -> bool:
        """Whether the player seems to deceive."""
        return bool(self.acts) and round3(self.bad_faith) >= round3(self.bad_faith_limit)


@dataclass(frozen=True)
class Verdict:
    """The gate's word on one flag; `reason` says what is missing where it is not permitted.

    `facts` says whether all items, actions and game state that the flag's conditions name are there,
    whatever else is missing; None where they name none. It helps to tell an honest claim from a false
    one.
    """

    permitted: bool
    reason: str | None = None
    facts: bool | None = None


@dataclass(frozen=True)
class Rules:
    """Everything the decision depends on besides the reading.

    Args:
        verdicts: flag → the gate's word; flags without one are not permitted.
        overrides: flag → threshold of the NPC file, which goes before the bundle's.
        policy: bounds of the deltas.
        standing: trust and relationship before the turn.
        spent: sum of the deltas granted so far in this stage.
        repeats: how often the player has said the same before.
        even_in_bad_faith: flags that fire though the player seems to deceive.
        temper: the NPC's, which what is read of a turn is bent by.
    """

    verdicts: Mapping[str, Verdict]
    overrides: Mapping[str, float]
    policy: DeltaPolicy
    standing: Delta
    spent: Delta
    repeats: int = 0
    even_in_bad_faith: frozenset[str] = frozenset()
    temper: Temper = field(default_factory=Temper)


@dataclass(frozen=True)
class Decision:
    """What happens this turn."""

    delta: Delta
    flags: Mapping[str, bool]
    details: Mapping[str, FlagDetail]
    acts: Mapping[str, float] = field(default_factory=dict)

    @property
    def fired(self) -> tuple[str, ...]:
        """The flags that fire, in the bundle's order."""
        return tuple(flag for flag, on in self.flags.items() if on)


def decide(reading: Reading, rules: Rules) -> Decision:
    """Decide every flag and the delta."""
    details = {flag: _flag_detail(flag, reading, rules) for flag in reading.probabilities}
    delta = Delta(
        trust=bounded(rules.temper.bent(reading.trust), rules, "trust"),
        relationship=bounded(rules.temper.bent(reading.relationship), rules, "relationship"),
    )
    return Decision(
        delta=delta,
        flags={flag: detail.fired for flag, detail in details.items()},
        details=details,
        acts=reading.acts,
    )


def _flag_detail(flag: str, reading: Reading, rules: Rules) -> FlagDetail:
    probability = round3(reading.probabilities[flag])
    threshold = round3(rules.overrides.get(flag, reading.thresholds[flag]))
    verdict = rules.verdicts.get(flag, Verdict(False, "is not part of this stage"))
    # The rounded values are compared, so that what people see decides.
    reached = probability >= threshold
    reason = verdict.reason if not verdict.permitted else None
    if verdict.permitted and not reached:
        reason = f"the model reads {probability:g}, below the threshold {threshold:g}"
    barred = reading.deceives and flag not in rules.even_in_bad_faith
    if verdict.permitted and reached and barred:
        reason = (
            f"the player seems to act in bad faith ({round3(reading.bad_faith):g}, "
            f"limit {round3(reading.bad_faith_limit):g})"
        )
    return FlagDetail(
        probability=probability,
        threshold=threshold,
        permitted=verdict.permitted,
        fired=verdict.permitted and reached and not barred,
        reason=reason,
    )


def bounded(value: float, rules: Rules, name: str) -> float:
    """Bound one delta: repeats, the cap of a turn, the range of the stage, and -1..1 of the standing.

    A player who says the same again gains less each time, but an insult said twice hurts twice.
    """
    bounds: Range = getattr(rules.policy, name)
    if value > 0:
        value *= rules.policy.repeat_factor**rules.repeats
    value = _clamp(value, -bounds.per_turn_cap, bounds.per_turn_cap)
    # Trust that the game or a reaction set beyond the range must not pull the delta to the other side.
    spent = getattr(rules.spent, name)
    value = _clamp(value, min(0.0, bounds.min - spent), max(0.0, bounds.max - spent))
    standing = getattr(rules.standing, name)
    return round3(_clamp(value, -1.0 - standing, 1.0 - standing))


def moved(standing: Delta, delta: Delta) -> Delta:
    """Return the standing after `delta`, kept within -1..1."""
    return Delta(
        trust=round3(_clamp(standing.trust + delta.trust, -1.0, 1.0)),
        relationship=round3(_clamp(standing.relationship + delta.relationship, -1.0, 1.0)),
    )


def _clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))
