"""Labels by rule: what the NPC files permit and the writer says was asked for; deltas by the rubric.

A writer judges the utterance (`asks`, `act`); the state, the NPC's conditions and its temper do the
rest. So a label can be recomputed, and no row can grant what the game would not. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.embed import Embedder
from engine.evidence import gather_evidence, warm_evidence
from engine.gate import check_flags, find_forbidden
from engine.npc import NPC, NPCRegistry, load_folder
from engine.schema import FLAGS, Delta, HistoryTurn, SessionState
from engine.state import initial_state
from heads.evidence import NOTHING, Evidence
from training.rows import DATA_DIR, Row
from training.rubric import judged_delta

# Rows whose utterances are read together; fewer than an embedder remembers.
_READ_AT_ONCE = 4096
# From so many rows on most NPCs' words are needed, and are read together too.
_MANY = 256


@dataclass(frozen=True)
class Judged:
    """What the oracle says of one row.

    `even` is the delta for an NPC of even temper, which is what heads learn to read, `delta` the one
    for this NPC. `forbidden` names the trigger of an utterance that never reaches the model, else it
    is None; `evidence` is what the state says of what is said.
    """

    flag: tuple[str, ...]
    delta: Delta
    even: Delta
    permitted: frozenset[str]
    forbidden: str | None = None
    evidence: Evidence = NOTHING


@dataclass(frozen=True)
class Labels:
    """Labels as arrays, aligned with the rows.

    truth_BN: flags that fire; permitted_BN: flags that the gate permits; delta_B2: for an NPC of even
    temper, which is what heads learn; evidence_BE: what the state says of what is said, as
    `heads.evidence` counts it; temper_B2: the NPC's gain and loss.
    """

    truth_BN: np.ndarray
    permitted_BN: np.ndarray
    delta_B2: np.ndarray
    evidence_BE: np.ndarray
    temper_B2: np.ndarray

    def bent(self, delta_B2: np.ndarray, index: Sequence[int]) -> np.ndarray:
        """Return deltas of the rows `index`, as they are for an even temper, as they are in play."""
        gain_B1, loss_B1 = self.temper_B2[list(index), :1], self.temper_B2[list(index), 1:]
        bent_B2: np.ndarray = delta_B2 * np.where(delta_B2 > 0, gain_B1, loss_B1)
        return bent_B2


def training_registry(serving: Path, extra: Path | None = None) -> NPCRegistry:
    """Return the NPCs of the `serving` folder and those that only the rows know."""
    main = load_folder(serving)
    folder = extra or DATA_DIR / "npcs"
    if not folder.is_dir() or not any(folder.glob("*.json")):
        return main
    return replace(main, by_id={**main.by_id, **load_folder(folder).by_id})


def row_state(row: Row, npc: NPC) -> SessionState:
    """Return the session state that a row speaks of."""
    tags, player = row.tags, row.player_state
    start = initial_state(npc)
    return start.model_copy(
        update={
            "quest_stage": tags.quest_stage,
            "location": tags.location or start.location,
            "npc_mood": tags.npc_mood,
            "player_reputation": tags.player_reputation,
            "standing": Delta(trust=tags.trust, relationship=tags.relationship),
            "items": player.items,
            "actions": player.actions,
            "game_state": player.game_state,
            "history": tuple(HistoryTurn(player=said, npc=line) for said, line in row.exchanges),
        }
    )


def judge(row: Row, registry: NPCRegistry, encoder: Embedder) -> Judged:
    """Label one row by rule.

    Raises:
        UnknownNPC: no file carries the row's NPC.
        KeyError: the row's act is not in the rubric.
    """
    npc = registry.get(row.npc_id, row.lang)
    state = row_state(row, npc)
    trigger = find_forbidden(npc, row.player_utterance, encoder)
    verdicts = check_flags(npc, row.tags.quest_stage, state, row.player_utterance, encoder)
    permitted = frozenset(flag for flag, verdict in verdicts.items() if verdict.permitted)
    return Judged(
        flag=tuple(flag for flag in FLAGS if flag in permitted and flag in row.asks),
        delta=judged_delta(row.act, npc.temper),
        even=judged_delta(row.act),
        permitted=permitted,
        forbidden=trigger[1] if trigger else None,
        evidence=gather_evidence(npc, state, row.player_utterance, verdicts, encoder),
    )


def judge_rows(
    rows: Sequence[Row],
    registry: NPCRegistry,
    encoder: Embedder,
) -> list[Judged]:
    """Label rows by rule, one by one; raises what `judge` raises."""
    judged: list[Judged] = []
    if len(rows) >= _MANY:
        warm_evidence(registry, encoder)
    for at in range(0, len(rows), _READ_AT_ONCE):
        part = rows[at : at + _READ_AT_ONCE]
        # At once, for an embedder that remembers: one by one they take three times as long.
        encoder.encode([row.player_utterance for row in part])
        judged.extend(judge(row, registry, encoder) for row in part)
    return judged


def label_rows(
    rows: Sequence[Row],
    registry: NPCRegistry,
    encoder: Embedder,
) -> tuple[Labels, list[Judged]]:
    """Label every row by rule, as arrays and one by one."""
    judged = judge_rows(rows, registry, encoder)
    return (
        Labels(
            truth_BN=np.array([[flag in one.flag for flag in FLAGS] for one in judged]),
            permitted_BN=np.array([[flag in one.permitted for flag in FLAGS] for one in judged]),
            delta_B2=np.array([[one.even.trust, one.even.relationship] for one in judged]),
            temper_B2=np.array([_temper_of(row, registry) for row in rows]),
            evidence_BE=np.array([one.evidence.numbers(FLAGS) for one in judged]),
        ),
        judged,
    )


def _temper_of(row: Row, registry: NPCRegistry) -> tuple[float, float]:
    temper = registry.get(row.npc_id, row.lang).temper
    return temper.gain, temper.loss
