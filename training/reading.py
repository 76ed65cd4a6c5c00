"""Reading examples with a model in training, packs of one prefix at a time.

Knows nothing of labels, figures or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from engine.schema import FLAGS
from training.args import TrainArgs
from training.collate import collate
from training.dataset import Example, make_packs
from training.model import MultiHeadModel


@dataclass(frozen=True)
class Read:
    """What the heads read for B examples, and the states that they read it from."""

    logits_BN: np.ndarray
    delta_B2: np.ndarray
    threshold_BN: np.ndarray
    state_BH: np.ndarray


def read_examples(model: MultiHeadModel, examples: Sequence[Example], args: TrainArgs) -> Read:
    """Read every example."""
    device = next(model.heads.parameters()).device
    place = {id(one): index for index, one in enumerate(examples)}
    count = len(FLAGS)
    logits, thresholds = np.zeros((len(examples), count)), np.zeros((len(examples), count))
    deltas = np.zeros((len(examples), 2))
    states = np.zeros((len(examples), model.spec.hidden_size), dtype=np.float32)
    packs = make_packs(
        examples, max_tokens=args.pack_tokens, max_examples=args.pack_rows, seed=args.seed
    )
    half = next(model.peft.parameters()).dtype
    mixed = (
        torch.autocast(device.type, half)
        if half in (torch.bfloat16, torch.float16)
        else nullcontext()
    )
    model.eval()
    with model.merged():
        for pack in tqdm(packs, desc="reading rows", unit="pack"):
            inputs = {name: tensor.to(device) for name, tensor in collate([pack]).items()}
            with mixed:
                outputs, state_KH = model.read(**inputs)
            at = [place[id(one)] for one in pack.examples]
            logits[at] = outputs.flag_logits_BN.float().cpu().numpy()
            deltas[at] = outputs.delta_B2.float().cpu().numpy()
            thresholds[at] = outputs.threshold_BN.float().cpu().numpy()
            states[at] = state_KH.cpu().numpy()
    return Read(logits, deltas, thresholds, states)
