"""Checking that a folder holds a model that can be used, and telling its weights from others.

Reads headers, small files and the ends of large ones; never runs or unpickles anything.
Knows nothing of where a folder came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import WeightsError

MANIFEST = "persona_base.json"
SUPPORTED = ("llama", "qwen2")
# What a base writes where its folder has no manifest to say so: Qwen2.5's report names both.
LANGUAGES: Mapping[str, tuple[str, ...]] = {"llama": ("en",), "qwen2": ("en", "ko")}

_EDGE_BYTES = 64 * 1024
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class BaseFiles:
    """A base model on the disk, ready for `from_pretrained(path)`.

    `fingerprint` tells two sets of weights apart; `languages` are those the model can write.
    """

    path: Path
    id: str
    fingerprint: str
    languages: tuple[str, ...]
    embedded: bool


def describe_folder(folder: Path, hub_id: str | None = None) -> BaseFiles:
    """Check that `folder` holds a base model that can be used, and say which one it is.

    Raises:
        WeightsError: a file is missing or cut short, weights are pickled, or the architecture is
            not supported.
    """
    config = _read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in SUPPORTED:
        raise WeightsError(
            f"{folder} holds a model of type {kind!r}; supported are {', '.join(SUPPORTED)} "
            "(Llama, SmolLM2, Qwen2 and Qwen2.5, among others)"
        )
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(f"{folder} holds no tokenizer.json; save the model's fast tokenizer")
    files = weight_files(folder)
    headers = {file: read_header(file) for file in files}
    manifest = _manifest(folder)
    if manifest:
        name, fingerprint, languages = manifest
        return BaseFiles(folder, name, fingerprint, languages, embedded=False)
    name = hub_id or folder.resolve().name
    fingerprint = _fingerprint(folder, config, headers)
    return BaseFiles(folder, name, fingerprint, LANGUAGES[kind], embedded=False)


def _manifest(folder: Path) -> tuple[str, str, tuple[str, ...]] | None:
    """Return id, fingerprint and languages from the folder's manifest, if it has one."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    data = _read_json(path)
    try:
        name, fingerprint, languages = data["id"], data["fingerprint"], data["languages"]
    except KeyError as exc:
        raise WeightsError(f"{path} lacks {exc}; delete the file or complete it") from exc
    strings = [name, fingerprint, *languages] if isinstance(languages, list) else [None]
    if len(strings) < 3 or not all(isinstance(value, str) and value for value in strings):
        raise WeightsError(f"{path}: id and fingerprint are strings, languages a list of them")
    return name, fingerprint, tuple(languages)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of `folder`, none missing of those that its index names.

    Raises:
        WeightsError: there are none, some are missing, or all are pickled.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise WeightsError(f"{index} holds no weight_map; fetch the model again")
        missing = sorted(set(map(str, named.values())) - {file.name for file in files})
        if missing:
            raise WeightsError(f"{folder} lacks {missing[0]}; fetch the model again")
    if not files and any(folder.glob("*.bin")):
        raise WeightsError(
            f"{folder} holds only pickled weights (*.bin), which can run code when they are read; "
            "use a model with *.safetensors"
        )
    if not files:
        raise WeightsError(f"{folder} holds no weights (*.safetensors)")
    return files


def read_header(file: Path) -> bytes:
    """Return the header of a safetensors file, having checked that its data is all there.

    Raises:
        WeightsError: it is no such file, or cut short.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("header cut short")
            header = stream.read(length)
        tensors = json.loads(header)
        end = max(
            (tensor["data_offsets"][1] for key, tensor in tensors.items() if key != "__metadata__"),
            default=0,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise WeightsError(f"{file} is not a readable safetensors file: {exc}") from exc
    if size != 8 + length + end:
        raise WeightsError(f"{file} is cut short or damaged; fetch it again")
    return header


def _fingerprint(folder: Path, config: dict[str, Any], headers: Mapping[Path, bytes]) -> str:
    """Return a SHA-256 that changes with the architecture, the tokenizer or the weights.

    Of each weight file it reads the header and both ends of the data: hashing the 6 GB of a large
    model in full would cost every start many seconds, and retraining changes all of a file.
    """
    digest = hashlib.sha256()
    rope = config.get("rope_parameters")
    theta = config.get("rope_theta", rope.get("rope_theta") if isinstance(rope, dict) else None)
    fields = {key: config.get(key) for key in _ARCHITECTURE} | {"rope_theta": theta}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    digest.update((folder / "tokenizer.json").read_bytes())
    for file, header in sorted(headers.items()):
        digest.update(header)
        with file.open("rb") as stream:
            stream.seek(8 + len(header))
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(8 + len(header), file.stat().st_size - _EDGE_BYTES))
            digest.update(stream.read(_EDGE_BYTES))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise WeightsError(f"{path.parent} holds no {path.name}, so it is no model folder") from exc
    except (OSError, ValueError) as exc:
        raise WeightsError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(data, dict):
        raise WeightsError(f"{path} must hold one JSON object")
    return data
