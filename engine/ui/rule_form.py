"""The rule editor of the NPCs tab as values: a stage's flags, and the conditions of each. Pure.

What is offered is what the NPC files know already; anything else may be typed. Places that the editor
has no field for are left as they stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.schema import FLAGS
from engine.ui.scene import lines_of, parse_game_state

Json = dict[str, Any]

# What the editor shows of a rule, in the order of its components.
FIELDS = (
    "text",
    "value",
    "items",
    "actions",
    "game_state",
    "min_trust",
    "min_relationship",
    "keywords",
    "meanings",
    "similarity",
    "once",
)
_BOUNDS = ("min_trust", "min_relationship")
_SIMILARITY = 0.4


@dataclass(frozen=True)
class Offered:
    """What the pick lists offer: words of the game that some rule asks for already."""

    items: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def offered(files: Iterable[Mapping[str, Any]]) -> Offered:
    """Gather the items, actions, facts (`key = value`) and keywords of all rules in `files`."""
    items: list[str] = []
    actions: list[str] = []
    facts: list[str] = []
    keywords: list[str] = []
    for when in (_mapping(rule.get("when")) for file in files for rule in _rules(file)):
        items += _texts(when.get("items"))
        actions += _texts(when.get("actions"))
        facts += lines_of(_mapping(when.get("game_state"))).splitlines()
        keywords += _texts(_mapping(when.get("said")).get("keywords"))
    return Offered(*(tuple(dict.fromkeys(one)) for one in (items, actions, facts, keywords)))


def stages_of(data: Mapping[str, Any]) -> list[str]:
    """Return the names of a file's stages, in its order."""
    return [str(name) for name in _mapping(data.get("stages"))]


def flag_choices(data: Mapping[str, Any], stage: str | None) -> list[tuple[str, str]]:
    """Return (shown, flag) of all flags; those that the stage has come with a tick."""
    held = _flags(data, stage)
    return [(f"{flag} ✓" if flag in held else flag, flag) for flag in FLAGS]


def first_flag(data: Mapping[str, Any], stage: str | None) -> str:
    """Return the first flag that the stage has, or the project's first."""
    return next(iter(_flags(data, stage)), FLAGS[0])


def description(data: Mapping[str, Any], stage: str | None) -> str:
    """Return what holds at a stage, in words."""
    found = _stage(data, stage).get("description")
    return found if isinstance(found, str) else ""


def rule_values(data: Mapping[str, Any], stage: str | None, flag: str | None) -> Json:
    """Return what the editor shows of a rule; a rule that is not there shows as an empty one."""
    rule = _mapping(_flags(data, stage).get(flag or ""))
    when = _mapping(rule.get("when"))
    said = _mapping(when.get("said"))
    similarity = said.get("similarity")
    return {
        "text": rule.get("text") or "",
        "value": rule.get("value") or "",
        "items": _texts(when.get("items")),
        "actions": _texts(when.get("actions")),
        "game_state": lines_of(_mapping(when.get("game_state"))).splitlines(),
        **{name: _bound_shown(when.get(name)) for name in _BOUNDS},
        "keywords": _texts(said.get("keywords")),
        "meanings": "\n".join(_texts(said.get("meanings"))),
        "similarity": similarity if isinstance(similarity, (int, float)) else _SIMILARITY,
        "once": rule.get("once") is not False,
    }


def with_rule(
    data: Mapping[str, Any], stage: str, flag: str, about: str, values: Mapping[str, Any]
) -> Json:
    """Return the file with a stage's description and one of its rules as the editor says.

    A rule that is not there is made once something is said of it; the stage likewise.

    Raises:
        InvalidRequest: a fact or a bound that cannot be read, with its field.
    """
    made: Json = deepcopy(dict(data))
    wanted = _rule_of(values)
    known = flag in _flags(made, stage)
    empty = wanted == _rule_of(rule_values({}, None, None))
    if about.strip() != description(made, stage).strip():
        _inner(made, "stages", stage)["description"] = about.strip()
    if known or not empty:
        rule = _inner(made, "stages", stage, "flags", flag)
        when, kept = wanted["when"], _mapping(_mapping(rule.get("when")).get("said"))
        if (
            "said" in when
            and when["said"]["similarity"] == _SIMILARITY
            and "similarity" not in kept
        ):
            when["said"].pop("similarity")  # nobody asked for it
        told_once = "once" in rule
        rule.update(wanted)
        for name in ("value", "when"):
            if not rule[name]:
                rule.pop(name)
        if rule["once"] and not told_once:  # the schema's own default
            rule.pop("once")
    return made


def without_rule(data: Mapping[str, Any], stage: str, flag: str) -> Json:
    """Return the file without one flag of a stage."""
    made: Json = deepcopy(dict(data))
    _flags(made, stage).pop(flag, None)
    return made


def _rule_of(values: Mapping[str, Any]) -> Json:
    when: Json = {}
    for name in ("items", "actions"):
        if texts := _texts(values.get(name)):
            when[name] = texts
    if facts := parse_game_state("\n".join(_texts(values.get("game_state")))):
        when["game_state"] = facts
    for name in _BOUNDS:
        bound = _bound(values.get(name), name)
        if bound is not None:
            when[name] = bound
    keywords = _texts(values.get("keywords"))
    meanings = [line.strip() for line in str(values.get("meanings") or "").splitlines()]
    meanings = [line for line in meanings if line]
    if keywords or meanings:
        said: Json = {"keywords": keywords, "meanings": meanings}
        when["said"] = {name: found for name, found in said.items() if found}
        when["said"]["similarity"] = values.get("similarity", _SIMILARITY)
    return {
        "text": str(values.get("text") or "").strip(),
        "value": str(values.get("value") or "").strip(),
        "when": when,
        "once": bool(values.get("once", True)),
    }


def _bound(value: Any, name: str) -> float | None:
    if value is None or value == "":
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidRequest(f"{name}: must be a number from -1 to 1, or empty", field=name)
    return value


def _bound_shown(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number else None


def _inner(data: Json, *way: str) -> Json:
    for key in way:
        found = data.get(key)
        if not isinstance(found, dict):
            found = data[key] = {}
        data = found
    return data


def _stage(data: Mapping[str, Any], stage: str | None) -> Json:
    return _mapping(_mapping(data.get("stages")).get(stage or ""))


def _flags(data: Mapping[str, Any], stage: str | None) -> Json:
    return _mapping(_stage(data, stage).get("flags"))


def _rules(data: Mapping[str, Any]) -> Iterator[Json]:
    for stage in _mapping(data.get("stages")).values():
        for rule in _mapping(_mapping(stage).get("flags")).values():
            yield _mapping(rule)


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    # As they stand: a space at the end of a Korean keyword keeps it from meeting longer words.
    return [str(one) for one in value if str(one).strip()] if _listed(value) else []


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple))
