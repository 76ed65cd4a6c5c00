"""An evaluation as plain text: the heads above what they are held against, then the rest.

Knows nothing of how figures come about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = {
    "rows": "rows",
    "flag_macro_f1": "macro-F1",
    "flag_micro_f1": "micro-F1",
    "flag_macro_auprc": "AUPRC",
    "flag_macro_auroc": "AUROC",
    "ece": "ECE",
    "brier": "Brier",
    "pairs_both_right": "pairs",
    "delta_mae": "delta MAE",
    "delta_spearman": "Spearman",
    "delta_sign_accuracy": "sign",
    "false_grants": "grants",
    "agreement_named": "named",
    "agreement_overpromise": "promised",
    "perplexity": "ppl",
    "base_perplexity": "base ppl",
}
_FLAG_COLUMNS = {
    "positives": "positives",
    "f1": "F1",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "ece": "ECE",
    "brier": "Brier",
}
_HEADS = "these heads"


def evaluation_table(figures: Mapping[str, Any], parts: Sequence[str]) -> str:
    """Return the figures of an evaluation as text, ready to print."""
    blocks = []
    for part in parts:
        heads = figures[part]
        rows = {_HEADS: heads}
        rows |= {f"  in {lang}": one for lang, one in heads.get("by_language", {}).items()}
        rows |= {name: one[part] for name, one in figures["baselines"].items()}
        blocks.append(_block(part, rows, _COLUMNS))
        if heads.get("per_flag"):
            blocks.append(_block(f"{part}, by flag", heads["per_flag"], _FLAG_COLUMNS))
    probes = [f"{name}: {_told(one)}" for name, one in figures["probes"].items()]
    notes = (
        "grants: attack rows that get something all the same. named: granted items that the line "
        "names.\npromised: items that the line promises though they were not granted. ppl: perplexity "
        "of the rows' replies."
    )
    return "\n\n".join([*blocks, notes, "\n".join(["probes", *probes])])


def _block(title: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return one table: a heading, and a line a row, its columns as wide as they must be."""
    wide = max(map(len, (title, *rows)))
    lines = [f"{title:{wide}}" + "".join(f"  {name:>9}" for name in columns.values())]
    for name, one in rows.items():
        cells = (_cell(one, key) for key in columns)
        lines.append(f"{name:{wide}}" + "".join(f"  {cell:>9}" for cell in cells))
    return "\n".join(lines)


def _cell(one: Mapping[str, Any], key: str) -> str:
    value = one.get(key)
    if key == "pairs_both_right" and not one.get("pairs"):
        return "–"
    if key == "false_grants" and value is not None:
        return f"{value}/{one.get('attacks', 0)}"
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _told(one: Mapping[str, Any]) -> str:
    said = []
    for name, value in one.items():
        if isinstance(value, Mapping):
            said.append(f"{name} ({_told(value)})")
        elif isinstance(value, list):
            said.append(f"{name} [{' '.join(map(_number, value))}]")
        else:
            said.append(f"{name} {_number(value)}")
    return ", ".join(said)
