"""The form of the NPCs tab as values: which places of a file it shows and writes.

Places that the form has no field for are left as they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gradio as gr

from engine.ui.words import label

Json = dict[str, Any]


# Lowest, highest and usual value, and step.
_SLIDERS = {"standing": (-1.0, 1.0, 0.0, 0.01), "temper": (0.5, 1.5, 1.0, 0.05)}


@dataclass(frozen=True)
class Field:
    """One field: the dotted place in the file, its label, and how it is typed.

    `kind` is "line", "text", "list" (one a line), "standing" (-1 to 1) or "temper" (0.5 to 1.5).
    """

    place: str
    word: str
    kind: str

    def component(self) -> Any:
        """Make the component."""
        elem_id = f"pc-ed-{self.place.replace('.', '-')}"
        if self.kind in _SLIDERS:
            low, high, usual, step = _SLIDERS[self.kind]
            return gr.Slider(
                low,
                high,
                value=usual,
                step=step,
                label=label(self.word),
                elem_id=elem_id,
                buttons=[],
            )
        lines = 1 if self.kind == "line" else 4
        return gr.Textbox(
            label=label(self.word), lines=lines, max_lines=max(lines, 1) * 3, elem_id=elem_id
        )


FIELDS: dict[str, Field] = {
    name: Field(place, word, kind)
    for name, place, word, kind in (
        ("name", "persona.name", "f_name", "line"),
        ("role", "persona.role", "f_role", "line"),
        ("style", "persona.style", "style", "line"),
        ("traits", "persona.traits", "f_traits", "list"),
        ("backstory", "persona.backstory", "f_backstory", "text"),
        ("rules", "persona.rules", "f_rules", "list"),
        ("greeting", "persona.greeting", "f_greeting", "text"),
        ("trust", "defaults.trust", "trust", "standing"),
        ("relationship", "defaults.relationship", "relationship", "standing"),
        ("gain", "temper.gain", "f_gain", "temper"),
        ("loss", "temper.loss", "f_loss", "temper"),
        ("lore", "lore", "f_lore", "list"),
    )
}


def parsed(code: str) -> Json | None:
    """Return the file that the JSON says; None where it is no JSON, or no object."""
    try:
        data = json.loads(code)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def form_values(data: Mapping[str, Any]) -> Json:
    """Return what the form shows of an NPC file; a place of another kind shows as empty."""
    return {name: _shown(_at(data, field.place), field.kind) for name, field in FIELDS.items()}


def with_form(data: Mapping[str, Any], values: Mapping[str, Any]) -> Json:
    """Return the file with the form's values; what is empty and was not there stays away."""
    made: Json = deepcopy(dict(data))
    for name, field in FIELDS.items():
        value = _written(values.get(name), field.kind)
        usual = field.kind == "temper" and value == _SLIDERS["temper"][2]
        if (value in ("", [], None) or usual) and _at(made, field.place) is None:
            continue
        _put(made, field.place, value)
    return made


def _at(data: Mapping[str, Any], place: str) -> Any:
    found: Any = data
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _put(data: Json, place: str, value: Any) -> None:
    *way, last = place.split(".")
    for key in way:
        inner = data.get(key)
        if not isinstance(inner, dict):
            inner = data[key] = {}
        data = inner
    data[last] = value


def _shown(value: Any, kind: str) -> Any:
    if kind in _SLIDERS:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if number else _SLIDERS[kind][2]
    if kind == "list":
        return "\n".join(map(str, value)) if isinstance(value, list) else ""
    return value if isinstance(value, str) else ""


def _written(value: Any, kind: str) -> Any:
    if kind in _SLIDERS:
        return value if isinstance(value, (int, float)) else _SLIDERS[kind][2]
    text = value if isinstance(value, str) else ""
    if kind == "list":
        return [line.strip() for line in text.splitlines() if line.strip()]
    return text.strip() if kind == "line" else text
