"""Hidden states at <STATE> for training rows, read from the frozen base.

Rows of one NPC and stage share a prompt prefix, which is fed once; so a thousand rows take minutes on
a CPU and not an hour. Knows nothing of labels or heads.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from engine.model import default_marker_rows, install_marker_rows, run_decoder
from engine.npc import NPCRegistry
from engine.prompt import EncodedPrompt, PromptEncoder, choose_marker_ids
from training.kept import KeptArrays, key_of
from training.prompts import row_parts
from training.rows import Row

logger = logging.getLogger(__name__)

# A stop loses at most so many rows' reading.
_SAVE_EVERY = 200


@dataclass(frozen=True)
class Reader:
    """A frozen base, ready to read prompts: its marker rows are installed.

    `marker_rows_MH` are the rows as float32; `layers` is the number of decoder layers.
    """

    model: Any
    encoder: PromptEncoder
    markers: dict[str, int]
    marker_rows_MH: torch.Tensor

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.num_hidden_layers)


def make_reader(model: Any, tokenizer: Any, *, max_tokens: int = 1536) -> Reader:
    """Give a base its markers and an encoder."""
    markers = choose_marker_ids(tokenizer, model.get_input_embeddings().weight.shape[0])
    rows_MH = default_marker_rows(model, tokenizer)
    install_marker_rows(model, markers, rows_MH)
    encoder = PromptEncoder(tokenizer, markers, max_tokens=max_tokens, max_text_tokens=1024)
    return Reader(model, encoder, markers, rows_MH)


class FeatureStore:
    """Features kept on disk by prompt, so that a changed row costs one row and not two thousand.

    Args:
        path: an .npz file; None keeps them in memory only.
        base: fingerprint of the base: features of another base are not used.
    """

    def __init__(self, path: Path | None, base: str) -> None:
        self._kept = KeptArrays(path, base, save_every=_SAVE_EVERY)

    def read(self, reader: Reader, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
        """Return `state_features` of `prompts`; only unknown ones go through the model."""
        by_key = {key_of(prompt.ids): prompt for prompt in prompts}

        def make(part: Sequence[str]) -> np.ndarray:
            return state_features(reader, [by_key[key] for key in part]).astype(np.float16)

        found = self._kept.read(list(by_key), make)
        return np.stack([found[key_of(one.ids)] for one in prompts]).astype(np.float32)


@torch.inference_mode()
def state_features(reader: Reader, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
    """Return the hidden states at <STATE> of every layer, float32, shape (rows, layers + 1, H).

    Index l - 1 is the output of decoder layer l (before the final norm), the last index the output
    of the final norm.
    """
    by_prefix: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_prefix[prompt.ids[: prompt.prefix_length]].append(index)
    hidden = int(reader.model.config.hidden_size)
    features = np.zeros((len(prompts), reader.layers + 1, hidden), dtype=np.float32)
    with tqdm(total=len(prompts), desc="reading prompts", unit="row") as bar:
        for prefix, members in by_prefix.items():
            cache = DynamicCache(config=reader.model.config)
            if prefix:
                _feed(reader, prefix, cache)
            for index in members:
                suffix = prompts[index].ids[len(prefix) :]
                features[index] = _read(reader, suffix, cache)
                cache.crop(-len(suffix))
                bar.update()
    return features


def _feed(reader: Reader, ids: Sequence[int], cache: Any) -> None:
    run_decoder(reader.model.model, _row(reader, ids), cache)


def _read(reader: Reader, ids: Sequence[int], cache: Any) -> np.ndarray:
    """Feed a suffix that ends with <STATE>; return (layers + 1, H)."""
    layers = reader.model.model.layers
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden_1TH = output[0] if isinstance(output, tuple) else output
        kept.append(hidden_1TH[0, -1].float().cpu())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        output = run_decoder(reader.model.model, _row(reader, ids), cache)
    finally:
        for handle in handles:
            handle.remove()
    kept.append(output.last_hidden_state[0, -1].float().cpu())
    return torch.stack(kept).numpy()


def _row(reader: Reader, ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(ids)], device=reader.model.device)


def encode_rows(
    reader: Reader,
    rows: Sequence[Row],
    registry: NPCRegistry,
    languages: Sequence[str],
    permitted: Sequence[Iterable[str]],
) -> list[EncodedPrompt]:
    """Encode every row's prompt up to <STATE>; `permitted` is the gate's word, a row each."""
    return [
        reader.encoder.encode(row_parts(row, registry, languages, flags))
        for row, flags in zip(rows, permitted, strict=True)
    ]
