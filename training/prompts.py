"""A row's prompt, rendered as serving renders it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.npc import NPCRegistry
from engine.prompt import LORE_FACTS, PromptParts, render_parts
from training.oracle import row_state
from training.rows import Row


def row_parts(
    row: Row, registry: NPCRegistry, languages: Sequence[str], permitted: Iterable[str]
) -> PromptParts:
    """Render a row's prompt in the NPC's variant that the base can write.

    Args:
        row: the turn.
        registry: NPC files.
        languages: those that the base writes.
        permitted: flags that the gate permits for this row.
    """
    npc = registry.get(row.npc_id, row.lang if row.lang in languages else None)
    return render_parts(
        npc,
        row_state(row, npc),
        lore=npc.lore[:LORE_FACTS],
        scene=npc.stage(row.tags.quest_stage).description,
        utterance=row.player_utterance,
        events=npc.events(row.tags.quest_stage, permitted),
    )
