"""Rows as arrays: what fires, what the gate permits, how the standing moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.decision import Verdict
from engine.embed import Embedder
from engine.gate import check_flags
from engine.npc import NPCRegistry
from engine.schema import FLAGS
from training.features import row_state
from training.rows import Row


@dataclass(frozen=True)
class Labels:
    """Truth and the gate's word, aligned with the rows.

    truth_BN: flags that fire; permitted_BN: flags that the gate permits; delta_B2.
    """

    truth_BN: np.ndarray
    permitted_BN: np.ndarray
    delta_B2: np.ndarray


def label_rows(rows: Sequence[Row], registry: NPCRegistry, embedder: Embedder) -> Labels:
    """Return each row's truth, and what the gate permits in its state for its utterance."""
    truth = np.zeros((len(rows), len(FLAGS)), dtype=bool)
    permitted = np.zeros_like(truth)
    for index, row in enumerate(rows):
        npc = registry.get(row.npc_id, row.lang)
        state = row_state(row, npc)
        verdicts = check_flags(npc, row.tags.quest_stage, state, row.player_utterance, embedder)
        for n, flag in enumerate(FLAGS):
            truth[index, n] = flag in row.flag
            permitted[index, n] = verdicts.get(flag, Verdict(False)).permitted
    deltas = np.array([[row.delta.trust, row.delta.relationship] for row in rows])
    return Labels(truth, permitted, deltas)
