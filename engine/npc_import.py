"""Import of the older flat list of NPC documents into NPC files.

The older form keeps an NPC as many small documents, each with `id`, `type` and `npc_id`:

    trigger_def             conditions and delta policy of a stage; the flags it allows
    flag_def                threshold and examples of a flag (given effect by a trigger_def only)
    dialogue_turn           an example turn; a `flag_value` that is a name is what the flag gives
    fallback                how the NPC behaves when nothing is granted
    forbidden_trigger_list  keywords and sentences that never reach the model
    trigger_meta            the reaction to a forbidden keyword, matched by that keyword
    lore, description, npc_persona, main_res_validate

What it lacks is filled in and warned about: a player starts at the first stage and location named,
with trust and relationship 0; a line, a flag's text, a backstory or a missing delta policy gets a
neutral one. What has no counterpart here is left out and warned about. What would loosen a
condition (an unknown `required_…`) is an error instead.

    python -m engine.npc_import SOURCE.json [--out npc_configs/] [--force]

Knows nothing of the engine that runs the NPCs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from engine.errors import NPCFileError
from engine.npc import NPC, DeltaPolicy, Line, Lines, NPCId, Text, parse_npc
from engine.schema import (
    ANY_STAGE,
    FLAGS,
    Delta,
    GameState,
    Name,
    Names,
    Probability,
    Scalar,
    Unit,
    Value,
    first_complaint,
)
from engine.text import language_of

DEFAULT_STAGE = "not_started"
_LORE_LENGTH = 600
_ABOUT_LENGTH = 200
_LEGACY_FLAGS = {"change_npc_state": "npc_action"}
_FIRES = {"yes", "true", "1"}
_FIRES_NOT = {"no", "false", "0", ""}

_MADE_LINES = {
    "en": {
        "attack": "Enough. One more word like that and you will regret it.",
        "leave": "This talk is over. I am going.",
        "angry": "I will not be spoken to like that.",
        "deflect": "I would rather not speak of that now.",
        "": "I have nothing to say to that.",
    },
    "ko": {
        "attack": "그만해요. 한마디만 더 하면 후회하게 될 거예요.",
        "leave": "이 이야기는 여기까지 해요. 저는 이만 갈게요.",
        "angry": "그런 식으로 말하지 마세요. 듣고 있지 않겠어요.",
        "deflect": "그 이야기는 지금 하고 싶지 않아요.",
        "": "그 말에는 드릴 말씀이 없어요.",
    },
}
"""Stand-in lines by language, then by the action or emotion that the source names."""

_MADE_TEXTS = {
    "en": {
        "give_item": "{name} gives the player: {value}",
        "give_hint": "{name} gives the player a hint: {value}",
        "npc_main_story": "{name} tells a part of the main story: {value}",
        "quest_stage_change": "The quest moves on to: {value}",
        "npc_action": "{name} does something: {value}",
        "change_player_state": "The player's state changes: {value}",
        "change_game_state": "The state of the world changes: {value}",
        "unlock_hidden_path": "A hidden path opens: {value}",
    },
    "ko": {
        "give_item": "{name}의 선물을 플레이어가 받는다: {value}",
        "give_hint": "{name}의 힌트를 플레이어가 듣는다: {value}",
        "npc_main_story": "{name}의 이야기가 드러난다: {value}",
        "quest_stage_change": "퀘스트가 다음 단계로 넘어간다: {value}",
        "npc_action": "{name}의 행동이 일어난다: {value}",
        "change_player_state": "플레이어의 상태가 바뀐다: {value}",
        "change_game_state": "세계의 상태가 바뀐다: {value}",
        "unlock_hidden_path": "숨겨진 길이 열린다: {value}",
    },
}


@dataclass(frozen=True)
class ImportResult:
    """The NPCs, in the source's order, and what a designer should look at, a sentence each."""

    npcs: tuple[NPC, ...]
    warnings: tuple[str, ...]


def _true_by_name(value: Any) -> Any:
    """Read `["door_open"]` as `{"door_open": true}`."""
    if isinstance(value, (list, tuple)):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("must be a list of names")
        return dict.fromkeys(value, True)
    return value


def _flag_values(value: Any) -> Any:
    """Read `[{"flag_name": …, "flag_value": …}]` as `{name: value}`."""
    if not isinstance(value, (list, tuple)):
        return value
    found: dict[Any, Any] = {}
    for entry in value:
        if not isinstance(entry, Mapping) or set(entry) != {"flag_name", "flag_value"}:
            raise ValueError("each entry must hold flag_name and flag_value and nothing else")
        if not isinstance(entry["flag_name"], str) or entry["flag_name"] in found:
            raise ValueError("each flag_name must be a text and stand once")
        found[entry["flag_name"]] = entry["flag_value"]
    return found


