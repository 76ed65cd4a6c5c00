"""What a turn does to a session's state: start, merge with the game's context, move on. Pure.

Knows nothing of storage, models or prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.decision import moved
from engine.errors import InvalidRequest
from engine.npc import NPC
from engine.schema import (
    MAX_HISTORY,
    MAX_LINE,
    MAX_NAME,
    Context,
    Delta,
    HistoryTurn,
    SessionState,
    round3,
)
from engine.text import fold

_SAID_REMEMBERED = 20


def initial_state(npc: NPC) -> SessionState:
    """Return the state of a player whom `npc` has never met."""
    defaults = npc.defaults
    return SessionState(
        quest_stage=defaults.quest_stage,
        location=defaults.location,
        npc_mood=defaults.npc_mood,
        player_reputation=defaults.player_reputation,
        style=npc.persona.style[:MAX_NAME] or "neutral",
        standing=Delta(trust=defaults.trust, relationship=defaults.relationship),
    )


def merge_context(state: SessionState, context: Context, npc: NPC) -> SessionState:
    """Return `state` with everything that the game sent put over it.

    Raises:
        InvalidRequest: the quest stage is not one of the NPC's.
    """
    stage = context.quest_stage or state.quest_stage
    if stage not in npc.quest_stages:
        if context.quest_stage is None:  # the NPC file lost the stage since the last turn
            stage = npc.defaults.quest_stage
        else:
            raise InvalidRequest(
                f"context.quest_stage: {npc.id} has no stage {stage!r}; it has "
                f"{', '.join(npc.quest_stages)}",
                field="context.quest_stage",
            )
    sent = context.model_dump(
        include={
            "location",
            "npc_mood",
            "player_reputation",
            "style",
            "items",
            "actions",
            "game_state",
        },
        exclude_none=True,
    )
    standing = Delta(
        trust=state.standing.trust if context.trust is None else round3(context.trust),
        relationship=(
            state.standing.relationship
            if context.relationship is None
            else round3(context.relationship)
        ),
    )
    history = state.history if context.dialogue_history is None else context.dialogue_history
    return state.model_copy(
        update={
            **sent,
            "quest_stage": stage,
            "standing": standing,
            "history": history,
            "spent": state.spent if stage == state.quest_stage else Delta(),
        }
    )


def after_turn(
    state: SessionState,
    npc: NPC,
    *,
    utterance: str,
    line: str,
    delta: Delta,
    fired: Iterable[str] = (),
    history_turns: int,
) -> SessionState:
    """Return the state that follows a turn: standing, stage, memory of the talk and of what fired."""
    fired = tuple(fired)
    rules = npc.stage(state.quest_stage).flags
    stage = state.quest_stage
    if "quest_stage_change" in fired:
        stage = rules["quest_stage_change"].value or stage
    keys = [npc.rule_key(state.quest_stage, flag) for flag in fired]
    spent = Delta(
        trust=round3(max(-1.0, min(1.0, state.spent.trust + delta.trust))),
        relationship=round3(max(-1.0, min(1.0, state.spent.relationship + delta.relationship))),
    )
    talk = (*state.history, HistoryTurn(player=utterance[:MAX_LINE], npc=line[:MAX_LINE]))
    return state.model_copy(
        update={
            "quest_stage": stage,
            "standing": moved(state.standing, delta),
            "spent": spent if stage == state.quest_stage else Delta(),
            "history": talk[-history_turns:] if history_turns else (),
            "fired": tuple(dict.fromkeys([*state.fired, *keys])),
            "said": (*state.said, fold(utterance))[-min(_SAID_REMEMBERED, MAX_HISTORY) :],
        }
    )
