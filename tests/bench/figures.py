"""From times to figures: percentiles, ratios between contestants, memory a further player.

Plain values in and out. A figure that was not measured is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.bench.drive import Played, Times

Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Players (as text) → contestant → its figures."""

TARGETS = {
    "turn_original_1": 5.0,
    "turn_llamacpp_1": 3.0,
    "tps_original_16": 12.0,
    "tps_llamacpp_16": 8.0,
    "state_llamacpp_1": 12.0,
}
"""Ratios to reach on a CPU; above 1 we are faster."""

MOST_MEMORY = 1.3
"""Bytes that a further player may cost, as a multiple of its cache's."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of `values` lie, between two if need be."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def played_figures(played: Played, peak: int, held: int) -> dict[str, Any]:
    """Return the figures of one contestant with so many players; times in milliseconds.

    Args:
        played: what was seen.
        peak, held: bytes, at most and before the first turn.
    """
    found: dict[str, Any] = {}
    for name, pick in _WAITS.items():
        seen = [1e3 * pick(one) for one in played.warm]
        found[name] = {"p50": percentile(seen, 0.5), "p95": percentile(seen, 0.95)}
    found["turns_per_s"] = len(played.warm) / played.seconds
    found["turns"] = len(played.warm)
    found["seconds"] = played.seconds
    found["cut_short"] = played.cut_short
    found["peak_mb"] = peak / 2**20
    found["held_mb"] = held / 2**20
    found["cold"] = {
        name: percentile([1e3 * pick(one) for one in played.cold], 0.5)
        for name, pick in _WAITS.items()
        if played.cold
    }
    return found


_WAITS: dict[str, Callable[[Times], float]] = {
    "state_ms": lambda one: one.state,
    "first_word_ms": lambda one: one.first,
    "turn_ms": lambda one: one.whole,
}


def figure(cells: Cells, players: int, contestant: str, *path: str) -> float | None:
    """Look a figure up; None where it was not measured or the contestant failed."""
    value: Any = cells.get(str(players), {}).get(contestant, {})
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def ratios(cells: Cells) -> dict[str, float | None]:
    """Return how much faster we are than the others."""

    def slower(players: int, rival: str, *path: str) -> float | None:
        return _over(figure(cells, players, rival, *path), figure(cells, players, "ours", *path))

    def fewer(players: int, rival: str) -> float | None:
        ours = figure(cells, players, "ours", "turns_per_s")
        return _over(ours, figure(cells, players, rival, "turns_per_s"))

    return {
        "turn_original_1": slower(1, "original", "turn_ms", "p50"),
        "turn_llamacpp_1": slower(1, "llama_cpp", "turn_ms", "p50"),
        "tps_original_16": fewer(16, "original"),
        "tps_llamacpp_16": fewer(16, "llama_cpp"),
        "state_llamacpp_1": slower(1, "llama_cpp", "state_ms", "p50"),
    }


def memory(cells: Cells, tokens: int) -> dict[str, float | None]:
    """Return what each further player costs, in MB: the peak at 16 less that at 4, over 12.

    Args:
        cells: the figures.
        tokens: of a player's cache, prompt and reply.
    """
    found: dict[str, float | None] = {}
    for contestant in ("ours", "original", "llama_cpp"):
        many, few = (figure(cells, count, contestant, "peak_mb") for count in (16, 4))
        found[f"{contestant}_per_player_mb"] = (
            (many - few) / 12 if many is not None and few is not None else None
        )
    a_token = figure(cells, 16, "ours", "cache_bytes_per_token")
    found["cache_per_player_mb"] = tokens * a_token / 2**20 if a_token else None
    found["ours_over_cache"] = _over(found["ours_per_player_mb"], found["cache_per_player_mb"])
    return found


def reached(
    found: Mapping[str, float | None], cells: Cells, used: Mapping[str, float | None]
) -> dict[str, bool | None]:
    """Tell which aims are reached; None where it was not measured.

    Args:
        found: the ratios.
        cells: the figures.
        used: the memory.
    """
    aims: dict[str, bool | None] = {}
    for name, target in TARGETS.items():
        ratio = found[name]
        aims[name] = None if ratio is None else ratio >= target
    many, fewer = (figure(cells, count, "ours", "turns_per_s") for count in (64, 16))
    aims["tps_64_not_below_16"] = None if many is None or fewer is None else many >= fewer
    factor = used["ours_over_cache"]
    aims["memory_per_player"] = None if factor is None else factor <= MOST_MEMORY
    return aims


def _over(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper is not None and lower else None
