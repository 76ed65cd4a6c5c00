"""A pack as tensors: its rows read side by side in one sequence, none seeing another.

Every branch's positions go on from the prefix, and its queries see the prefix and itself alone, so the
outputs equal those of the rows read one by one. Knows nothing of models or rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.dataset import Pack

IGNORED = -100
"""Label of a position whose next id is not learnt, as torch's cross-entropy has it."""


def collate(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """Turn one pack of K examples into the model's input.

    Returns:
        ids_1T, positions_1T; prefix and lengths_K (the layout, see `training.branches`); labels_1T
        (the id that each position is to predict, or `IGNORED`); state_K (positions of <STATE>);
        truth_KN, permitted_KN, delta_K2, asks_KN, act_K, attack_K.

    Raises:
        ValueError: not exactly one pack (packs differ in shape; accumulate instead).
    """
    if len(packs) != 1:
        raise ValueError("one pack a device step; raise gradient_accumulation_steps instead")
    pack = packs[0]
    prefix = len(pack.prefix)
    ids, positions, labels = list(pack.prefix), list(range(prefix)), [IGNORED] * prefix
    states = []
    for one in pack.examples:
        start = len(ids) - prefix
        ids += one.ids[prefix:]
        positions += range(prefix, len(one.ids))
        states.append(start + one.state)
        learnt = range(one.reply, len(one.ids))
        behind = range(prefix + 1, len(one.ids) + 1)
        labels += [one.ids[at] if at in learnt else IGNORED for at in behind]
    return {
        "ids_1T": torch.tensor([ids]),
        "positions_1T": torch.tensor([positions]),
        "prefix": torch.tensor(prefix),
        "lengths_K": torch.tensor([len(one.ids) - prefix for one in pack.examples]),
        "labels_1T": torch.tensor([labels]),
        "state_K": torch.tensor(states),
        "truth_KN": torch.tensor([one.truth_N for one in pack.examples]),
        "permitted_KN": torch.tensor([one.permitted_N for one in pack.examples]),
        "delta_K2": torch.tensor([one.delta_2 for one in pack.examples]),
        "asks_KN": torch.tensor([one.asks_N for one in pack.examples]),
        "act_K": torch.tensor([one.act for one in pack.examples]),
        "attack_K": torch.tensor([float(one.attack) for one in pack.examples]),
    }
