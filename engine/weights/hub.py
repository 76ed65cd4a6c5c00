"""Models of the hub: what counts as an id, downloading one, and the hub's errors in plain words.

Knows nothing of what a model's folder must hold.
"""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import NoIndex, NoSpace, WeightsError
from engine.weights.disk import FULL
from engine.weights.progress import Progress, watched_bar

_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_HUB_SKIPPED = ("onnx/*", "openvino/*", "original/*")


def is_folder(name: str) -> bool:
    """Tell whether `name` is a folder, which then comes before any model of the hub."""
    return Path(name).expanduser().is_dir()


def folder_or_hub(name: str, setting: str, progress: Progress | None) -> Path:
    """Return the folder that `name` is, or the hub's snapshot of it.

    Args:
        name: a folder, or a hub id (`org/name` or `org/name@revision`).
        setting: the setting that holds it, for error messages.
        progress: told how far a download has come.

    Raises:
        NoIndex: the hub cannot be reached.
        NoSpace: the disk is full.
        WeightsError: neither a folder nor an id, or the hub refuses.
    """
    if is_folder(name):
        return Path(name).expanduser().resolve()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        raise WeightsError(
            f"{setting} is {name!r}, which is neither a folder that exists nor a hub id "
            "(org/name, or org/name@revision)"
        )
    return _snapshot(name, setting, progress)


def _snapshot(name: str, setting: str, progress: Progress | None) -> Path:
    """Download a model of the hub into its usual cache; what is there already is not fetched."""
    from huggingface_hub import errors, snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_SKIPPED),
            tqdm_class=watched_bar(progress, f"Downloading {repo}") if progress else None,
        )
    except errors.GatedRepoError as exc:
        raise WeightsError(
            f"{setting}: {repo} asks for consent: accept its terms on the hub, then set HF_TOKEN"
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        raise WeightsError(
            f"{setting}: the hub has no model {repo!r}, or it is private: check the spelling, or "
            "set HF_TOKEN"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise WeightsError(f"{setting}: {repo} has no revision {revision!r}") from exc
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as exc:
        raise NoIndex(
            f"{setting}: the hub cannot be reached for {repo}: check the connection, or set "
            f"{setting} to a folder"
        ) from exc
    except Exception as exc:  # the hub's client lets errors of several HTTP libraries through
        if isinstance(exc, OSError) and exc.errno in FULL:
            raise NoSpace(f"the disk is full: free some space for {repo}") from exc
        raise WeightsError(f"{setting}: {repo} could not be downloaded: {exc}") from exc
    return Path(folder)
