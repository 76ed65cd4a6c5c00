"""How far figures hang on the draw: the same heads fitted several times.

`fit --seeds` deals the cases into train, valid and test anew, so its spread holds the luck of the
division as well as that of the fit; `train --draws` draws the training rows anew and leaves the others.
Knows nothing of models.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = {
    "flag_macro_f1": "macro-F1",
    "flag_macro_auprc": "AUPRC",
    "pairs_both_right": "pairs both right",
    "ece": "ECE",
    "delta_spearman": "delta Spearman",
    "delta_sign_accuracy": "right sign",
    "false_grants": "false grants",
}


def spread(figures: Sequence[Mapping[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Return mean, deviation, least and most of each figure of `part` over several fits."""
    found = {}
    for name in _SHOWN:
        values = [float(one[part][name]) for one in figures]
        found[name] = {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "least": min(values),
            "most": max(values),
        }
    return found


def spread_table(what: str, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return spreads by part as a Markdown table, a line a part.

    Args:
        what: was drawn how often; the table's first heading.
        found: part → `spread` of it.
    """
    lines = [f"| {what} | {' | '.join(_SHOWN.values())} |", "|---" * (len(_SHOWN) + 1) + "|"]
    for part, by_name in found.items():
        cells = [
            f"{one['mean']:.2f} ± {one['deviation']:.2f} ({one['least']:.2f} to {one['most']:.2f})"
            for one in by_name.values()
        ]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
