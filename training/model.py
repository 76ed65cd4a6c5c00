"""The model in training: a frozen base with LoRA, trained marker rows, and the heads.

One pass over a pack gives all losses: the heads read <STATE>, the language loss the reply. Knows
nothing of rows, files or trainers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from engine.model import default_marker_rows, install_marker_rows
from heads.bundle import Bundle, BundleError
from heads.modules import HeadOutputs
from heads.spec import FINAL_NORM, HeadSpec
from training.branches import Branches, install
from training.collate import IGNORED
from training.losses import LossParts, LossWeights, head_losses, hint_losses, language_loss
from training.scaled import ScaledHeads

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraArgs:
    """Size of the adapter, on all linear layers of every block.

    Source: Hu et al., "LoRA", 2021; Dettmers et al., "QLoRA", 2023 (all linear layers).
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


class MultiHeadModel(nn.Module):
    """Base, adapter and heads as one module; `forward` gives the loss parts of a pack.

    Args:
        base: from `engine.model.load_base`, with its marker rows not yet installed.
        tokenizer: of the base.
        markers: marker → token id.
        heads: the heads to start from.
        lora: size of the adapter.
        positive_N: weight of each flag's positives.
        weights: of the parts of the loss.
        start: bundle to go on from: its marker rows and, where it has one, its adapter.
        checkpointing: recompute activations in the backward pass: less memory, a third more time.

    Raises:
        BundleError: `start` has other markers, or an adapter of another size.
    """

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        markers: Mapping[str, int],
        heads: ScaledHeads,
        *,
        lora: LoraArgs,
        positive_N: torch.Tensor,
        weights: LossWeights,
        start: Bundle | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.weights = weights
        self.markers = dict(markers)
        self.positive_N: torch.Tensor
        self.register_buffer("positive_N", positive_N, persistent=False)
        if start and dict(start.info.markers) != self.markers:
            raise BundleError(f"the bundle {start.info.name} was made for other markers")
        rows_MH = start.marker_rows_MH if start else default_marker_rows(base, tokenizer)
        install_marker_rows(base, markers, rows_MH)
        if getattr(base, "is_loaded_in_4bit", False):
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
        elif checkpointing:
            base.gradient_checkpointing_enable()
        base.config.use_cache = False
        install(base)
        # Only the markers' rows are trained, not the embedding of a whole vocabulary.
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(_LINEAR),
            trainable_token_indices=sorted(markers.values()),
            task_type="CAUSAL_LM",
        )
        self.peft: Any = get_peft_model(base, config)
        for module in self.peft.modules():
            if isinstance(module, LoraLayer) and hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False  # autocast does it, once
        if start and start.adapter:
            self._load_adapter(start.adapter)

    def _load_adapter(self, folder: Path) -> None:
        held = load_file(folder / "adapter_model.safetensors")
        mine = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        wanted = {name: tuple(mine[name].shape) for name in mine if "lora_" in name}
        if {name: tuple(tensor.shape) for name, tensor in held.items()} != wanted:
            raise BundleError(
                f"the adapter in {folder} is of another size than this run's; "
                "start from a bundle of the same base and rank"
            )
        # The markers' rows are in place already; PEFT wants them named all the same.
        set_peft_model_state_dict(self.peft, {**mine, **held})

    @property
    def spec(self) -> HeadSpec:
        """What the heads are made of."""
        return self.heads.spec

    def forward(
        self,
        ids_1T: torch.Tensor,
        positions_1T: torch.Tensor,
        prefix: torch.Tensor,
        lengths_K: torch.Tensor,
        labels_1T: torch.Tensor,
        state_K: torch.Tensor,
        truth_KN: torch.Tensor,
        permitted_KN: torch.Tensor,
        delta_K2: torch.Tensor,
        asks_KN: torch.Tensor,
        act_K: torch.Tensor,
        attack_K: torch.Tensor,
    ) -> LossParts:
        """Return the sums of each part of the loss over a pack (see `training.collate`)."""
        last_TH, state_KH = self._hidden(ids_1T, positions_1T, prefix, lengths_K, state_K)
        learnt_T = labels_1T[0] != IGNORED
        # Logits of a whole vocabulary are the dearest part of a small model: only where needed.
        logits_PV = self.peft.base_model.model.lm_head(last_TH[learnt_T])
        features_KH = self.heads.scaled(state_KH)
        delta, flags, threshold = head_losses(
            self.heads.outputs(features_KH),
            truth_KN,
            permitted_KN,
            delta_K2,
            attack_K,
            positive_N=self.positive_N,
            weights=self.weights,
        )
        language = language_loss(logits_PV, labels_1T[0][learnt_T])
        asks, act = hint_losses(*self.heads.hints(features_KH), asks_KN, act_K)
        return LossParts(language, delta, flags, threshold, asks, act)

    @torch.no_grad()
    def read(
        self,
        ids_1T: torch.Tensor,
        positions_1T: torch.Tensor,
        prefix: torch.Tensor,
        lengths_K: torch.Tensor,
        state_K: torch.Tensor,
        **_labels: torch.Tensor,
    ) -> tuple[HeadOutputs, torch.Tensor]:
        """Return what the heads read for a pack of K examples, and the states themselves (K, H)."""
        with self._until_heads():
            _, state_KH = self._hidden(ids_1T, positions_1T, prefix, lengths_K, state_K)
        return self.heads(state_KH), state_KH.float()

    @contextmanager
    def _until_heads(self) -> Iterator[None]:
        """Leave out the blocks behind the heads' layer for a while: a reading does not need them."""
        decoder, layer = self.peft.base_model.model.model, self.spec.layer
        if layer == FINAL_NORM:
            yield
            return
        blocks = decoder.layers
        decoder.layers = blocks[:layer]
        try:
            yield
        finally:
            decoder.layers = blocks

    def _hidden(
        self,
        ids_1T: torch.Tensor,
        positions_1T: torch.Tensor,
        prefix: torch.Tensor,
        lengths_K: torch.Tensor,
        state_K: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the decoder; return the final norm's output (T, H) and the heads' input (K, H)."""
        decoder, layer = self.peft.base_model.model.model, self.spec.layer
        branches = Branches.of(int(prefix), lengths_K.tolist(), ids_1T.device)
        kept: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            hidden_1TH = output[0] if isinstance(output, tuple) else output
            kept.append(hidden_1TH[0])

        handle = None
        if layer != FINAL_NORM:
            handle = decoder.layers[layer - 1].register_forward_hook(keep)
        try:
            last_1TH = decoder(
                input_ids=ids_1T, position_ids=positions_1T, use_cache=False, branches=branches
            ).last_hidden_state
        finally:
            if handle:
                handle.remove()
        read_TH = last_1TH[0] if layer == FINAL_NORM else kept[0]
        return last_1TH[0], read_TH[state_K]

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return what training changes, by the names of `state_dict`: adapter, rows and heads."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        names |= {f"heads.{name}" for name, _ in self.heads.named_buffers()}
        state = self.state_dict(keep_vars=True)
        # A row shared by embedding and output layer has two names; one is enough.
        kept = {name: state[name].detach() for name in state if name in names}
        return {name: tensor.contiguous().clone() for name, tensor in kept.items()}

    def marker_rows(self) -> torch.Tensor:
        """Return the markers' embedding rows as trained, float32, in the order of `markers`."""
        embedding = self.peft.get_input_embeddings()
        ids = torch.tensor(list(self.markers.values()), device=next(self.parameters()).device)
        with torch.no_grad():
            rows: torch.Tensor = embedding(ids)
        return rows.detach().float().cpu()

    def merge(self) -> None:
        """Add the adapter into the base's weights, for reading; in 4-bit it stays beside them."""
        if not getattr(self.peft.base_model.model, "is_loaded_in_4bit", False):
            self.peft.merge_adapter()

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Merge for a while: reading is then three times as fast. The base is put back bit by bit,
        since adding and taking away in half precision does not give back what was there.
        """
        base = self.peft.base_model.model
        already = any(layer.merged for layer in _lora_layers(self.peft))
        if already or getattr(base, "is_loaded_in_4bit", False):
            yield
            return
        weights = [layer.get_base_layer().weight for layer in _lora_layers(self.peft)]
        held = [weight.detach().clone() for weight in weights]
        self.peft.merge_adapter()
        try:
            yield
        finally:
            self.peft.unmerge_adapter()
            with torch.no_grad():
                for weight, before in zip(weights, held, strict=True):
                    weight.copy_(before)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA adapter alone in PEFT's format, fp16; marker rows have a file of their own."""
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        halves = {
            name: tensor.detach().to("cpu", torch.float16).contiguous()
            for name, tensor in state.items()
            if "lora_" in name
        }
        save_file(halves, folder / "adapter_model.safetensors")
        config: LoraConfig = self.peft.peft_config["default"]
        plain = LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(_LINEAR),
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        plain.save_pretrained(str(folder))


def _lora_layers(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def positive_weights(truth: Sequence[Sequence[float]], *, most: float = 4.0) -> torch.Tensor:
    """Return each flag's weight of positives: the root of how much rarer they are, at most `most`.

    The root, because the full ratio makes a rare flag shout and spoils its calibration.
    """
    truth_BN = torch.tensor(truth)
    positives_N = truth_BN.sum(0).clamp(min=1.0)
    ratio_N = (len(truth_BN) - positives_N) / positives_N
    return ratio_N.sqrt().clamp(1.0, most)
