"""From a loaded model to a host for its turns: batched where the lean forward can stand in for it.

Knows nothing of NPCs or settings' names.
"""

from __future__ import annotations

import logging
from pathlib import Path

from engine.gpu import lent_per_call
from engine.host import Host, ModelHost
from engine.model import LanguageModel
from engine.serving.batch import BatchHost, BatchLimits
from engine.serving.lean import LeanDecoder, why_not_lean
from engine.serving.tuning import choose_steps

logger = logging.getLogger(__name__)


def make_host(
    model: LanguageModel,
    *,
    queue_limit: int,
    batch: int,
    prefix_cache_mb: int,
    weights: str = "auto",
    tuning: Path | None = None,
) -> Host:
    """Return what runs turns on `model`.

    Args:
        model: the loaded model.
        queue_limit: turns that may wait or run.
        batch: lines that are written together; 1: one turn at a time, by the library's forward pass.
        prefix_cache_mb: limit of kept prompt beginnings.
        weights: in which form lines are decoded: "auto", "whole" or "int8".
        tuning: file that remembers what a measurement chose.
    """
    # A lent GPU is there for one call in a forked worker: nothing outlives it to be shared.
    reason = "a GPU that is lent for each call" if lent_per_call() else why_not_lean(model.model)
    if batch == 1 or reason:
        logger.info("one turn at a time%s", f": {reason}" if reason else "")
        return ModelHost(model, queue_limit)
    decoder = LeanDecoder(model.model, model.encoder.max_tokens + _REPLY_ROOM)
    steps = choose_steps(decoder, weights, most=batch, remembered=tuning)
    logger.info("up to %d lines together, decoded with %s", batch, steps.forms)
    limits = BatchLimits(queue=queue_limit, batch=batch, cache_bytes=prefix_cache_mb * 2**20)
    return BatchHost(model, decoder, limits, steps)


# Behind the longest prompt: the decision in words, and the longest line that may be asked for.
_REPLY_ROOM = 1024