class _NameParts(Value):
    mandatory: Names = ()
    optional: Names = ()


class _StateParts(Value):
    mandatory: Annotated[GameState, BeforeValidator(_true_by_name)] = Field(default_factory=dict)
    optional: Annotated[GameState, BeforeValidator(_true_by_name)] = Field(default_factory=dict)


class _Standing(Value):
    trust: Unit | None = None
    relationship: Unit | None = None


class _StandingParts(Value):
    mandatory: _Standing = _Standing()
    optional: _Standing = _Standing()


class _Trigger(Value):
    required_text: Lines = ()
    required_items: _NameParts = _NameParts()
    required_actions: _NameParts = _NameParts()
    required_game_state: _StateParts = _StateParts()
    required_delta: _StandingParts = _StandingParts()


class _FlagPolicy(Value):
    allowed: Names = ()
    forbidden: Names = ()


class _TriggerWords(Value):
    keywords: Lines = ()
    text: Lines = ()


class _Open(BaseModel):
    """Keeps unknown fields, so that each can be warned about."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _FallbackStyle(_Open):
    npc_action: Name | None = None
    npc_emotion: Name | None = None


class _Document(_Open):
    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: str
    npc_id: NPCId
    quest_stage: Name = ANY_STAGE
    location: Name | None = None


class _TriggerDef(_Document):
    trigger: _Trigger
    flag_policy: _FlagPolicy
    delta_policy: DeltaPolicy | None = None
    description: Annotated[str, Field(max_length=4000)] = ""


class _Lore(_Document):
    content: Text


class _Description(_Document):
    content: Text


class _Fallback(_Document):
    content: Text
    npc: Line | None = None
    fallback_style: _FallbackStyle = _FallbackStyle()


class _ForbiddenList(_Document):
    triggers: _TriggerWords


class _TriggerMeta(_Document):
    trigger: Name
    npc: Line | None = None
    npc_action: Name | None = None
    npc_emotion: Name | None = None
    delta: Delta = Delta()


class _FlagDef(_Document):
    flag_name: Name
    text: Text | None = None
    threshold: Probability | None = None
    examples_positive: Lines = ()
    examples_negative: Lines = ()


class _Validate(_Document):
    text: Text | None = None
    examples_good: Lines = ()
    examples_bad: Lines = ()


class _PersonaDoc(_Document):
    persona_name: Name
    style: Annotated[str, Field(max_length=200)] = "neutral"
    traits: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    backstory: Text | None = None


class _Turn(_Document):
    turn_index: int | None = None
    player: Line
    npc: Line
    delta: Delta = Delta()
    flags: Annotated[dict[Name, Scalar], BeforeValidator(_flag_values)] = Field(
        default_factory=dict
    )
    emotion: Name | None = None


_KINDS: Mapping[str, type[_Document]] = {
    "trigger_def": _TriggerDef,
    "fallback": _Fallback,
    "forbidden_trigger_list": _ForbiddenList,
    "trigger_meta": _TriggerMeta,
    "lore": _Lore,
    "description": _Description,
    "flag_def": _FlagDef,
    "main_res_validate": _Validate,
    "npc_persona": _PersonaDoc,
    "dialogue_turn": _Turn,
}

_Kind = TypeVar("_Kind", bound=_Document)


@dataclass
class _Source:
    """One NPC's documents, and the warnings so far."""

    npc_id: str
    documents: list[_Document]
    warnings: list[str] = field(default_factory=list)
    language: str = "en"
    name: str = ""

    def of(self, kind: type[_Kind], stage: str | None = None) -> list[_Kind]:
        """Return the documents of a type, of one stage or (None) of all."""
        found = [document for document in self.documents if isinstance(document, kind)]
        return [one for one in found if stage is None or one.quest_stage == stage]

    def warn(self, about: _Document | None, message: str) -> None:
        warning = f"{about.id if about else self.npc_id}: {message}"
        if warning not in self.warnings:
            self.warnings.append(warning)

    def made_line(self, about: _Document | None, *hints: str | None) -> str:
        lines = _MADE_LINES[self.language]
        line = next((lines[hint] for hint in hints if hint in lines), lines[""])
        self.warn(about, f"has no line to speak; stands in: {line!r}. Write one")
        return line

    def flag(self, about: _Document, name: str) -> str | None:
        """Return today's name of a flag, or None (with a warning) where there is none."""
        if name in FLAGS:
            return name
        today = _LEGACY_FLAGS.get(name)
        if today:
            self.warn(about, f"flag {name!r} is imported as {today!r}")
        else:
            self.warn(about, f"flag {name!r} is unknown and left out; known: {', '.join(FLAGS)}")
        return today


