"""What a run of training is asked for, and the base that it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.losses import LossWeights
from training.model import LoraArgs


@dataclass(frozen=True)
class TrainArgs:
    """What a run was asked for; kept in the bundle.

    Args:
        seed: of the division, the packs and every draw.
        epochs: passes over the training part.
        minutes: of training at most; 0: as long as the epochs take.
        lr, head_lr: learning rates of the adapter (and marker rows), and of the heads.
        layer: decoder layer that the heads read, from 1; -1: the final norm.
        pack_tokens, pack_rows: most ids, and most rows, that a pack reads.
        accumulate: packs a step.
        save_steps: steps between checkpoints.
        lora, weights: size of the adapter, and weights of the loss.
        max_grad_norm: where a step's gradient is clipped.
        checkpointing: recompute activations: less memory, more time.
        start: name of the bundle that the run went on from; empty: from the base.
        name: of the bundle.
        draws: of the training rows, with replacement, that the heads are fitted on besides, to tell
            how far the figures hang on them; 0: none.
    """

    seed: int = 7
    epochs: float = 3.0
    minutes: float = 0.0
    lr: float = 5e-4
    head_lr: float = 1e-3
    layer: int = -1
    pack_tokens: int = 2000
    pack_rows: int = 32
    accumulate: int = 2
    save_steps: int = 25
    lora: LoraArgs = field(default_factory=LoraArgs)
    weights: LossWeights = field(default_factory=LossWeights)
    max_grad_norm: float = 5.0
    checkpointing: bool = False
    start: str = ""
    name: str = "multi-head"
    draws: int = 0


@dataclass(frozen=True)
class Base:
    """A loaded base with what a bundle says of it."""

    model: Any
    tokenizer: Any
    id: str
    fingerprint: str
    languages: tuple[str, ...]
    max_tokens: int = 1536
