"""One quest stage: its description, delta policy, example turns and fallback lines.

Knows nothing of other stages but their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.npc import DeltaPolicy
from engine.npc_import.documents import Description, Fallback, TriggerDef, Turn
from engine.npc_import.rules import allowed_flags, fires, rules_of
from engine.npc_import.source import Source, given
from engine.schema import ANY_STAGE

_ABOUT_LENGTH = 200


def stage_of(source: Source, stage: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return one stage as a file would hold it."""
    triggers = source.of(TriggerDef, stage)
    described = source.of(Description, stage)
    description = "\n".join(one.content for one in described)
    for trigger in triggers:
        if trigger.description and description:
            source.warn(trigger, "description is left out: the stage has one already")
        description = description or trigger.description
    return given(
        {
            "description": description,
            "flags": rules_of(source, stage, stages),
            "delta_policy": _delta_policy(source, triggers),
            "turns": _turns(source, stage, stages),
            "fallback": [_fallback(source, one) for one in source.of(Fallback, stage)],
        }
    )


def _delta_policy(source: Source, triggers: Sequence[TriggerDef]) -> dict[str, Any] | None:
    first: TriggerDef | None = None
    for one in triggers:
        lacks = {"trust", "relationship"} - (one.delta_policy or DeltaPolicy()).model_fields_set
        if lacks:
            source.warn(one, f"delta_policy lacks {', '.join(sorted(lacks))}; usual bounds hold")
        if first is None and one.delta_policy:
            first = one
        elif first and one.delta_policy and one.delta_policy != first.delta_policy:
            source.warn(one, f"delta_policy is left out: {first.id} sets the stage's")
    return first.delta_policy.model_dump(mode="json") if first and first.delta_policy else None


def _fallback(source: Source, document: Fallback) -> dict[str, Any]:
    style = document.fallback_style
    if len(document.content) > _ABOUT_LENGTH:
        source.warn(document, f"content is cut to {_ABOUT_LENGTH} characters")
    text = document.npc or source.made_line(document, style.npc_action, style.npc_emotion)
    about = document.content[:_ABOUT_LENGTH]
    return given({"text": text, "mood": style.npc_emotion, "about": about})


def _turns(source: Source, stage: str, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Return a stage's example turns by turn_index; those without one come last."""
    turns = source.of(Turn, stage)
    turns.sort(key=lambda one: (one.turn_index is None, one.turn_index or 0))
    places = {ANY_STAGE, *(stages if stage == ANY_STAGE else [stage])}
    allowed = {flag for place in places for flag in allowed_flags(source, place)}
    rows = []
    for turn in turns:
        fired = [source.flag(turn, name) for name, value in turn.flags.items() if fires(value)]
        flags = list(dict.fromkeys(flag for flag in fired if flag))
        for flag in flags:
            if flag not in allowed:
                source.warn(turn, f"no trigger_def allows {flag} here, so this turn never comes up")
        row = turn.model_dump(mode="json", include={"player", "npc", "delta", "emotion"})
        rows.append(given({**row, "flags": flags}))
    return rows
