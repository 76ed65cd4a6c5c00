"""The bench's figures as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.figures import MOST_MEMORY, TARGETS

_WAITS = ("state", "p95", "first word", "p95", "turn", "p95")
_HEAD = ("players", "", *_WAITS, "turns/s", "peak MB", "turns")
_NAMES = {"ours": "ours", "original": "original", "llama_cpp": "llama.cpp"}


def render(result: Mapping[str, Any]) -> str:
    """Return the table of a result; times in milliseconds."""
    rows: list[Sequence[str]] = [_HEAD]
    remarks: list[str] = []
    for players, cells in result["players"].items():
        for contestant, found in cells.items():
            name = _NAMES[contestant]
            if "turn_ms" in found:
                rows.append((players, name, *_cells(found)))
                if found["cut_short"]:
                    remarks.append(
                        f"{name}, {players} players: stopped after {found['turns']} turns; those "
                        "still queueing are not counted, so its latencies are flattered"
                    )
            else:
                remarks.append(f"{name}, {players} players: {found['failed']}")
    parts = [_columns(rows), "first turns, with nothing kept (ms, p50):\n" + _cold(result)]
    parts += [_ratios(result), _limit(result["limit"]), _memory(result["memory"])]
    remarks += result["remarks"]
    if remarks:
        parts.append("\n".join(remarks))
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(found: Mapping[str, Any]) -> list[str]:
    shown = [
        f"{found[wait][share]:.0f}"
        for wait in ("state_ms", "first_word_ms", "turn_ms")
        for share in ("p50", "p95")
    ]
    return [*shown, f"{found['turns_per_s']:.2f}", f"{found['peak_mb']:.0f}", str(found["turns"])]


def _cold(result: Mapping[str, Any]) -> str:
    rows = []
    for players, cells in result["players"].items():
        for contestant, found in cells.items():
            cold = found.get("cold")
            if cold:
                times = [f"{key[:-3].replace('_', ' ')} {cold[key]:.0f}" for key in cold]
                rows.append((players, _NAMES[contestant], *times))
    return _columns(rows)


def _ratios(result: Mapping[str, Any]) -> str:
    rows = [("ratio (above 1: we are faster)", "", "to reach", "")]
    for name, ratio in result["ratios"].items():
        rows.append((name, _number(ratio), f"{TARGETS[name]:g}", _mark(result["reached"][name])))
    name = "tps_64_not_below_16"
    rows.append((name, "", "", _mark(result["reached"][name])))
    return _columns(rows)


def _limit(limit: Mapping[str, Any]) -> str:
    if "failed" in limit:
        return f"limit: {limit['failed']}"
    rows = [("share of the machine's limit", "")]
    rows += [(name, _number(value)) for name, value in limit.items() if "fraction" in name]
    rows += [
        (name, value if isinstance(value, str) else _number(value))
        for name, value in limit.items()
        if "fraction" not in name
    ]
    return _columns(rows)


def _memory(memory: Mapping[str, Any]) -> str:
    rows = [(name, _number(value)) for name, value in memory.items()]
    return _columns([("memory a further player", f"at most {MOST_MEMORY:g} caches"), *rows])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mark(reached: bool | None) -> str:
    return "not measured" if reached is None else "reached" if reached else "missed"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)
