"""Hidden states at <STATE> for training rows, read from the frozen base.

Rows of one NPC and stage share a prompt prefix, which is fed once; so a thousand rows take minutes on
a CPU and not an hour. Knows nothing of labels or heads.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from engine.model import default_marker_rows, install_marker_rows
from engine.npc import NPC, NPCRegistry
from engine.prompt import (
    LORE_FACTS,
    EncodedPrompt,
    PromptEncoder,
    PromptParts,
    choose_marker_ids,
    render_parts,
)
from engine.schema import Delta, HistoryTurn, SessionState
from engine.state import initial_state
from training.rows import Row

logger = logging.getLogger(__name__)


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


def row_state(row: Row, npc: NPC) -> SessionState:
    """Return the session state that a row speaks of."""
    tags, player = row.tags, row.player_state
    start = initial_state(npc)
    return start.model_copy(
        update={
            "quest_stage": tags.quest_stage,
            "location": tags.location or start.location,
            "npc_mood": tags.npc_mood,
            "player_reputation": tags.player_reputation,
            "standing": Delta(trust=tags.trust, relationship=tags.relationship),
            "items": player.items,
            "actions": player.actions,
            "game_state": player.game_state,
            "history": tuple(HistoryTurn(player=said, npc=line) for said, line in row.exchanges),
        }
    )


def row_parts(row: Row, registry: NPCRegistry, languages: Sequence[str]) -> PromptParts:
    """Render a row's prompt as serving does: in the NPC's variant that the base can write."""
    npc = registry.get(row.npc_id, row.lang if row.lang in languages else None)
    return render_parts(
        npc,
        row_state(row, npc),
        lore=npc.lore[:LORE_FACTS],
        scene=npc.stage(row.tags.quest_stage).description,
        utterance=row.player_utterance,
    )


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
    reader.model.model(input_ids=_row(reader, ids), past_key_values=cache, use_cache=True)


def _read(reader: Reader, ids: Sequence[int], cache: Any) -> np.ndarray:
    """Feed a suffix that ends with <STATE>; return (layers + 1, H)."""
    layers = reader.model.model.layers
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden_1TH = output[0] if isinstance(output, tuple) else output
        kept.append(hidden_1TH[0, -1].float().cpu())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        output = reader.model.model(
            input_ids=_row(reader, ids), past_key_values=cache, use_cache=True
        )
    finally:
        for handle in handles:
            handle.remove()
    kept.append(output.last_hidden_state[0, -1].float().cpu())
    return torch.stack(kept).numpy()


def _row(reader: Reader, ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(ids)], device=reader.model.device)


def encode_rows(
    reader: Reader, rows: Sequence[Row], registry: NPCRegistry, languages: Sequence[str]
) -> list[EncodedPrompt]:
    """Encode every row's prompt up to <STATE>."""
    return [reader.encoder.encode(row_parts(row, registry, languages)) for row in rows]
