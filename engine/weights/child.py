"""Running a child process while telling how far it has come, and reading its complaints.

Knows nothing of what the child does.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_POLL_SECONDS = 0.25


def run_child(
    command: Sequence[str], env: Mapping[str, str], log: Path, tick: Callable[[], None]
) -> tuple[int, str]:
    """Run a child, calling `tick` while it works; return its exit status and its stderr."""
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            while True:
                tick()
                try:
                    code = child.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:  # an interrupt must not leave the child writing into a folder that goes away
            if child.poll() is None:
                child.kill()
                child.wait()
    return code, log.read_text(encoding="utf-8", errors="replace")


def last_line(complaint: str) -> str:
    """Return the last line of a child's complaint, without the credentials of any address."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return re.sub(r"://[^/@\s]+@", "://", lines[-1])[:300] if lines else "it gave no reason"
