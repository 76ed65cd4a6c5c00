"""A run of scenes as a table and as JSON, and what is different from the last run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.scenes.runner import Run

Json = dict[str, Any]


def as_json(run: Run) -> Json:
    """Return a run as plain values; a scene's failures by its key."""
    return {"passed": run.passed, "scenes": {one.key: list(one.failures) for one in run.outcomes}}


def table(run: Run) -> str:
    """Return the table for people: a line a scene, below it why it failed."""
    lines = []
    for one in run.outcomes:
        lines.append(f"{'pass' if one.passed else 'FAIL'}  {one.key}")
        lines += [f"      {failure}" for failure in one.failures]
    failed = sum(not one.passed for one in run.outcomes)
    lines.append(f"{len(run.outcomes) - failed} passed, {failed} failed")
    return "\n".join(lines)


def difference(run: Run, last: Mapping[str, Any]) -> list[str]:
    """Return what is different from an earlier run as `as_json` gave it, a line each."""
    before = last.get("scenes", {})
    now = {one.key: one for one in run.outcomes}
    lines = []
    for key, one in now.items():
        if key not in before:
            lines.append(f"new: {key}")
        elif one.passed and before[key]:
            lines.append(f"passes again: {key}")
        elif not one.passed and not before[key]:
            lines.append(f"fails now: {key}")
    lines += [f"gone: {key}" for key in before if key not in now]
    return lines


def read_last(path: Path) -> Json:
    """Return the last run, or an empty one where there is none that can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("scenes"), dict) else {}


def keep(run: Run, path: Path) -> None:
    """Write a run for the next one to be held against, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(json.dumps(as_json(run), ensure_ascii=False, indent=1), encoding="utf-8")
    fresh.replace(path)
