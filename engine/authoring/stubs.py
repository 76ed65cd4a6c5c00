"""An NPC's standing and flags for story languages: Ink and Yarn Spinner. Pure.

The game copies the engine's answer into these variables after each turn and runs the commands of the
flags that fired.
"""

from __future__ import annotations

from engine.npc import NPC
from engine.schema import FLAGS


def ink_stub(npc: NPC) -> str:
    """Return Ink declarations: standings and stage as variables, each flag as a variable and a knot."""
    start = npc.defaults
    lines = [
        f"// {npc.persona.name} ({npc.id})",
        f"VAR trust = {start.trust:g}",
        f"VAR relationship = {start.relationship:g}",
        f'VAR quest_stage = "{_quoted(start.quest_stage)}"',
    ]
    lines += [f"VAR {flag} = false" for flag in _flags(npc)]
    for flag, values in _flags(npc).items():
        lines += ["", f"=== on_{flag} ==="]
        lines += [f"// {one}" for one in values]
        lines += [f"~ {flag} = true", "->->"]
    return "\n".join(lines) + "\n"


def yarn_stub(npc: NPC) -> str:
    """Return Yarn declarations, and a node that gives every fired flag as a command to the game."""
    start = npc.defaults
    lines = [
        f"title: {npc.id}_state",
        "---",
        f"<<declare $trust = {start.trust:g}>>",
        f"<<declare $relationship = {start.relationship:g}>>",
        f'<<declare $quest_stage = "{_quoted(start.quest_stage)}">>',
    ]
    lines += [f"<<declare ${flag} = false>>" for flag in _flags(npc)]
    for flag, values in _flags(npc).items():
        lines += [f"<<if ${flag}>>"]
        lines += [f"    // {one}" for one in values]
        lines += [f"    <<{flag} {npc.id}>>", "<<endif>>"]
    return "\n".join([*lines, "==="]) + "\n"


def _flags(npc: NPC) -> dict[str, list[str]]:
    """Return each flag of the NPC with what it gives, stage by stage."""
    found: dict[str, list[str]] = {}
    for flag in FLAGS:
        told = [
            f"{stage}: {rule.value or ' '.join(rule.text.split())}"
            for stage in npc.quest_stages
            for name, rule in npc.stage(stage).flags.items()
            if name == flag
        ]
        if told:
            found[flag] = told
    return found


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
