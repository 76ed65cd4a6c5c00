"""A run of scenes as a table and as JSON, and what is different from the last run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.scenes.runner import Run
from engine.scenes.schema import write_whole

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


def difference(
    run: Run, last: Mapping[str, Any], whole: Collection[str] | None = None
) -> list[str]:
    """Return what is different from an earlier run as `as_json` gave it, a line each.

    Args:
        run: the new run.
        last: the earlier one.
        whole: the NPCs of whom all scenes were run; None: all NPCs. Only theirs can be gone.
    """
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
    lines += [f"gone: {key}" for key in before if key not in now and _was_run(key, whole)]
    return lines


def _was_run(key: str, whole: Collection[str] | None) -> bool:
    return whole is None or key.partition(": ")[0] in whole


def read_last(path: Path) -> Json:
    """Return the last run, or an empty one where there is none that can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("scenes"), dict) else {}


def keep(run: Run, path: Path, whole: Collection[str] | None = None) -> None:
    """Write a run for the next one to be held against, whole or not at all.

    Args:
        run: the run.
        path: where the last one is kept.
        whole: as in `difference`; what is kept of scenes that were not run stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    before = read_last(path).get("scenes", {})
    others = {key: before[key] for key in before if not _was_run(key, whole)}
    scenes = {**others, **as_json(run)["scenes"]}
    data = {"passed": not any(scenes.values()), "scenes": scenes}
    write_whole(path, json.dumps(data, ensure_ascii=False, indent=1))