def import_file(path: Path | str) -> ImportResult:
    """Read a list of documents from a JSON file and import it.

    Raises:
        NPCFileError: unreadable, not JSON, or as in `import_documents`.
    """
    path = Path(path)
    try:
        documents = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_doubles
        )
    except json.JSONDecodeError as exc:
        raise NPCFileError(
            f"{path.name}: not valid JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}",
            path=str(path),
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise NPCFileError(f"{path.name}: cannot be read: {exc}", path=str(path)) from exc
    if not isinstance(documents, list):
        raise NPCFileError(f"{path.name}: must hold a JSON list of documents", path=str(path))
    return import_documents(documents, source=path.name)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        doubled = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"the key {doubled!r} stands twice in one object")
    return found


def import_documents(
    documents: Sequence[Mapping[str, Any]], *, source: str = "documents"
) -> ImportResult:
    """Turn a flat list of documents into NPCs, one for each `npc_id`.

    Args:
        documents: as the module says; unknown fields are warned about.
        source: what error messages call the list.

    Raises:
        NPCFileError: naming the document's id and the field; also for an empty list.
    """
    by_npc: dict[str, _Source] = {}
    ids: set[str] = set()
    for number, raw in enumerate(documents, start=1):
        document = _parse(raw, number, source)
        if document.id in ids:
            raise _fault(source, document.id, "id", "stands on two documents")
        ids.add(document.id)
        by_npc.setdefault(document.npc_id, _Source(document.npc_id, [])).documents.append(document)
    if not by_npc:
        raise NPCFileError(f"{source}: holds no documents", path=source)
    npcs = tuple(_npc(one, source) for one in by_npc.values())
    return ImportResult(npcs, tuple(text for one in by_npc.values() for text in one.warnings))


def _fault(source: str, label: str, field: str, message: str) -> NPCFileError:
    return NPCFileError(f"{source}: {label}: {field}: {message}", path=source, field=field)


def _parse(raw: Any, number: int, source: str) -> _Document:
    """Check one document against the model of its type."""
    label = f"document {number}"
    if not isinstance(raw, Mapping):
        raise _fault(source, label, "document", "must be an object")
    if isinstance(raw.get("id"), str):
        label = raw["id"] or label
    kind = raw.get("type")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise _fault(source, label, "type", f"must be one of {', '.join(_KINDS)}")
    try:
        return model.model_validate(dict(raw))
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise _fault(source, label, field, message) from exc


def _npc(source: _Source, file: str) -> NPC:
    """Put one NPC together."""
    source.language = language_of(" ".join(_texts(source.documents)))
    for document in source.documents:
        for unknown in _unknown_fields(document):
            source.warn(document, f"{unknown} has no counterpart and is left out")
    persona = _persona(source, file)
    named = dict.fromkeys(one.quest_stage for one in source.documents)
    stages = [name for name in named if name != ANY_STAGE] or [DEFAULT_STAGE]
    source.warn(None, f"names no first stage; players start at {stages[0]!r}")
    source.warn(None, "names no first standing; trust and relationship start at 0")
    built = {name: _stage(source, name, stages) for name in [*stages, ANY_STAGE]}
    if not all("fallback" in built[name] for name in stages):
        built[ANY_STAGE].setdefault("fallback", [{"text": source.made_line(None)}])
    if not built[ANY_STAGE]:
        del built[ANY_STAGE]
    data = {
        "schema_version": 1,
        "id": source.npc_id,
        "language": source.language,
        "persona": persona,
        "defaults": {
            "quest_stage": stages[0],
            "location": _location(source),
            "trust": 0.0,
            "relationship": 0.0,
        },
        "lore": [part for one in source.of(_Lore) for part in _wrapped(one.content)],
        "stages": built,
        "forbidden": _forbidden(source),
    }
    npc = parse_npc(_given(data), path=f"{file}: {source.npc_id}")
    _warn_unreachable(source, npc)
    return npc


