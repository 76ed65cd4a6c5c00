"""Ways of multiplying rows by one matrix: torch's, torch's on a copy laid out for matrix units, and
whole numbers where a processor multiplies those faster than float32.

    bfloat16      a copy as the matrix units read it
    float32       int16 by vectors (`int16_product`), where that is asked for: half the instructions
    anything else, and on a GPU: torch's own product

Takes matrices, gives functions. Knows nothing of layers.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Multiply = Callable[[torch.Tensor], torch.Tensor]

# Numba's simplest pool of threads bears one caller at a time.
POOL = threading.RLock()

# Rows of a product that a packed matrix's layout is chosen for: a slice of a prompt.
_USUAL_ROWS = 128
INT8_MOST = 127


def plain_product(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Multiply:
    """Return torch's product, and on a CPU the fastest that gives the same."""
    return packed_product(weight_NK, bias_N) or (lambda rows: F.linear(rows, weight_NK, bias_N))


def packed_product(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Multiply | None:
    """Return the product with a copy of the matrix that lies as this processor's matrix units read it.

    A plain matrix is laid out anew for every product, which is a third of the time for a prompt of a
    hundred tokens. None where that is not to be had: on a GPU, in float32, without oneDNN.
    """
    if weight_NK.device.type != "cpu" or weight_NK.dtype is not torch.bfloat16:
        return None
    probe = torch.ones(_USUAL_ROWS, weight_NK.shape[1], dtype=weight_NK.dtype)
    try:
        pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        packed = pack(weight_NK.contiguous(), _USUAL_ROWS)
        found = multiply(probe, packed, bias_N, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    if not torch.allclose(found, F.linear(probe, weight_NK, bias_N), rtol=0.02, atol=0.02):
        return None
    return lambda rows: multiply(rows, packed, bias_N, "none", [], "")


@lru_cache(maxsize=1)
def have_loops() -> bool:
    """Tell whether loops can be compiled for this processor."""
    try:
        importlib.import_module("engine.serving.loops")
    except ImportError:
        return False
    return True


def use_threads() -> int:
    """Set how many threads the loops of this thread use, as many as torch does; return it."""
    import numba

    parts = min(torch.get_num_threads(), int(vars(numba.config)["NUMBA_NUM_THREADS"]))
    numba.set_num_threads(parts)
    return parts


def int16_serves(weight: torch.Tensor) -> bool:
    """Tell whether whole numbers are worth it here: float32 on a CPU that adds products in pairs."""
    if weight.device.type != "cpu" or weight.dtype is not torch.float32 or not have_loops():
        return False
    from engine.serving import loops

    return loops.pairs_products()


def int16_product(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Multiply:
    """Return the product with the matrix and its rows rounded to whole numbers; float32 in and out.

    A row of the result depends on its own row alone, to the last bit, however many are multiplied
    together. See `engine.serving.loops.product_int16` for how fine it is.

    Raises:
        ImportError: there is no Numba for this processor.
    """
    from engine.serving import loops  # compiled at a first call, and only where it serves

    whole_NK, scale = quantise_rows([weight_NK], loops.MATRIX_MOST)
    panels = loops.as_panels(padded(whole_NK.numpy(), loops.LANES))
    scale_N: Any = scale.numpy()
    bias = np.empty(0, np.float32) if bias_N is None else bias_N.detach().float().numpy()
    width = 2 * panels.shape[1]

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        given_BK = rows.contiguous().numpy()
        count = len(given_BK)
        found = torch.empty(count, len(scale_N))
        with POOL:
            parts = use_threads()
            loops.product_int16(
                given_BK,
                panels,
                scale_N,
                bias,
                np.empty((count + loops.LINES, width), np.int16),
                np.empty(count, np.float32),
                found.numpy(),
                parts,
            )
        return found

    return multiply


def quantise_rows(
    weights_NK: Sequence[torch.Tensor], most: int = INT8_MOST
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the whole numbers (N, K) nearest to the joined rows, and their scales (N,) in float32.

    Args:
        weights_NK: matrices of one width.
        most: the largest number of a row; up to 127 they are int8, beyond int16.
    """
    weight_NK = torch.cat([one.detach().float() for one in weights_NK])
    scale_N = weight_NK.abs().amax(dim=1).clamp(min=1e-8) / float(most)
    kind = torch.int8 if most <= INT8_MOST else torch.int16
    return (weight_NK / scale_N[:, None]).round().to(kind), scale_N


def padded(whole_NK: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """Return rows with zeros behind them, to a multiple of `lanes`.

    NumPy asks the system for large pages, which a product that runs through them needs.
    """
    count, width = whole_NK.shape
    found = np.zeros((count, -(-width // lanes) * lanes), whole_NK.dtype)
    found[:, :width] = whole_NK
    return found
