"""The values that a turn is made of between its steps, and the result they add up to. Pure.

Knows nothing of storage, models or the vector store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.decision import moved
from engine.npc import NPC
from engine.schema import (
    Action,
    Delta,
    FlagDetail,
    GenParams,
    LineSource,
    Meta,
    ModelInfo,
    Reaction,
    Route,
    SessionState,
    Timings,
    TurnRequest,
    TurnResult,
)


@dataclass(frozen=True)
class TurnFrame:
    """What is known of a turn before anything is decided.

    `npc` speaks; `before` is the session's state, `state` the same with the game's context over it;
    `utterance` is cleaned. `version` is the session's before the turn.
    """

    request: TurnRequest
    turn_id: str
    npc: NPC
    before: SessionState
    state: SessionState
    version: int
    utterance: str
    seed: int
    flags: tuple[str, ...]
    model: ModelInfo


@dataclass(frozen=True)
class Outcome:
    """What a turn decided, whichever route it took."""

    route: Route
    delta: Delta
    details: Mapping[str, FlagDetail]
    actions: tuple[Action, ...] = ()
    line: LineSource = "generated"
    route_reason: str | None = None
    reaction: Reaction | None = None
    acts: Mapping[str, float] = field(default_factory=dict)

    @property
    def fired(self) -> tuple[str, ...]:
        """The flags that fired."""
        return tuple(flag for flag, detail in self.details.items() if detail.fired)


def seed_of(params: GenParams, player_id: str, npc_id: str, version: int, utterance: str) -> int:
    """Return the seed asked for, else one that follows from the turn: the same turn, the same line."""
    if params.seed is not None:
        return params.seed
    key = "\x1f".join((player_id, npc_id, str(version), utterance))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") & 0x7FFFFFFF


def effect_id(frame: TurnFrame, flag: str) -> str:
    """Return the id under which a game applies an effect once, however often it sees the turn."""
    key = "\x1f".join((frame.request.player_id, frame.npc.id, frame.turn_id, flag))
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def off_details(flags: Sequence[str], why: str) -> dict[str, FlagDetail]:
    """Return details in which no flag fires, because of `why`."""
    return {
        flag: FlagDetail(
            probability=None,
            threshold=None,
            permitted=False,
            fired=False,
            reason=why,
        )
        for flag in flags
    }


def build_result(
    frame: TurnFrame, outcome: Outcome, text: str, *, next_stage: str, timings: Timings
) -> TurnResult:
    """Put the answer together."""
    return TurnResult(
        text=text,
        delta=outcome.delta,
        flags={flag: detail.fired for flag, detail in outcome.details.items()},
        meta=Meta(
            npc_id=frame.npc.id,
            player_id=frame.request.player_id,
            turn_id=frame.turn_id,
            version=frame.version + 1,
            route=outcome.route,
            route_reason=outcome.route_reason,
            language=frame.npc.language,
            line=outcome.line,
            quest_stage=frame.state.quest_stage,
            next_quest_stage=next_stage,
            state_before=frame.state.standing,
            state=moved(frame.state.standing, outcome.delta),
            actions=outcome.actions,
            flags_detail=dict(outcome.details),
            reaction=outcome.reaction,
            acts=dict(outcome.acts),
            model=frame.model,
            seed=frame.seed,
            timings_ms=timings,
        ),
    )