def _texts(documents: Iterable[_Document]) -> Iterable[str]:
    """Yield what people wrote to be read, which tells the language."""
    for one in documents:
        for name in ("backstory", "content", "description", "npc", "player"):
            yield getattr(one, name, None) or ""


def _unknown_fields(model: BaseModel, prefix: str = "") -> Iterable[str]:
    yield from (prefix + name for name in model.model_extra or {})
    for name in type(model).model_fields:
        part = getattr(model, name)
        if isinstance(part, BaseModel):
            yield from _unknown_fields(part, f"{prefix}{name}.")


def _wrapped(text: str) -> list[str]:
    """Cut a long text at spaces into lines that a lore entry may hold."""
    return textwrap.wrap(text, _LORE_LENGTH, break_on_hyphens=False)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields that hold nothing, so that a file shows only what was authored."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], (), {})}


def _persona(source: _Source, file: str) -> dict[str, Any]:
    found = source.of(_PersonaDoc)
    if len(found) > 1:
        raise _fault(file, found[1].id, "type", f"{source.npc_id!r} has a second npc_persona")
    source.name = found[0].persona_name if found else source.npc_id.replace("_", " ").title()[:64]
    if not found:
        source.warn(None, f"has no npc_persona; its name is taken to be {source.name!r}")
    backstory = found[0].backstory if found else None
    if not backstory:
        lore = [one.content for one in source.of(_Lore)]
        backstory = lore[0] if lore else source.name
        source.warn(None, "has no backstory; its first lore (or name) stands in. Write one")
    persona = {"name": source.name, "backstory": backstory}
    if found:
        persona |= found[0].model_dump(mode="json", include={"style", "traits"})
    return _given(persona)


def _location(source: _Source) -> str:
    named = list(dict.fromkeys(one.location for one in source.documents if one.location))
    if len(named) > 1:
        source.warn(None, f"names several locations; only {named[0]!r} is kept, as the first")
    if not named:
        source.warn(None, "names no location; it is 'unknown'")
    return named[0] if named else "unknown"


