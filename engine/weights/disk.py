"""The disk of the model cache: how much lies there, checksums, and the error for a full one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path

from engine.errors import NoSpace

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
NEEDED_BYTES = 1_000_000_000  # wheel, pip's copy of it, GGUF and safetensors, with some room


def says_full(complaint: str) -> bool:
    """Tell whether a child complains of a full disk."""
    return bool(re.search(r"No space left|os error 28|Disk quota exceeded", complaint))


def no_space(cache: Path) -> NoSpace:
    """Return the error for a disk without room for the base model."""
    return NoSpace(
        f"the disk of {cache} is too full for the base model: free about "
        f"{NEEDED_BYTES / 1e9:.0f} GB, or set MODEL_CACHE to a folder on another disk"
    )


def folder_size(folder: Path) -> int:
    """Return the bytes in `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118
            except OSError:
                continue
    return total


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
