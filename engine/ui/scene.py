"""The scene fields of the page as values: what they offer, what they show, what of them is sent. Pure.

The fields show what the session remembers, and only what differs from that is sent with a turn.
Knows nothing of Gradio's components.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InvalidRequest
from engine.npc import NPC, Conditions, FlagRule
from engine.schema import GenParams

Values = dict[str, Any]

FIELDS: tuple[str, ...] = (
    "quest_stage",
    "location",
    "npc_mood",
    "player_reputation",
    "trust",
    "relationship",
    "items",
    "actions",
    "game_state",
)
SAMPLING: tuple[str, ...] = ("temperature", "top_p", "max_new_tokens", "seed")
_STANDING = ("trust", "relationship")
_LISTS = ("items", "actions")


@dataclass(frozen=True)
class Choices:
    """What the fields offer for an NPC; another value may be typed everywhere but for the stage."""

    stages: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    moods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A scene in which `flag` is permitted at `stage`, and words that lead to it."""

    stage: str
    flag: str
    values: Values = field(default_factory=dict)
    words: str = ""

    @property
    def key(self) -> str:
        """Its name among the NPC's presets, and what the page shows."""
        return f"{self.stage} · {self.flag}"


def _rules(npc: NPC) -> Iterator[tuple[str, str, FlagRule]]:
    for stage in npc.quest_stages:
        for flag, rule in npc.stage(stage).flags.items():
            yield stage, flag, rule


def choices_of(npc: NPC) -> Choices:
    """Gather what the NPC's conditions ask for, in the file's order."""
    items: list[str] = []
    actions: list[str] = []
    for _, _, rule in _rules(npc):
        items += rule.when.items
        actions += rule.when.actions
    moods = [npc.defaults.npc_mood]
    for stage in npc.stages.values():
        moods += [line.mood for line in stage.fallback if line.mood]
    return Choices(
        stages=npc.quest_stages,
        items=tuple(dict.fromkeys(items)),
        actions=tuple(dict.fromkeys(actions)),
        moods=tuple(dict.fromkeys(moods)),
    )


def shown(standing: Mapping[str, Any]) -> Values:
    """Return what the fields show of a session, as `Api.session` returns it."""
    values: Values = {name: standing[name] for name in FIELDS if name in standing}
    for name in _STANDING:
        values[name] = standing["standing"][name]
    for name in _LISTS:
        values[name] = list(values.get(name, ()))
    values["game_state"] = lines_of(values.get("game_state", {}))
    return values


def lines_of(game_state: Mapping[str, Any]) -> str:
    """Return a game state as `key = value` lines, so that `parse_game_state` gives it back."""
    return "\n".join(f"{key} = {_written(value)}" for key, value in game_state.items())


def _written(value: Any) -> str:
    plain = isinstance(value, str) and value == value.strip() and _read(value) == value
    return value if plain and value else json.dumps(value, ensure_ascii=False)


def parse_game_state(text: str | None) -> dict[str, Any]:
    """Read a JSON object or `key = value` lines; a value that is JSON is taken as such.

    Raises:
        InvalidRequest: naming the line at fault, with field "context.game_state".
    """
    text = (text or "").strip()
    if text.startswith("{"):
        return _object(text)
    found: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not key:
            raise _bad(f"line {number} is not “key = value”: {line.strip()[:60]}")
        if key in found:
            raise _bad(f"line {number}: {key} stands there twice")
        found[key] = _read(value.strip())
    return found


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        where = f" at line {exc.lineno}" if isinstance(exc, json.JSONDecodeError) else ""
        raise _bad(f"this is not valid JSON{where}; write key = value lines or fix it") from exc
    for key, value in found.items():
        if isinstance(value, (dict, list)) or value is None:
            raise _bad(f"{key} must be a number, true, false or text")
    return found


def _read(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (str, int, float, bool)) else text


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest(f"game state: {message}", field="context.game_state")


def context_of(values: Mapping[str, Any], before: Mapping[str, Any], language: str) -> Values:
    """Return the context to send: the fields that differ from `before`, and the language if chosen.

    Args:
        values: the fields as they are now, by name.
        before: the fields as the page filled them in (`shown`).
        language: "en", "ko", or "" for the utterance's own.

    Raises:
        InvalidRequest: the game state cannot be read.
    """
    context: Values = {}
    for name in FIELDS:
        value = values.get(name)
        if name == "game_state":
            value, old = parse_game_state(value), parse_game_state(before.get(name))
        else:
            value, old = _tidy(name, value), _tidy(name, before.get(name))
        if value is not None and value != old:
            context[name] = value
    if language:
        context["language"] = language
    return context


def _tidy(name: str, value: Any) -> Any:
    if name in _LISTS:
        return list(value or ())
    if isinstance(value, str):
        return value.strip() or None
    if name in _STANDING and isinstance(value, (int, float)):
        return round(float(value), 3)
    return value


def gen_params_of(values: Mapping[str, Any]) -> Values:
    """Return the sampling values that differ from the defaults."""
    defaults = GenParams()
    return {
        name: values[name]
        for name in SAMPLING
        if values.get(name) is not None and values[name] != getattr(defaults, name)
    }


def presets_of(npc: NPC) -> tuple[Preset, ...]:
    """Return a scene for every flag of every stage, with an authored utterance that leads to it."""
    return tuple(
        Preset(stage, flag, _meeting(npc, stage, rule.when), _words(npc, stage, flag, rule))
        for stage, flag, rule in _rules(npc)
    )


def _meeting(npc: NPC, stage: str, when: Conditions) -> Values:
    defaults = npc.defaults
    return {
        "quest_stage": stage,
        "trust": _at_least(defaults.trust, when.min_trust),
        "relationship": _at_least(defaults.relationship, when.min_relationship),
        "items": list(when.items),
        "actions": list(when.actions),
        "game_state": lines_of(when.game_state),
    }


def _at_least(value: float, bound: float | None) -> float:
    return value if bound is None else max(value, bound)


def _words(npc: NPC, stage: str, flag: str, rule: FlagRule) -> str:
    """Return words for the flag: an example turn with it (alone, if there is one), else a meaning."""
    turns: Sequence[Any] = [turn for turn in npc.stage(stage).turns if flag in turn.flags]
    if turns:
        return str(min(turns, key=lambda turn: len(turn.flags)).player)
    said = rule.when.said
    return said.meanings[0] if said and said.meanings else ""
