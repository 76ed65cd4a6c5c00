"""From settings to a model that serves: weights, bundle, and the check that they fit each other.

Knows nothing of NPCs or turns.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from engine.errors import NotReady
from engine.locks import LOADING
from engine.model import LanguageModel, choose_device, choose_precision, load_base
from engine.settings import ROOT, Settings
from engine.weights import resolve_base
from heads.bundle import Bundle, BundleError, load_bundle

logger = logging.getLogger(__name__)

PRETRAINED = ROOT / "heads" / "pretrained"
_COMMIT = r"[0-9a-f]{40}"
Progress = Callable[[float, str], None]


def load_model(settings: Settings, progress: Progress) -> LanguageModel:
    """Fetch what is missing, load base and bundle, and join them.

    Args:
        settings: which base, which bundle, which device.
        progress: told a fraction from 0 to 1 and what is being done.

    Raises:
        NotReady: no bundle for this base, a damaged one, or a base that cannot be loaded.
        WeightsError: the base's files cannot be had.
    """
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    if settings.base_model and not settings.bundle:
        raise NotReady(
            "BASE_MODEL is set without a bundle made for it: train one with 'python -m training fit "
            f"--base {settings.base_model} --out my_bundle' and set BUNDLE=my_bundle"
        )
    bundle = find_bundle(settings.bundle)
    base = resolve_base(
        settings.base_model or None,
        settings.model_cache,
        lambda fraction, message: progress(0.8 * fraction, message),
    )
    progress(0.8, "loading the model")
    device = choose_device(settings.device)
    precision = choose_precision(device, settings.quantize, embedded=base.embedded)
    with LOADING:  # the embedding grows and the adapter is merged by what a load swaps out
        model, tokenizer = load_base(base.path, device, precision)
        loaded = LanguageModel(
            model,
            tokenizer,
            bundle,
            base_id=base.id,
            base_fingerprint=base.fingerprint,
            precision=precision,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_text_tokens=settings.max_text_tokens,
        )
    logger.info("serving %s (%s, %s) with %s", base.id, device, precision, bundle.info.name)
    progress(1.0, "ready")
    return loaded


def bundle_stamp(where: str) -> str:
    """Return what changes when the bundle's files do: names, sizes and times of a folder's files.

    A branch of the hub is looked up anew: its files lie in a folder named after the commit.

    Raises:
        NotReady: the hub has no such bundle.
    """
    folder = _bundle_folder(where)
    if not folder.is_dir():
        return where
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return str([(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def find_bundle(where: str) -> Bundle:
    """Load the bundle at `where`: a folder, a hub id ("org/name", "org/name@revision"), or "".

    Raises:
        NotReady: it is not there or not sound; the reason stands in the message.
    """
    folder = _bundle_folder(where)
    try:
        bundle = load_bundle(folder)
    except BundleError as exc:
        raise NotReady(f"the bundle cannot be used: {exc}") from exc
    commit = folder.name if _names_hub(where) and re.fullmatch(_COMMIT, folder.name) else ""
    return replace(bundle, commit=commit)


def _names_hub(where: str) -> bool:
    """Tell whether `where` is a hub id; a folder of that name comes first."""
    return where.partition("@")[0].count("/") == 1 and not Path(where).expanduser().is_dir()


def _bundle_folder(where: str) -> Path:
    if not where:
        return PRETRAINED
    if not _names_hub(where):
        return Path(where).expanduser()
    from huggingface_hub import snapshot_download  # only where a hub is used

    name, _, revision = where.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["*.json", "*.safetensors", "README.md", "adapter/*"],
                ignore_patterns=["*.bin", "*.py", "*.pkl"],
            )
        )
    except (OSError, ValueError) as exc:
        raise NotReady(f"the bundle {where!r} cannot be fetched: {exc}", field="BUNDLE") from exc
