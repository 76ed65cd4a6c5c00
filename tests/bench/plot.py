"""Turns a second, latency and memory over players as a picture. Needs matplotlib, imported late."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LOOKS = {
    "ours": ("ours", "#1f4e79", "o"),
    "original": ("original", "#8a8a8a", "s"),
    "llama_cpp": ("llama.cpp", "#c0562b", "^"),
}


def have_matplotlib() -> bool:
    """Tell whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the players' figures of a result into `path`; its ending says the format."""
    from matplotlib.figure import Figure  # not pyplot: no window, no state that stays

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = ("turns a second", "a turn, ms (p50; bar to p95)", "peak memory, MB")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="players", xscale="log", yscale="log")
    for contestant, (label, color, marker) in _LOOKS.items():
        seen = {
            int(players): cells[contestant]
            for players, cells in result["players"].items()
            if "turn_ms" in cells.get(contestant, {})
        }
        if not seen:
            continue
        look: dict[str, Any] = {"color": color, "marker": marker, "label": label}
        counts, found = list(seen), list(seen.values())
        axes[0].plot(counts, [one["turns_per_s"] for one in found], **look)
        middle = [one["turn_ms"]["p50"] for one in found]
        above = [one["turn_ms"]["p95"] - one["turn_ms"]["p50"] for one in found]
        axes[1].errorbar(counts, middle, yerr=[[0.0] * len(above), above], capsize=3, **look)
        axes[2].plot(counts, [one["peak_mb"] for one in found], **look)
        for axis in axes:
            axis.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    for axis in axes:
        axis.margins(0.15)  # also gives a single point some room
    figure.savefig(path, dpi=120)
