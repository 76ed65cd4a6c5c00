"""A talk as it went, turn by turn: as a plot of the standings, as a transcript. Pure.

A step is a turn's result as JSON with the player's words under "player". Knows nothing of Gradio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape as esc
from typing import Any

from engine.ui.words import say

Json = dict[str, Any]

_STANDINGS = ("trust", "relationship")
_WIDTH, _HEIGHT, _EDGE = 320.0, 84.0, 6.0


def step(words: str, result: Mapping[str, Any]) -> Json:
    """Return a turn's result with the player's words."""
    return {"player": words, **result}


def plot(steps: Sequence[Json], locale: str) -> str:
    """Draw trust and relationship over the turns of this page; nothing before the second turn."""
    if len(steps) < 2:
        return ""
    lines = {name: _values(steps, name) for name in _STANDINGS}
    drawn = "".join(
        f'<polyline class="pc-line pc-{name}" points="{_points(values)}"/>'
        for name, values in lines.items()
    )
    told = "; ".join(
        f"{say(name, locale)} {', '.join(f'{value:+.2f}' for value in values)}"
        for name, values in lines.items()
    )
    keys = "".join(
        f'<li class="pc-key pc-{name}">{esc(say(name, locale))}</li>' for name in _STANDINGS
    )
    middle = _HEIGHT / 2
    title = esc(say("over_turns", locale))
    return (
        f'<figure class="pc-plot"><figcaption>{title}<ul>{keys}</ul></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" preserveAspectRatio="none" '
        f'aria-label="{title}: {esc(told)}"><line class="pc-axis" x1="0" x2="{_WIDTH:g}" '
        f'y1="{middle:g}" y2="{middle:g}"/>{drawn}</svg></figure>'
    )


def _values(steps: Sequence[Json], name: str) -> list[float]:
    first = steps[0]["meta"]["state_before"][name]
    return [float(first), *(float(one["meta"]["state"][name]) for one in steps)]


def _points(values: Sequence[float]) -> str:
    apart = (_WIDTH - 2 * _EDGE) / (len(values) - 1)
    tall = (_HEIGHT - 2 * _EDGE) / 2
    return " ".join(
        f"{_EDGE + at * apart:.1f},{_HEIGHT / 2 - max(-1.0, min(1.0, value)) * tall:.1f}"
        for at, value in enumerate(values)
    )


def transcript_json(player_id: str, npc_id: str, steps: Sequence[Json]) -> str:
    """Return the turns with all that was decided, for tools."""
    told = {"player_id": player_id, "npc_id": npc_id, "turns": list(steps)}
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


def transcript_markdown(name: str, talk: Sequence[Mapping[str, str]], steps: Sequence[Json]) -> str:
    """Return the talk as Markdown: every line, and below an NPC's line what its turn decided.

    Args:
        name: of the NPC.
        talk: the chat's messages; it may begin before `steps` do.
        steps: the turns whose decisions are known, the newest last.
    """
    lines = [f"# {_plain(name)}", ""]
    known = list(steps)
    answers = sum(one["role"] == "assistant" for one in talk)
    unknown = answers - len(known)
    for one in talk:
        if one["role"] == "user":
            lines += [f"**Player:** {_plain(one['content'])}", ""]
            continue
        lines += [f"**{_plain(name)}:** {_plain(one['content'])}", ""]
        if unknown > 0:
            unknown -= 1
        else:
            lines += [f"> {_decided(known.pop(0))}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _decided(one: Json) -> str:
    meta, delta = one["meta"], one["delta"]
    parts = [f"{name} {delta[name]:+.3f} → {meta['state'][name]:+.3f}" for name in _STANDINGS]
    parts += [
        f"{action['flag']}: {action['value'] or action['text']}" for action in meta["actions"]
    ]
    if meta["next_quest_stage"] != meta["quest_stage"]:
        parts.append(f"stage {meta['quest_stage']} → {meta['next_quest_stage']}")
    if meta["route"] != "main":
        parts.append(f"{meta['route']}: {meta.get('route_reason') or ''}".rstrip(": "))
    return _plain(" · ".join(parts))


def _plain(text: str) -> str:
    """Return `text` on one line, with what Markdown would take for markup made harmless."""
    flat = " ".join(text.split())
    return "".join(f"\\{one}" if one in "\\`*_[]<>#|" else one for one in flat)
