"""Dividing rows into parts, so that no case stands in two of them.

    unseen   NPCs that stand nowhere else: does it work for an NPC that somebody else wrote?
    test     cases kept apart: does it work for what nobody said before?
    valid    to choose, calibrate and set thresholds on
    train    to fit on

A case is a group of minimal pairs, or rows whose utterances are all but the same.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from training.check import NEAR_TWIN
from training.rows import Row

UNSEEN = ("deep_sea_pilot", "mountain_innkeeper", "museum_guard", "orchard_witch")


@dataclass(frozen=True)
class Split:
    """Indices of rows.

    `left_out` are rows that say what somebody says to an unseen NPC, and late ones that say what a
    row of `test` or `valid` says.
    """

    train: tuple[int, ...]
    valid: tuple[int, ...]
    test: tuple[int, ...]
    unseen: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


def split_rows(
    rows: Sequence[Row],
    vectors_BD: np.ndarray,
    *,
    seed: int,
    valid: float = 0.15,
    test: float = 0.2,
    unseen: Sequence[str] = UNSEEN,
) -> Split:
    """Divide rows by shares, cases kept whole.

    Cases are dealt NPC by NPC, those with flags apart from those without, so that every part sees
    every NPC and both kinds.

    Args:
        rows: all rows.
        vectors_BD: unit vectors of the utterances, which tell what is all but the same.
        seed: of the dealing.
        valid: share of the rows whose NPC is not unseen.
        test: likewise.
        unseen: NPCs that stand in the unseen part alone.
    """
    apart = [index for index, row in enumerate(rows) if row.npc_id in unseen]
    twins = set()
    others = [index for index, row in enumerate(rows) if row.npc_id not in unseen]
    late = {index for index in others if rows[index].part == "train"}
    if apart and others:
        near = (vectors_BD[others] @ vectors_BD[apart].T > NEAR_TWIN).any(axis=1)
        twins = {index for index, twin in zip(others, near, strict=True) if twin}
    members = [index for index in others if index not in twins | late]
    dealt: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    kinds: dict[tuple[str, bool], list[list[int]]] = defaultdict(list)
    for case in _cases(rows, vectors_BD, members):
        kinds[rows[case[0]].npc_id, any(rows[index].flag for index in case)].append(case)
    for (npc_id, flagged), cases in sorted(kinds.items()):
        # A dealer of its own for each, so that another NPC's rows leave these where they were.
        random.Random(f"{seed}/{npc_id}/{flagged}").shuffle(cases)
        total, given = sum(map(len, cases)), 0
        for case in cases:
            share = given / total
            part = "test" if share < test else "valid" if share < test + valid else "train"
            dealt[part].extend(case)
            given += len(case)
    measured = dealt["valid"] + dealt["test"]
    tied = {(rows[index].npc_id, rows[index].group) for index in measured if rows[index].group}
    for index in sorted(late - twins):
        near = (vectors_BD[measured] @ vectors_BD[index] > NEAR_TWIN).any()
        if near or (rows[index].npc_id, rows[index].group) in tied:
            twins.add(index)
        else:
            dealt["train"].append(index)
    return Split(
        train=tuple(sorted(dealt["train"])),
        valid=tuple(sorted(dealt["valid"])),
        test=tuple(sorted(dealt["test"])),
        unseen=tuple(apart),
        left_out=tuple(sorted(twins)),
    )


def _cases(
    rows: Sequence[Row], vectors_BD: np.ndarray, members: Sequence[int]
) -> Iterator[list[int]]:
    """Yield the rows of each case: joined by group, or by utterances that are near twins."""
    leader = {index: index for index in members}

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index in members:
        row = rows[index]
        if row.group:
            leader[find(index)] = find(first.setdefault((row.npc_id, row.group), index))
    alike = np.triu(vectors_BD[members] @ vectors_BD[members].T, k=1) > NEAR_TWIN
    for a, b in np.argwhere(alike):
        leader[find(members[a])] = find(members[b])
    cases: dict[int, list[int]] = defaultdict(list)
    for index in members:
        cases[find(index)].append(index)
    yield from (cases[key] for key in sorted(cases))
