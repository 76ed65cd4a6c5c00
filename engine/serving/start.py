"""From a loaded model to a host for its turns: batched where the lean forward can stand in for it.

Knows nothing of NPCs or settings' names.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from engine.decode import Sampler, Sampling, choose_tokens
from engine.gpu import lent_per_call
from engine.host import Host, ModelHost
from engine.model import LanguageModel
from engine.serving.batch import BatchHost, BatchLimits
from engine.serving.caches import RowCache
from engine.serving.lean import LeanDecoder, why_not_lean
from engine.serving.products import int16_serves
from engine.serving.steps import Steps
from engine.serving.tuning import choose_steps

logger = logging.getLogger(__name__)


def make_host(
    model: LanguageModel,
    *,
    queue_limit: int,
    batch: int,
    prefix_cache_mb: int,
    weights: str = "auto",
    products: str = "auto",
    tuning: Path | None = None,
) -> Host:
    """Return what runs turns on `model`.

    Args:
        model: the loaded model.
        queue_limit: turns that may wait or run.
        batch: lines that are written together; 1: one turn at a time, by the library's forward pass.
        prefix_cache_mb: limit of kept prompt beginnings.
        weights: in which form lines are decoded: "auto", "whole" or "int8".
        products: how prompts are multiplied; see `make_decoder`.
        tuning: file that remembers what a measurement chose.

    Raises:
        ValueError: the form or the products that are asked for are not to be had.
    """
    # A lent GPU is there for one call in a forked worker: nothing outlives it to be shared.
    reason = "a GPU that is lent for each call" if lent_per_call() else why_not_lean(model.model)
    if batch == 1 or reason:
        logger.info("one turn at a time%s", f": {reason}" if reason else "")
        return ModelHost(model, queue_limit)
    decoder = make_decoder(model, products)
    steps = choose_steps(decoder, weights, most=batch, remembered=tuning)
    warm_up(decoder, steps)
    logger.info("up to %d lines together, decoded with %s", batch, steps.forms)
    limits = BatchLimits(queue=queue_limit, batch=batch, cache_bytes=prefix_cache_mb * 2**20)
    return BatchHost(model, decoder, limits, steps)


def make_decoder(
    model: LanguageModel, products: str = "auto", *, room: int | None = None
) -> LeanDecoder:
    """Return the lean forward as it serves here.

    Args:
        model: of a type that it can stand in for.
        products: "float"; "int16" (`engine.serving.products`), which takes half of float32's memory
            more; "auto": int16 where it is the faster and the model is small.
        room: tokens behind the longest prompt; None: for the decision and the longest line.

    Raises:
        ValueError: int16 asked for what is not float32 on a CPU.
    """
    parameters = sum(weight.numel() for weight in model.model.parameters())
    possible = int16_serves(model.model.model.norm.weight)
    if products not in ("auto", "float", "int16"):
        raise ValueError(f"products must be auto, float or int16, not {products!r}")
    if products == "int16" and not possible:
        raise ValueError("int16 products are for float32 on a CPU with AVX2 or AVX-512")
    positions = model.encoder.max_tokens + (_REPLY_ROOM if room is None else room)
    small = parameters <= _SMALL or products == "int16"
    int16 = possible and small and products != "float"
    logger.info("prompts are read in %s", "int16" if int16 else model.precision)
    return LeanDecoder(model.model, positions, int16=int16)


@torch.inference_mode()
def warm_up(decoder: LeanDecoder, steps: Steps) -> None:
    """Call once what a turn calls, so that no player waits for the compiler."""
    sampling = Sampling(
        temperature=0.5, top_p=0.9, repetition_penalty=1.1, max_new_tokens=1, seed=0
    )
    for lines in (1, 2):  # one line is chosen for in another way than many
        ids = torch.zeros(_WARM_IDS, dtype=torch.long, device=decoder.device)
        shared = RowCache(decoder.shape, _WARM_IDS, decoder.dtype, decoder.device)
        decoder.forward(ids, shared.begin(_WARM_IDS), shared, keeper=shared)
        batch, rows = steps.batch(), range(lines)
        for _ in rows:
            row = RowCache(decoder.shape, 1, decoder.dtype, decoder.device, behind=shared.data)
            decoder.forward(ids[:1], row.begin(1), row, keeper=row)
            row.finish(1)
            batch.join(row, row.length + 1)
        logits_BV = steps.logits(ids[:lines], batch)
        choose_tokens(logits_BV, [Sampler(sampling, [0]) for _ in rows], [[1] for _ in rows])


# Ids that are enough for loops to use their threads.
_WARM_IDS = 16

# Parameters up to which a further copy in int16 (2 bytes each) is hardly felt.
_SMALL = 500_000_000

# Behind the longest prompt: the decision in words, and the longest line that may be asked for.
_REPLY_ROOM = 1024
