"""The language model: base, adapter and heads, loaded strictly and run in one pass.

`prefill` feeds a prompt once, reads the heads at <STATE> and keeps the cache; `generate` goes on from
that cache. Takes and returns plain values but for the cache itself. Knows nothing of NPCs, gates,
sessions or what a flag means.
"""

from __future__ import annotations

import functools
import inspect
import logging
import platform
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

from engine.decision import Reading
from engine.decode import Sampler, Sampling, TextStream, stops_line
from engine.errors import ModelError, NotReady
from engine.locks import LOADING
from engine.prompt import MARKERS, PromptEncoder, control_ids
from heads.bundle import Bundle
from heads.evidence import NOTHING, Evidence
from heads.pooling import pool_state
from heads.spec import DELTA_NAMES, FINAL_NORM

logger = logging.getLogger(__name__)

SUPPORTED_TYPES = ("llama", "qwen2")
Precision = Literal["fp32", "bf16", "fp16", "4bit"]


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to run on.

    Raises:
        NotReady: CUDA was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise NotReady("DEVICE=cuda, but there is no CUDA device; set DEVICE=auto", field="DEVICE")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(device: torch.device, quantize: str, *, embedded: bool) -> Precision:
    """Return the precision for a device.

    The embedded base stays unquantised under "auto": at 135M parameters 4-bit saves nothing. On a CPU
    it is float32 where bfloat16 would be imitated, as on Ice Lake (AVX-512 without avx512_bf16).
    """
    if quantize == "4bit" or (quantize == "auto" and device.type == "cuda" and not embedded):
        return "4bit"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported() or (embedded and _imitates_bf16()):
        return "fp32"
    return "bf16"


