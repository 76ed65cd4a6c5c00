"""The older documents, one model a type, and checking one document against its model.

Fields that a model does not know are kept, so that each can be warned about; in what conditions
are made of they are refused, since dropping one would loosen it.
Knows nothing of today's NPC files beyond their limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from engine.errors import NPCFileError
from engine.npc import DeltaPolicy, Line, Lines, NPCId, Text
from engine.schema import (
    ANY_STAGE,
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


class NameParts(Value):
    """Names that a condition needs; only the mandatory ones count."""

    mandatory: Names = ()
    optional: Names = ()


class StateParts(Value):
    """Values of the game's state that a condition needs; only the mandatory ones count."""

    mandatory: Annotated[GameState, BeforeValidator(_true_by_name)] = Field(default_factory=dict)
    optional: Annotated[GameState, BeforeValidator(_true_by_name)] = Field(default_factory=dict)


class Standing(Value):
    """Least trust and relationship, each from -1 to 1."""

    trust: Unit | None = None
    relationship: Unit | None = None


class StandingParts(Value):
    """Standing that a condition needs; only the mandatory one counts."""

    mandatory: Standing = Standing()
    optional: Standing = Standing()


class _Trigger(Value):
    """When a trigger_def's flags may fire. Closed: an unknown `required_…` is an error."""

    required_text: Lines = ()
    required_items: NameParts = NameParts()
    required_actions: NameParts = NameParts()
    required_game_state: StateParts = StateParts()
    required_delta: StandingParts = StandingParts()


class _FlagPolicy(Value):
    """Which flags a trigger_def lets fire, and which it bars."""

    allowed: Names = ()
    forbidden: Names = ()


class _TriggerWords(Value):
    """Forbidden words (`keywords`) and sentences (`text`)."""

    keywords: Lines = ()
    text: Lines = ()


class _Open(BaseModel):
    """Keeps unknown fields, so that each can be warned about."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _FallbackStyle(_Open):
    """What the NPC does and shows while it speaks a fallback line."""

    npc_action: Name | None = None
    npc_emotion: Name | None = None


class Document(_Open):
    """What every document carries; without a stage it holds at all of them."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: str
    npc_id: NPCId
    quest_stage: Name = ANY_STAGE
    location: Name | None = None


class TriggerDef(Document):
    """`trigger_def`: conditions and delta policy of a stage, and the flags it allows."""

    trigger: _Trigger
    flag_policy: _FlagPolicy
    delta_policy: DeltaPolicy | None = None
    description: Annotated[str, Field(max_length=4000)] = ""


class Lore(Document):
    """`lore`: what the NPC knows of its world."""

    content: Text


class Description(Document):
    """`description`: what holds at a stage."""

    content: Text


class Fallback(Document):
    """`fallback`: how the NPC behaves when nothing is granted; `npc` is the line itself."""

    content: Text
    npc: Line | None = None
    fallback_style: _FallbackStyle = _FallbackStyle()


class ForbiddenList(Document):
    """`forbidden_trigger_list`: what never reaches the model."""

    triggers: _TriggerWords


class TriggerMeta(Document):
    """`trigger_meta`: the reaction to the forbidden word or sentence `trigger`."""

    trigger: Name
    npc: Line | None = None
    npc_action: Name | None = None
    npc_emotion: Name | None = None
    delta: Delta = Delta()


class FlagDef(Document):
    """`flag_def`: threshold and examples of a flag."""

    flag_name: Name
    text: Text | None = None
    threshold: Probability | None = None
    examples_positive: Lines = ()
    examples_negative: Lines = ()


class Validate(Document):
    """`main_res_validate`: good and bad answers of the main path."""

    text: Text | None = None
    examples_good: Lines = ()
    examples_bad: Lines = ()


class PersonaDoc(Document):
    """`npc_persona`: who the NPC is."""

    persona_name: Name
    style: Annotated[str, Field(max_length=200)] = "neutral"
    traits: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    backstory: Text | None = None


class Turn(Document):
    """`dialogue_turn`: an example turn; a flag's value is a yes, a no or what it gives."""

    turn_index: int | None = None
    player: Line
    npc: Line
    delta: Delta = Delta()
    flags: Annotated[dict[Name, Scalar], BeforeValidator(_flag_values)] = Field(
        default_factory=dict
    )
    emotion: Name | None = None


_KINDS: Mapping[str, type[Document]] = {
    "trigger_def": TriggerDef,
    "fallback": Fallback,
    "forbidden_trigger_list": ForbiddenList,
    "trigger_meta": TriggerMeta,
    "lore": Lore,
    "description": Description,
    "flag_def": FlagDef,
    "main_res_validate": Validate,
    "npc_persona": PersonaDoc,
    "dialogue_turn": Turn,
}


def parse_document(raw: Any, number: int, source: str) -> Document:
    """Check one document against the model of its type.

    Args:
        raw: the document, as JSON gave it.
        number: its place in the list, from 1; names it where it has no id.
        source: what error messages call the list.

    Raises:
        NPCFileError: naming the document's id and the field.
    """
    label = f"document {number}"
    if not isinstance(raw, Mapping):
        raise fault(source, label, "document", "must be an object")
    if isinstance(raw.get("id"), str):
        label = raw["id"] or label
    kind = raw.get("type")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise fault(source, label, "type", f"must be one of {', '.join(_KINDS)}")
    try:
        return model.model_validate(dict(raw))
    except ValidationError as exc:
        field, message = first_complaint(exc)
        raise fault(source, label, field, message) from exc


def fault(source: str, label: str, field: str, message: str) -> NPCFileError:
    """Return the refusal of a list, naming the document and the field at fault."""
    return NPCFileError(f"{source}: {label}: {field}: {message}", path=source, field=field)


def unknown_fields(model: BaseModel, prefix: str = "") -> Iterable[str]:
    """Yield the dotted names of the fields that no model knows."""
    yield from (prefix + name for name in model.model_extra or {})
    for name in type(model).model_fields:
        part = getattr(model, name)
        if isinstance(part, BaseModel):
            yield from unknown_fields(part, f"{prefix}{name}.")
