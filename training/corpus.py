"""Everything that training and evaluation know of the data: rows, labels by rule, parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from engine.embed import Embedder
from engine.listen import Listener, counted_words
from engine.npc import NPCRegistry
from heads.spec import HeadSpec
from training.items import NPCWords, read_words
from training.oracle import Judged, Labels, label_rows, training_registry
from training.prompts import row_parts
from training.rows import Row, read_rows
from training.rubric import ACTS
from training.split import Split, split_rows


@dataclass(frozen=True)
class Corpus:
    """Rows with what belongs to each, all aligned; and how they are divided.

    `meaning_BM` are the utterances' unit sentence vectors; `heard` what the heads hear of them,
    sentence vectors and counted words, by the listener of `listener_id`.
    """

    rows: Sequence[Row]
    registry: NPCRegistry
    words: Mapping[str, NPCWords]
    judged: Sequence[Judged]
    labels: Labels
    split: Split
    meaning_BM: np.ndarray
    listener_id: str

    @cached_property
    def counted(self) -> csr_matrix:
        """The utterances' words, counted by hash."""
        return counted_words([row.player_utterance for row in self.rows])

    @property
    def heard(self) -> np.ndarray:
        """What heads hear of the utterances, float32, shape (B, L)."""
        return self.heard_of(range(len(self.rows)))

    def heard_of(self, index: Sequence[int]) -> np.ndarray:
        """Return what heads hear of some rows' utterances."""
        at = list(index)
        heard: np.ndarray = np.hstack([self.meaning_BM[at], self.counted[at].toarray()])
        return heard.astype(np.float32)

    def heard_by(self, spec: HeadSpec, index: Sequence[int]) -> Sequence[Sequence[float]]:
        """Return what heads of this make hear of some rows: words too, the vector alone, or nothing.

        Raises:
            ValueError: heads that hear something else.
        """
        at = list(index)
        if spec.meaning_size == 0:
            return [()] * len(at)
        heard_BL = self.meaning_BM[at]
        if spec.meaning_size != heard_BL.shape[1]:
            heard_BL = self.heard_of(at)
        if spec.meaning_size != heard_BL.shape[1]:
            raise ValueError(
                f"the heads hear {spec.meaning_size} numbers, there are {heard_BL.shape[1]}"
            )
        return [row.tolist() for row in heard_BL]

    @property
    def acts(self) -> np.ndarray:
        """Each row's place in the rubric, shape (B,)."""
        return np.array([list(ACTS).index(row.act) for row in self.rows])

    def prompts(self, languages: Sequence[str]) -> list[str]:
        """Return every row's prompt in text form, for readers that take text."""
        return [
            row_parts(row, self.registry, languages, one.permitted).marked()
            for row, one in zip(self.rows, self.judged, strict=True)
        ]


def load_corpus(
    paths: Iterable[Path] | None, npc_dir: Path, encoder: Embedder, *, seed: int
) -> Corpus:
    """Read rows, label them by rule and divide them.

    Args:
        paths: JSONL files; None: all of `training/data/`.
        npc_dir: the serving NPCs; those of `training/data/npcs/` are added.
        encoder: for the gate's meanings and for near twins.
        seed: of the division.

    Raises:
        RowError: naming file, line and field.
        NPCFileError: an NPC file is broken.
    """
    rows = read_rows(paths)
    registry, words = training_registry(npc_dir), read_words()
    return make_corpus(rows, registry, words, encoder, seed=seed)


def make_corpus(
    rows: Sequence[Row],
    registry: NPCRegistry,
    words: Mapping[str, NPCWords],
    encoder: Embedder,
    *,
    seed: int,
) -> Corpus:
    """Label `rows` by rule and divide them."""
    labels, judged = label_rows(rows, registry, encoder)
    vectors_BD = np.asarray(encoder.encode([row.player_utterance for row in rows]))
    split = split_rows(rows, vectors_BD, seed=seed)
    listener_id = Listener(encoder).id
    return Corpus(rows, registry, words, judged, labels, split, vectors_BD, listener_id)
