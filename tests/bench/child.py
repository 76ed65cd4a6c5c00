"""Running a cell in a process of its own, so that its peak of memory and its crashes are its own.

python -m tests.bench.child CELL.json WORKLOAD.json OUT.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine.memory import settle_allocator
from tests.bench.cells import Cell, run_cell
from tests.bench.workload import Workload

_ROOT = Path(__file__).resolve().parents[2]


def run_in_child(cell: Cell, workload: Workload) -> dict[str, Any]:
    """Run a cell in a child process; return its figures, or {"failed": why}."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asked, prompts, out = (Path(folder) / name for name in ("cell", "workload", "out"))
        asked.write_text(json.dumps(cell.to_json()))
        prompts.write_text(json.dumps(workload.to_json()))
        command = [sys.executable, "-m", "tests.bench.child", str(asked), str(prompts), str(out)]
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0 and out.is_file():
            found: dict[str, Any] = json.loads(out.read_text())
            return found
    said = [line for line in done.stderr.splitlines() if line.strip()]
    reason = said[-1] if said else "it gave no reason"
    return {"failed": f"exit status {done.returncode}: {reason}"}


def main(arguments: list[str]) -> int:
    """Run the cell that the files describe."""
    settle_allocator()  # as the app does
    asked, prompts, out = map(Path, arguments)
    cell = Cell.from_json(json.loads(asked.read_text()))
    workload = Workload.from_json(json.loads(prompts.read_text()))
    out.write_text(json.dumps(run_cell(cell, workload)))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a server's threads need not be waited for
