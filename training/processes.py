"""Processes that `accelerate launch` starts, one a GPU: who writes, and whose clock counts.

All of them read the rows and train; the first alone measures on `valid`, writes files and makes the
bundle. What steers the training must be the same number in all, or one waits for ever for another.
Knows nothing of models or rows.
"""

from __future__ import annotations

import os

import torch
from torch import distributed


def is_first() -> bool:
    """Tell whether this is the first of the processes, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def take_gpu() -> None:
    """Let "cuda" mean this process's own GPU, where several were started."""
    own = os.environ.get("LOCAL_RANK")
    if own is not None and torch.cuda.is_available():
        torch.cuda.set_device(int(own) % torch.cuda.device_count())


def of_the_first(number: float, device: torch.device | str = "cpu") -> float:
    """Return the first process's number in all of them; every process must ask.

    Args:
        number: this process's own.
        device: of the tensors that the processes exchange.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return number
    told_1 = torch.tensor([number], dtype=torch.float64, device=device)
    distributed.broadcast(told_1, src=0)
    return float(told_1)
