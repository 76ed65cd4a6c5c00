"""Borrowing a ZeroGPU Space's accelerator, and nothing anywhere else.

Such a Space lends its GPU only inside a decorated call, which runs in a forked worker: arguments
and results are pickled, so they must be plain values, and what the call holds on to (a model) must
stand before the fork. Import this before torch: the package patches it.
Source: https://huggingface.co/docs/hub/spaces-zerogpu
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

try:
    import spaces
except ImportError:  # not on a Space
    spaces = None

Call = TypeVar("Call", bound=Callable[..., object])

MAX_TURN_SECONDS = 60


def on_accelerator(call: Call) -> Call:
    """Return `call` so that it runs with the Space's GPU where one is lent, else `call` itself."""
    return spaces.GPU(duration=MAX_TURN_SECONDS)(call) if spaces is not None else call