_TELLS_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def _imitates_bf16() -> bool:
    """Tell whether this is an x86 processor whose bfloat16 products are made of float32 ones."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    told = [getattr(torch.cpu, name, None) for name in _TELLS_BF16]
    return all(told) and not any(tells() for tells in told if tells)


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the compute type; 4-bit computes in fp16 on cards before Ampere (capability 8)."""
    if precision == "4bit":
        if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
            return torch.float16
        return torch.bfloat16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def nf4_config(compute: torch.dtype) -> BitsAndBytesConfig:
    """Return the 4-bit configuration of QLoRA: NF4 with double quantisation.

    Source: Dettmers et al., "QLoRA", 2023, https://arxiv.org/abs/2305.14314
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def load_base(path: str | Path, device: torch.device, precision: Precision) -> tuple[Any, Any]:
    """Load a base and its tokenizer from safetensors.

    Raises:
        NotReady: the files cannot be loaded, or the architecture is not supported.
    """
    compute = _dtype(precision, device)
    arguments: dict[str, Any] = {"dtype": compute, "use_safetensors": True}
    if precision == "4bit":
        arguments["quantization_config"] = nf4_config(compute)
        arguments["device_map"] = {"": device}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        with LOADING:
            model: Any = AutoModelForCausalLM.from_pretrained(path, **arguments)
    except (OSError, ValueError, RuntimeError, ImportError) as exc:
        raise NotReady(f"the base model at {path} cannot be loaded: {exc}") from exc
    if model.config.model_type not in SUPPORTED_TYPES:
        raise NotReady(
            f"the base is of type {model.config.model_type!r}; supported are "
            f"{', '.join(SUPPORTED_TYPES)}. Set BASE_MODEL to another model"
        )
    if precision != "4bit":
        model.to(device)
    return model.eval(), tokenizer


@dataclass(frozen=True)
class Prefill:
    """A prompt that went through the model: what the heads read, the cache, and its length.

    `hidden_H` is the vector at <STATE>, float32 on the CPU, shape (H,).
    """

    reading: Reading
    hidden_H: torch.Tensor
    cache: Any
    length: int


class LanguageModel:
    """Base with its adapter and heads.

    Args:
        model, tokenizer: from `load_base`.
        bundle: made for that base.
        base_id, base_fingerprint: of the base's files, held against the bundle's.
        precision: what `load_base` was given, for `/status`.
        max_prompt_tokens, max_text_tokens: limits of the prompt encoder.

    Raises:
        NotReady: the bundle was made for another base, or does not fit this one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        bundle: Bundle,
        *,
        base_id: str,
        base_fingerprint: str,
        precision: Precision = "fp32",
        max_prompt_tokens: int = 1536,
        max_text_tokens: int = 512,
    ) -> None:
        check_fits(bundle, model, base_id=base_id, base_fingerprint=base_fingerprint)
        self.bundle = bundle
        self.base_id = base_id
        self.precision = precision
        self.device = next(model.parameters()).device
        self.tokenizer = tokenizer
        install_marker_rows(model, bundle.info.markers, bundle.marker_rows_MH)
        self.model = _with_adapter(model, bundle)
        self._heads = bundle.heads.float().cpu()
        self.encoder = PromptEncoder(
            tokenizer,
            bundle.info.markers,
            max_tokens=max_prompt_tokens,
            max_text_tokens=max_text_tokens,
        )
        self.stop_ids = _stop_ids(model, tokenizer)
        specials = control_ids(tokenizer) | set(bundle.info.markers.values())
        self.suppressed = sorted(specials - self.stop_ids)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the model can write."""
        return self.bundle.info.languages

    @torch.inference_mode()
    def prefill(
        self,
        ids: Sequence[int],
        meaning: Sequence[float] = (),
        evidence: Evidence | None = None,
    ) -> Prefill:
        """Feed a prompt of T ids that holds one <STATE>, once.

        Args:
            ids: the prompt.
            meaning: what is heard of the utterance, where the bundle's heads read that.
            evidence: see `read_heads`.

        Raises:
            ModelError: the forward pass failed or gave values that are not finite.
        """
        cache = DynamicCache(config=self.model.config)
        ids_1T = torch.tensor([list(ids)], device=self.device)
        try:
            hidden_1TH = self._forward(ids_1T, cache, self.bundle.info.spec.layer)
            hidden_1H = pool_state(hidden_1TH, ids_1T, self.encoder.state_id).cpu()
        except (RuntimeError, ValueError, IndexError) as exc:
            raise ModelError(f"the model failed while it read the prompt: {exc}") from exc
        return Prefill(self.read_heads(hidden_1H, meaning, evidence), hidden_1H[0], cache, len(ids))

    @torch.inference_mode()
    def read_heads(
        self,
        hidden_1H: torch.Tensor,
        meaning: Sequence[float] = (),
        evidence: Evidence | None = None,
    ) -> Reading:
        """Turn the hidden state at <STATE>, shape (1, H), into calibrated values.

        Args:
            hidden_1H: the hidden state.
            meaning: what is heard of the utterance, of the bundle's width.
            evidence: what the game's state says of what is said, for heads with claims; None: nothing.

        Raises:
            ModelError: a value is not finite, or the sentence vector is not the bundle's.
        """
        info = self.bundle.info
        meaning_1M = torch.tensor([list(meaning)]) if len(meaning) else None
        evidence_1E = torch.tensor([(evidence or NOTHING).numbers(info.spec.flags)])
        try:
            outputs = self._heads(hidden_1H, meaning_1M, evidence_1E)
        except ValueError as exc:
            raise ModelError(str(exc)) from exc
        read = (hidden_1H, outputs.delta_B2, outputs.flag_logits_BN, outputs.threshold_BN)
        if not all(bool(torch.isfinite(values).all()) for values in read):
            raise ModelError("the model's state is not finite; try QUANTIZE=none")
        deltas = dict(zip(DELTA_NAMES, outputs.delta_B2[0].tolist(), strict=True))
        logits = dict(zip(info.spec.flags, outputs.flag_logits_BN[0].tolist(), strict=True))
        thresholds: Mapping[str, float] = info.thresholds
        if info.threshold_source == "head":
            learned = outputs.threshold_BN[0].tolist()
            thresholds = dict(zip(info.spec.flags, learned, strict=True))
        acts = dict(zip(info.spec.acts, outputs.act_BA[0].tolist(), strict=True))
        return Reading(
            trust=deltas["trust"],
            relationship=deltas["relationship"],
            probabilities={flag: info.calibration[flag](logits[flag]) for flag in logits},
            thresholds=thresholds,
            acts=acts,
            bad_faith=sum(acts[act] for act in info.bad_faith.acts) if info.bad_faith else 0.0,
            bad_faith_limit=info.bad_faith.limit if info.bad_faith else 1.0,
        )

    @torch.inference_mode()
    def generate(
        self, prefill: Prefill, suffix: Sequence[int], sampling: Sampling
    ) -> Generator[str, None, bool]:
        """Go on from a prefilled prompt: feed `suffix`, then decode; yield the growing raw text.

        The cache is used up: a `Prefill` serves one line.

        Returns:
            Whether the line came to its end; False where it ran out of tokens.

        Raises:
            ModelError: the forward pass or the choice of a token failed.
        """
        if not suffix:
            raise ValueError("suffix must hold at least the <NPC> marker")
        sampler = Sampler(sampling, self.suppressed)
        stream = TextStream(self.tokenizer)
        generated: list[int] = []
        pending = list(suffix)
        for _ in range(sampling.max_new_tokens):
            try:
                token = sampler.choose(self._next_logits(pending, prefill.cache), generated)
            except (RuntimeError, ValueError, IndexError) as exc:
                raise ModelError(f"the model failed while it wrote the line: {exc}") from exc
            if token in self.stop_ids:
                return True
            generated.append(token)
            pending = [token]
            text = stream.push(token)
            if text is not None:
                yield text
                if stops_line(text):
                    return True
        return False

    def _next_logits(self, ids: Sequence[int], cache: Any) -> torch.Tensor:
        """Feed `ids` and return the logits after the last of them, shape (V,)."""
        ids_1T = torch.tensor([list(ids)], device=self.device)
        hidden_1TH = self._forward(ids_1T, cache, FINAL_NORM)
        logits: torch.Tensor = self.model.lm_head(hidden_1TH[:, -1])
        return logits[0].float().cpu()

    def _forward(self, ids_1T: torch.Tensor, cache: Any, layer: int) -> torch.Tensor:
        """Run the decoder over (1, T) ids, extending `cache`; return `layer`'s output, (1, T, H)."""
        decoder = self.model.model
        if layer == FINAL_NORM:
            hidden: torch.Tensor = run_decoder(decoder, ids_1T, cache).last_hidden_state
            return hidden
        kept: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        # A hook keeps one layer; asking for all hidden states would hold thirty of them.
        handle = decoder.layers[layer - 1].register_forward_hook(keep)
        try:
            run_decoder(decoder, ids_1T, cache)
        finally:
            handle.remove()
        return kept[0]


