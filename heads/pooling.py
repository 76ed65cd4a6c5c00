"""From a sequence of hidden states to the one vector that the heads read.

<STATE> is found by its id, never by its position: padding and whatever follows it do not matter.
"""

from __future__ import annotations

import torch


def state_positions(ids_BT: torch.Tensor, state_id: int) -> torch.Tensor:
    """Return the position of the one <STATE> in each row, shape (B,).

    Raises:
        ValueError: a row without <STATE>, or with more than one.
    """
    is_state_BT = ids_BT == state_id
    counts_B = is_state_BT.sum(dim=1)
    if not bool((counts_B == 1).all()):
        raise ValueError(f"each sequence needs exactly one <STATE>, found {counts_B.tolist()}")
    return is_state_BT.int().argmax(dim=1)


def pool_state(hidden_BTH: torch.Tensor, ids_BT: torch.Tensor, state_id: int) -> torch.Tensor:
    """Return the hidden state at <STATE> of each row, shape (B, H), in float32.

    Raises:
        ValueError: as `state_positions`.
    """
    positions_B = state_positions(ids_BT, state_id).to(hidden_BTH.device)
    rows_B = torch.arange(hidden_BTH.shape[0], device=hidden_BTH.device)
    return hidden_BTH[rows_B, positions_B].float()
