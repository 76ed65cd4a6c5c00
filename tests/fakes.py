"""Small stand-ins at the seams: random Llama and Qwen2 models, a bundle for them, an embedder.

They are real objects of the real classes, only tiny and untrained, so tests take milliseconds and no
network. Nothing of this is ever served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from engine.listen import Listener
from engine.model import LanguageModel
from engine.prompt import MARKERS, choose_marker_ids
from engine.schema import FLAGS
from engine.text import fold
from heads.bundle import BadFaith, Bundle, BundleInfo, Platt, save_bundle
from heads.modules import StateHeads
from heads.spec import FINAL_NORM, HeadSpec

HIDDEN = 32
BASE_ID = "tiny-random"
FINGERPRINT = "tiny-fingerprint"
KINDS = ("llama", "qwen2")


def tiny_tokenizer(*, chatml: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: any text is tokens, one a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if chatml else ["<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=specials[-1],
        bos_token=specials[-2],
        pad_token=specials[-1],
        extra_special_tokens=specials[:1] if chatml else [],
    )
    return tokenizer


def tiny_model(
    kind: str, *, spare_rows: int = 0, seed: int = 0, head_dim: int = 16
) -> tuple[Any, Any]:
    """Return a random model of `kind` and its tokenizer; `spare_rows` pads the embedding."""
    tokenizer = tiny_tokenizer(chatml=kind == "qwen2")
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer) + spare_rows,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=False))
    return model.eval(), tokenizer


def tiny_bundle(
    model: Any,
    tokenizer: Any,
    *,
    layer: int = FINAL_NORM,
    threshold: float = 0.5,
    shifts: dict[str, float] | None = None,
    languages: tuple[str, ...] = ("en",),
    adapter: Path | None = None,
    acts: tuple[str, ...] = (),
    bad_faith: BadFaith | None = None,
    listens: bool = False,
    hears_words: bool = False,
    seed: int = 1,
) -> Bundle:
    """Return a bundle of random heads that fits `model`.

    `shifts` moves a flag's logit, so that a test can make it fire (+30) or never fire (-30); with
    `listens` its heads read a sentence vector of `WordEmbedder` too, with `hears_words` its words as
    well.
    """
    torch.manual_seed(seed)
    listener = Listener(WordEmbedder()) if hears_words else WordEmbedder() if listens else None
    spec = HeadSpec(
        flags=FLAGS,
        hidden_size=model.config.hidden_size,
        layer=layer,
        meaning_size=listener.dim if listener else 0,
        acts=acts,
    )
    markers = choose_marker_ids(tokenizer, model.get_input_embeddings().weight.shape[0])
    shifts = shifts or {}
    return Bundle(
        info=BundleInfo(
            name="tiny",
            spec=spec,
            base_id=BASE_ID,
            base_fingerprint=FINGERPRINT,
            languages=languages,
            markers=markers,
            calibration={flag: Platt(1.0, shifts.get(flag, 0.0)) for flag in FLAGS},
            threshold_source="constant",
            thresholds=dict.fromkeys(FLAGS, threshold),
            embedder_id=listener.id if listener else "",
            bad_faith=bad_faith,
        ),
        heads=StateHeads(spec).eval(),
        marker_rows_MH=torch.randn(len(MARKERS), model.config.hidden_size) * 0.3,
        adapter=adapter,
        card="# tiny\n",
    )


def tiny_language_model(kind: str = "qwen2", **bundle_args: Any) -> LanguageModel:
    """Return a random language model with random heads, in float32."""
    model, tokenizer = tiny_model(kind)
    return LanguageModel(
        model,
        tokenizer,
        tiny_bundle(model, tokenizer, **bundle_args),
        base_id=BASE_ID,
        base_fingerprint=FINGERPRINT,
        max_prompt_tokens=4000,
        max_text_tokens=1000,
    )


def save_tiny_base(folder: Path, kind: str = "qwen2") -> tuple[Any, Any]:
    """Write a tiny base as a folder that `BASE_MODEL` can name; return model and tokenizer."""
    model, tokenizer = tiny_model(kind)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def save_tiny_bundle(folder: Path, **bundle_args: Any) -> Bundle:
    """Write a bundle for the tiny Qwen2 base."""
    model, tokenizer = tiny_model("qwen2")
    bundle = tiny_bundle(model, tokenizer, **bundle_args)
    save_bundle(bundle, folder)
    return bundle


class WordEmbedder:
    """Unit vectors from hashed words: equal words, near vectors. Deterministic and instant."""

    id = "hashed-words"
    dim = 256

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return one unit row per text, shape (n, 256)."""
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in fold(text).replace("?", "").replace(".", "").replace(",", "").split():
                digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
                row[int.from_bytes(digest, "big") % self.dim] += 1.0
            if not row.any():
                row[0] = 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