def run_decoder(decoder: Any, ids_BT: torch.Tensor, cache: Any) -> Any:
    """Feed ids to a decoder, extending `cache`; return its outputs.

    transformers calls the cache `past_key_values` up to 5.23 and `cache` from 5.24 on.
    """
    return decoder(input_ids=ids_BT, use_cache=True, **{_cache_name(decoder.__class__): cache})


@functools.cache
def _cache_name(decoder: type) -> str:
    named = inspect.signature(decoder.forward).parameters  # type: ignore[attr-defined]
    return "cache" if "cache" in named else "past_key_values"


def check_fits(bundle: Bundle, model: Any, *, base_id: str, base_fingerprint: str) -> None:
    """Raise `NotReady` unless `bundle` was made for exactly this base."""
    info, config = bundle.info, model.config
    remedy = f"train one with: python -m training fit --base {base_id}, and set BUNDLE to it"
    if info.base_fingerprint != base_fingerprint:
        raise NotReady(
            f"the bundle {info.name!r} was made for another base ({info.base_id}, not {base_id} "
            f"as it is here); {remedy}"
        )
    if info.spec.hidden_size != config.hidden_size:
        raise NotReady(
            f"the bundle's heads are {info.spec.hidden_size} wide, the base {config.hidden_size}; "
            f"{remedy}"
        )
    if info.spec.layer > config.num_hidden_layers:
        raise NotReady(
            f"the bundle reads layer {info.spec.layer}, the base has {config.num_hidden_layers}; "
            f"{remedy}"
        )
    if set(info.markers) != set(MARKERS):
        raise NotReady(f"the bundle's markers must be {', '.join(MARKERS)}; {remedy}")
    room = model.get_input_embeddings().weight.shape[0] + len(MARKERS)
    if max(info.markers.values()) >= room:
        raise NotReady(
            f"the bundle's markers lie beyond id {room - 1}, the last that this base can grow to; "
            f"{remedy}"
        )


@torch.no_grad()
def install_marker_rows(model: Any, markers: Mapping[str, int], rows_MH: torch.Tensor) -> None:
    """Write the markers' embedding rows, shape (M, H); the embedding grows where they need it."""
    embedding = model.get_input_embeddings()
    needed = max(markers.values()) + 1
    if needed > embedding.weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
        embedding = model.get_input_embeddings()
    weight = embedding.weight
    for row_H, token in zip(rows_MH, markers.values(), strict=True):
        weight[token] = row_H.to(weight.device, weight.dtype)


def _with_adapter(model: Any, bundle: Bundle) -> Any:
    """Return the model with the bundle's adapter: merged, or (in 4-bit) beside the frozen weights."""
    if bundle.adapter is None:
        return model
    from peft import PeftModel, get_peft_model_state_dict  # slow, and not every bundle needs it

    try:
        held = load_file(bundle.adapter / "adapter_model.safetensors")
        with warnings.catch_warnings():
            # To PEFT a missing tensor is worth a warning; here it is an error, below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            # PEFT asks the library by a name that is to go; that is between the two.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            adapted = PeftModel.from_pretrained(model, str(bundle.adapter))
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as exc:
        raise NotReady(f"the bundle's adapter does not fit the base: {exc}") from exc
    astray = {name for name in set(held) ^ set(wanted) if "lora_" in name}
    if astray:
        raise NotReady(
            f"the bundle's adapter does not fit the base: {len(astray)} of its tensors are missing "
            f"or have no place, {min(astray)!r} among them; publish the bundle again, whole"
        )
    if getattr(model, "is_loaded_in_4bit", False):
        # Merging into 4-bit weights would round the adapter away.
        beside: Any = adapted.base_model.model
        return beside.eval()
    merged: Any = adapted.merge_and_unload()
    return merged.eval()


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    specials = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False))
    candidates = [*stops, tokenizer.eos_token_id, specials.get("<|im_end|>")]
    return frozenset(token for token in candidates if token is not None)


def default_marker_rows(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return rows for markers that were never trained, shape (M, H): the line break's embedding.

    A line break is what separates parts of a text for any base, so it disturbs an untuned one least.
    """
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    row_H = model.get_input_embeddings().weight[newline[-1]].detach().float().cpu()
    return row_H.repeat(len(MARKERS), 1)
