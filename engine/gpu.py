"""Borrowing a ZeroGPU Space's accelerator, and nothing anywhere else.

Such a Space lends its GPU only inside a decorated call, which runs in a forked worker: arguments
and results are pickled, so they must be plain values, and what the call holds on to (a model) must
stand before the page is launched. Import this before torch: the package patches it.
Source: https://huggingface.co/docs/hub/spaces-zerogpu
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

try:
    import spaces
    from spaces.config import Config as _SpacesConfig
except ImportError:  # not on a Space
    spaces = None

Call = TypeVar("Call", bound=Callable[..., object])

MAX_TURN_SECONDS = 60


def on_accelerator(call: Call) -> Call:
    """Return `call` so that it runs with the Space's GPU where one is lent, else `call` itself."""
    return spaces.GPU(duration=MAX_TURN_SECONDS)(call) if spaces is not None else call


def lent_per_call() -> bool:
    """Tell whether this is a ZeroGPU Space.

    There the model must be loaded before the launch, and the Space counts as started only if some
    call was decorated by then; so one is, in case no model can be loaded and the page must say why.
    """
    if spaces is None or not _SpacesConfig.zero_gpu:
        return False
    on_accelerator(_idle)
    return True


def _idle() -> None:
    """Do nothing; stands in for the model's work until there is a model."""
