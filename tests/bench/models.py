"""The embedded base with the shipped bundle: as the engine serves it, and in a named precision."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer

from engine.loader import find_bundle, load_model
from engine.model import LanguageModel, Precision, load_base
from engine.prompt import PromptEncoder
from engine.settings import Settings, load_settings
from engine.weights import BaseFiles, resolve_base


def bench_settings(threads: int) -> Settings:
    """Return the environment's settings for the embedded base on the CPU."""
    fixed = {"base_model": "", "bundle": "", "device": "cpu", "quantize": "none"}
    return load_settings().model_copy(update={**fixed, "cpu_threads": threads})


def embedded_files() -> BaseFiles:
    """Return the embedded base, fetched first where it is not here."""
    return resolve_base(None, load_settings().model_cache)


def load_served(threads: int) -> LanguageModel:
    """Load the model as the app does."""
    return load_model(bench_settings(threads), lambda _fraction, _message: None)


def load_in(precision: Precision, threads: int) -> LanguageModel:
    """Load the model in a precision."""
    torch.set_num_threads(threads)
    base = embedded_files()
    model, tokenizer = load_base(base.path, torch.device("cpu"), precision)
    return LanguageModel(
        model,
        tokenizer,
        find_bundle(""),
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        precision=precision,
    )


def load_tokenizer() -> Any:
    """Load the embedded base's tokenizer alone."""
    return AutoTokenizer.from_pretrained(embedded_files().path)


def prompt_encoder() -> PromptEncoder:
    """Return the prompt encoder of the embedded base and the shipped bundle, without the model."""
    settings = load_settings()
    return PromptEncoder(
        load_tokenizer(),
        find_bundle("").info.markers,
        max_tokens=settings.max_prompt_tokens,
        max_text_tokens=settings.max_text_tokens,
    )
