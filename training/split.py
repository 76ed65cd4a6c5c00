"""Dividing rows into parts, so that no case stands in two of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from training.rows import Row


@dataclass(frozen=True)
class Split:
    """Indices of rows: to fit on, to choose and calibrate on, to report on."""

    train: tuple[int, ...]
    valid: tuple[int, ...]
    test: tuple[int, ...]


def split_rows(rows: Sequence[Row], *, seed: int, valid: float = 0.2, test: float = 0.2) -> Split:
    """Divide rows by shares; the rows of a group stay together.

    Groups are dealt NPC by NPC and rows with flags are dealt apart from rows without, so that every
    part sees every NPC and both kinds.
    """
    cases: dict[tuple[str, bool], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    flagged = {row.group for row in rows if row.group and row.flag}
    for index, row in enumerate(rows):
        kind = (row.npc_id, bool(row.flag) or row.group in flagged)
        cases[kind][row.group or f"row {index}"].append(index)
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    dealer = random.Random(seed)
    for _, groups in sorted(cases.items()):
        members = [group for _, group in sorted(groups.items())]
        dealer.shuffle(members)
        total, dealt = sum(map(len, members)), 0
        for group in members:
            share = dealt / total
            part = "test" if share < test else "valid" if share < test + valid else "train"
            parts[part].extend(group)
            dealt += len(group)
    return Split(*(tuple(sorted(parts[name])) for name in ("train", "valid", "test")))