def _stage(source: _Source, stage: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return one stage as a file would hold it."""
    triggers = source.of(_TriggerDef, stage)
    described = source.of(_Description, stage)
    description = "\n".join(one.content for one in described)
    for trigger in triggers:
        if trigger.description and description:
            source.warn(trigger, "description is left out: the stage has one already")
        description = description or trigger.description
    return _given(
        {
            "description": description,
            "flags": _rules(source, stage, stages),
            "delta_policy": _delta_policy(source, triggers),
            "turns": _turns(source, stage, stages),
            "fallback": [_fallback(source, one) for one in source.of(_Fallback, stage)],
        }
    )


def _delta_policy(source: _Source, triggers: Sequence[_TriggerDef]) -> dict[str, Any] | None:
    first: _TriggerDef | None = None
    for one in triggers:
        lacks = {"trust", "relationship"} - (one.delta_policy or DeltaPolicy()).model_fields_set
        if lacks:
            source.warn(one, f"delta_policy lacks {', '.join(sorted(lacks))}; usual bounds hold")
        if first is None and one.delta_policy:
            first = one
        elif first and one.delta_policy and one.delta_policy != first.delta_policy:
            source.warn(one, f"delta_policy is left out: {first.id} sets the stage's")
    return first.delta_policy.model_dump(mode="json") if first and first.delta_policy else None


def _fallback(source: _Source, document: _Fallback) -> dict[str, Any]:
    style = document.fallback_style
    if len(document.content) > _ABOUT_LENGTH:
        source.warn(document, f"content is cut to {_ABOUT_LENGTH} characters")
    text = document.npc or source.made_line(document, style.npc_action, style.npc_emotion)
    about = document.content[:_ABOUT_LENGTH]
    return _given({"text": text, "mood": style.npc_emotion, "about": about})


def _turns(source: _Source, stage: str, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Return a stage's example turns by turn_index; those without one come last."""
    turns = source.of(_Turn, stage)
    turns.sort(key=lambda one: (one.turn_index is None, one.turn_index or 0))
    places = {ANY_STAGE, *(stages if stage == ANY_STAGE else [stage])}
    allowed = {flag for place in places for flag in _allowed(source, place)}
    rows = []
    for turn in turns:
        fired = [source.flag(turn, name) for name, value in turn.flags.items() if _fires(value)]
        flags = list(dict.fromkeys(flag for flag in fired if flag))
        for flag in flags:
            if flag not in allowed:
                source.warn(turn, f"no trigger_def allows {flag} here, so this turn never comes up")
        row = turn.model_dump(mode="json", include={"player", "npc", "delta", "emotion"})
        rows.append(_given({**row, "flags": flags}))
    return rows


def _fires(value: Scalar) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _FIRES_NOT
    return bool(value)


def _conditions(source: _Source, document: _TriggerDef) -> dict[str, Any]:
    """Return a trigger_def's mandatory parts as conditions."""
    trigger = document.trigger
    parts: dict[str, _NameParts | _StateParts | _StandingParts] = {
        "items": trigger.required_items,
        "actions": trigger.required_actions,
        "game_state": trigger.required_game_state,
        "delta": trigger.required_delta,
    }
    for name, part in parts.items():
        if part.optional not in ((), {}, _Standing()):
            source.warn(document, f"trigger.required_{name}.optional has no effect here")
    if len(trigger.required_text) > 1:
        source.warn(document, "trigger.required_text: any one of the words is enough here")
    standing = trigger.required_delta.mandatory
    return _given(
        {
            "items": list(trigger.required_items.mandatory),
            "actions": list(trigger.required_actions.mandatory),
            "game_state": dict(trigger.required_game_state.mandatory),
            "min_trust": standing.trust,
            "min_relationship": standing.relationship,
            "said": _given({"keywords": list(trigger.required_text)}),
        }
    )


def _allowed(source: _Source, stage: str) -> dict[str, _TriggerDef]:
    """Return the flags that a stage may fire, each with the trigger_def that allows it."""
    allowed: dict[str, _TriggerDef] = {}
    for document in source.of(_TriggerDef, stage):
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


def _rules(source: _Source, stage: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return the rules of a stage's flags. Only a trigger_def can make a flag fire."""
    allowed = _allowed(source, stage)
    for one in source.of(_FlagDef, stage):
        flag = source.flag(one, one.flag_name)
        elsewhere = stage == ANY_STAGE and any(flag in _allowed(source, name) for name in stages)
        if flag and flag not in allowed and not elsewhere:
            source.warn(one, f"no trigger_def allows {flag} at stage {stage!r}; it is left out")
    rules = {flag: _rule(source, stage, flag, document) for flag, document in allowed.items()}
    change = rules.get("quest_stage_change")
    if change is not None and not _has_next_stage(source, stage, stages, change):
        del rules["quest_stage_change"]
    _add_answer_examples(source, stage, rules)
    return rules


def _rule(source: _Source, stage: str, flag: str, document: _TriggerDef) -> dict[str, Any]:
    value = _value(source, stage, flag)
    defined = [
        one
        for one in [*source.of(_FlagDef, stage), *source.of(_FlagDef, ANY_STAGE)]
        if _LEGACY_FLAGS.get(one.flag_name, one.flag_name) == flag
    ]
    text = defined[0].text if defined else None
    if not text:
        template = _MADE_TEXTS[source.language][flag].format(name=source.name, value=value or "")
        text = template.rstrip(" :")
        source.warn(document, f"{flag} has no text for people; stands in: {text!r}. Write one")
    rule: dict[str, Any] = {"when": _conditions(source, document), "value": value, "text": text}
    if defined:
        kept = {"threshold", "examples_positive", "examples_negative"}
        rule |= defined[0].model_dump(mode="json", include=kept)
    return _given(rule)


def _value(source: _Source, stage: str, flag: str) -> str | None:
    """Return what the turns say a flag gives: a flag_value that is a name, not a yes."""
    found: dict[str, _Turn] = {}
    for turn in source.of(_Turn, stage):
        for name, value in turn.flags.items():
            same = _LEGACY_FLAGS.get(name, name) == flag
            if same and isinstance(value, str) and _fires(value) and value.lower() not in _FIRES:
                found.setdefault(value, turn)
    for value, turn in list(found.items())[1:]:
        source.warn(turn, f"{flag} {value!r} is left out: a flag gives one value at a stage")
    return next(iter(found), None)


def _has_next_stage(
    source: _Source, stage: str, stages: Sequence[str], rule: dict[str, Any]
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


def _add_answer_examples(source: _Source, stage: str, rules: dict[str, Any]) -> None:
    """Give main_res_validate's examples to npc_main_story where that has none of its own."""
    for one in source.of(_Validate, stage):
        if one.text:
            source.warn(one, "text has no counterpart and is left out")
        story = rules.get("npc_main_story")
        if story is None or story.get("examples_positive") or story.get("examples_negative"):
            source.warn(one, "examples are left out: no npc_main_story rule to take them")
            continue
        story["examples_positive"] = list(one.examples_good)
        story["examples_negative"] = list(one.examples_bad)
        source.warn(one, "examples are kept as those of npc_main_story; check that they fit")


def _forbidden(source: _Source) -> list[dict[str, Any]]:
    """Return one entry a trigger_meta; words that no trigger_meta names go with the first."""
    lists, metas = source.of(_ForbiddenList), source.of(_TriggerMeta)
    keywords = list(dict.fromkeys(word for one in lists for word in one.triggers.keywords))
    sentences = list(dict.fromkeys(text for one in lists for text in one.triggers.text))
    entries: list[dict[str, Any]] = []
    for meta in metas:
        if any(entry["name"] == meta.trigger for entry in entries):
            source.warn(meta, f"is left out: {meta.trigger!r} has a reaction already")
            continue
        entry = {"name": meta.trigger, "keywords": [], "sentences": []}
        entries.append({**entry, "reaction": _reaction(source, meta)})
        if meta.trigger in sentences:
            sentences.remove(meta.trigger)
            entries[-1]["sentences"] = [meta.trigger]
        else:
            if meta.trigger not in keywords:
                source.warn(meta, f"no list names {meta.trigger!r}; it is taken for a keyword")
            keywords = [word for word in keywords if word != meta.trigger]
            entries[-1]["keywords"] = [meta.trigger]
    if not keywords and not sentences:
        return entries
    if not entries:
        source.warn(None, "has no trigger_meta; forbidden words get a reaction without a delta")
        reaction = {"text": source.made_line(lists[0], "angry")}
        entries = [{"name": "forbidden", "keywords": [], "sentences": [], "reaction": reaction}]
    else:
        source.warn(None, f"words without a trigger_meta get the reaction of {metas[0].trigger!r}")
    entries[0]["keywords"] += keywords
    entries[0]["sentences"] += sentences
    return entries


def _reaction(source: _Source, meta: _TriggerMeta) -> dict[str, Any]:
    return {
        "text": meta.npc or source.made_line(meta, meta.npc_action, meta.npc_emotion, "angry"),
        "action": meta.npc_action,
        "emotion": meta.npc_emotion,
        "delta": meta.delta.model_dump(mode="json"),
    }


def _warn_unreachable(source: _Source, npc: NPC) -> None:
    """Point out flags that ask for more than talk at the first stage can ever earn."""
    start = npc.stage(npc.defaults.quest_stage)
    for flag, rule in start.flags.items():
        for name in ("trust", "relationship"):
            needed = getattr(rule.when, f"min_{name}")
            most = getattr(start.delta_policy, name).max
            if needed is not None and needed > getattr(npc.defaults, name) + most:
                source.warn(
                    None,
                    f"{flag} needs {name} {needed:g} but a stage earns at most {most:g}: "
                    f"raise defaults.{name} or let the game send it",
                )


def write_npcs(npcs: Iterable[NPC], folder: Path, *, force: bool = False) -> list[Path]:
    """Write each NPC to `<folder>/<id>.json`; first all in full beside it, then all in place.

    Raises:
        NPCFileError: a file is there already and `force` is not given, or the disk refuses.
    """
    texts = {folder / f"{npc.id}.json": _file_text(npc) for npc in npcs}
    there = [str(path) for path in texts if path.exists()]
    if there and not force:
        raise NPCFileError(
            f"{there[0]}: is there already; --force overwrites it, --out picks another folder",
            path=there[0],
        )
    # The ending keeps a half-written file from being taken for an NPC.
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, draft in drafts.items():
            with draft.open("w", encoding="utf-8") as file:
                file.write(texts[path])
                file.flush()
                os.fsync(file.fileno())
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as exc:
        raise NPCFileError(f"{folder}: cannot be written: {exc}", path=str(folder)) from exc
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()
    return list(texts)


def _file_text(npc: NPC) -> str:
    data = npc.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 where nothing was written."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.npc_import", description="Import the older list of NPC documents."
    )
    parser.add_argument("source", type=Path, help="a JSON file: one list of documents")
    parser.add_argument("--out", type=Path, default=Path("npc_configs"), help="folder to write to")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    options = parser.parse_args(arguments)
    try:
        result = import_file(options.source)
        paths = write_npcs(result.npcs, options.out, force=options.force)
    except NPCFileError as fault:
        sys.stderr.write(f"error: {fault}\n")
        return 1
    for warning in result.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    for path in paths:
        sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
