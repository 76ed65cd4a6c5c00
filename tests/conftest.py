"""What all tests share: thread limits, the shipped base model, and tiny random models.

Nothing heavy is imported before a test asks for it, so tests of plain values start at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from engine.model import LanguageModel
    from engine.weights import BaseFiles

# Read when torch, tokenizers and the hub client are first imported. One thread: tiny matrices are
# slower on many, and a process with a thread pool cannot be forked safely.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Machines that run the tests differ in speed, so no example is held against the clock.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Keep torch to one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_base() -> BaseFiles:
    """Return the embedded base, from MODEL_CACHE or fetched; skip where there is no index."""
    from engine.errors import NoIndex
    from engine.weights import resolve_base

    cache = Path(os.environ.get("MODEL_CACHE") or "~/.cache/persona-chat-engine").expanduser()
    try:
        return resolve_base(None, cache)
    except NoIndex as exc:
        pytest.skip(f"the embedded base is not here and cannot be fetched: {exc}")


@pytest.fixture(scope="session")
def tiny(one_thread: None) -> Callable[..., LanguageModel]:
    """Return `tiny_language_model`, which gives the same model for the same arguments.

    For tests that leave the model as it is.
    """
    from tests.fakes import tiny_language_model

    made: dict[str, Any] = {}

    def make(kind: str = "qwen2", **options: Any) -> LanguageModel:
        key = repr((kind, sorted(options.items())))
        if key not in made:
            made[key] = tiny_language_model(kind, **options)
        return made[key]

    return make
