"""The flags of a stage: which trigger_def allows one, when it may fire, and what it then gives.

Only a trigger_def can make a flag fire; flag_def and dialogue_turn fill in the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.npc_import.documents import (
    FlagDef,
    NameParts,
    Standing,
    StandingParts,
    StateParts,
    TriggerDef,
    Turn,
    Validate,
)
from engine.npc_import.made_up import made_text
from engine.npc_import.source import Source, given, today_name
from engine.schema import ANY_STAGE, Scalar

_FIRES = {"yes", "true", "1"}
_FIRES_NOT = {"no", "false", "0", ""}


def rules_of(source: Source, stage: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return the rules of a stage's flags. Only a trigger_def can make a flag fire."""
    allowed = allowed_flags(source, stage)
    for one in source.of(FlagDef, stage):
        flag = source.flag(one, one.flag_name)
        elsewhere = stage == ANY_STAGE and any(
            flag in allowed_flags(source, name) for name in stages
        )
        if flag and flag not in allowed and not elsewhere:
            source.warn(one, f"no trigger_def allows {flag} at stage {stage!r}; it is left out")
    rules = {flag: _rule(source, stage, flag, document) for flag, document in allowed.items()}
    change = rules.get("quest_stage_change")
    if change is not None and not _has_next_stage(source, stage, stages, change):
        del rules["quest_stage_change"]
    _add_answer_examples(source, stage, rules)
    return rules


def _rule(source: Source, stage: str, flag: str, document: TriggerDef) -> dict[str, Any]:
    value = _value(source, stage, flag)
    defined = [
        one
        for one in [*source.of(FlagDef, stage), *source.of(FlagDef, ANY_STAGE)]
        if today_name(one.flag_name) == flag
    ]
    text = defined[0].text if defined else None
    if not text:
        text = made_text(source.language, flag, name=source.name, value=value)
        source.warn(document, f"{flag} has no text for people; stands in: {text!r}. Write one")
    rule: dict[str, Any] = {"when": _conditions(source, document), "value": value, "text": text}
    if defined:
        kept = {"threshold", "examples_positive", "examples_negative"}
        rule |= defined[0].model_dump(mode="json", include=kept)
    return given(rule)


def _conditions(source: Source, document: TriggerDef) -> dict[str, Any]:
    """Return a trigger_def's mandatory parts as conditions."""
    trigger = document.trigger
    parts: dict[str, NameParts | StateParts | StandingParts] = {
        "items": trigger.required_items,
        "actions": trigger.required_actions,
        "game_state": trigger.required_game_state,
        "delta": trigger.required_delta,
    }
    for name, part in parts.items():
        if part.optional not in ((), {}, Standing()):
            source.warn(document, f"trigger.required_{name}.optional has no effect here")
    if len(trigger.required_text) > 1:
        source.warn(document, "trigger.required_text: any one of the words is enough here")
    standing = trigger.required_delta.mandatory
    return given(
        {
            "items": list(trigger.required_items.mandatory),
            "actions": list(trigger.required_actions.mandatory),
            "game_state": dict(trigger.required_game_state.mandatory),
            "min_trust": standing.trust,
            "min_relationship": standing.relationship,
            "said": given({"keywords": list(trigger.required_text)}),
        }
    )


def allowed_flags(source: Source, stage: str) -> dict[str, TriggerDef]:
    """Return the flags that a stage may fire, each with the trigger_def that allows it."""
    allowed: dict[str, TriggerDef] = {}
    for document in source.of(TriggerDef, stage):
        barred = {source.flag(document, name) for name in document.flag_policy.forbidden}
        for name in document.flag_policy.allowed:
            flag = source.flag(document, name)
            if flag in barred and flag:
                source.warn(document, f"{flag} is both allowed and forbidden; it stays forbidden")
            elif flag and flag in allowed and allowed[flag] is not document:
                source.warn(document, f"{flag} is left out: {allowed[flag].id} sets its conditions")
            elif flag:
                allowed[flag] = document
    return allowed


def _value(source: Source, stage: str, flag: str) -> str | None:
    """Return what the turns say a flag gives: a flag_value that is a name, not a yes."""
    found: dict[str, Turn] = {}
    for turn in source.of(Turn, stage):
        for name, value in turn.flags.items():
            same = today_name(name) == flag
            if same and isinstance(value, str) and fires(value) and value.lower() not in _FIRES:
                found.setdefault(value, turn)
    for value, turn in list(found.items())[1:]:
        source.warn(turn, f"{flag} {value!r} is left out: a flag gives one value at a stage")
    return next(iter(found), None)


def fires(value: Scalar) -> bool:
    """Tell whether a flag_value says that the flag fires: all but a no, in whatever form."""
    if isinstance(value, str):
        return value.strip().lower() not in _FIRES_NOT
    return bool(value)


def _has_next_stage(
    source: Source, stage: str, stages: Sequence[str], rule: dict[str, Any]
) -> bool:
    """See to it that a change of stage names a stage; False where there is none to name."""
    if rule.get("value") in stages:
        return True
    following = stages[stages.index(stage) + 1 :] if stage in stages else []
    if not following:
        source.warn(None, f"quest_stage_change at {stage!r} names no stage and is left out")
        return False
    rule["value"] = following[0]
    source.warn(None, f"quest_stage_change at {stage!r} is taken to lead to {following[0]!r}")
    return True


def _add_answer_examples(source: Source, stage: str, rules: dict[str, Any]) -> None:
    """Give main_res_validate's examples to npc_main_story where that has none of its own."""
    for one in source.of(Validate, stage):
        if one.text:
            source.warn(one, "text has no counterpart and is left out")
        story = rules.get("npc_main_story")
        if story is None or story.get("examples_positive") or story.get("examples_negative"):
            source.warn(one, "examples are left out: no npc_main_story rule to take them")
            continue
        story["examples_positive"] = list(one.examples_good)
        story["examples_negative"] = list(one.examples_bad)
        source.warn(one, "examples are kept as those of npc_main_story; check that they fit")
