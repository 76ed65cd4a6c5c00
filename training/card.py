"""The model card of a bundle, written from its own manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.bundle import BundleInfo
from heads.spec import FINAL_NORM

_NAMES = {
    "frozen": "frozen base + logistic regression",
    "tfidf_prompt": "TF-IDF, whole prompt",
    "tfidf_utterance": "TF-IDF, utterance",
    "base_json": "the base, asked for JSON",
    "majority": "majority and mean",
    "always_propose": "conditions alone",
}
_PARTS = {
    "test": "turns kept apart from training, of NPCs that it knows",
    "unseen": "turns of NPCs that it has never met",
}


def render_card(info: BundleInfo, *, adapter: bool = False) -> str:
    """Return the card as Markdown; `adapter` says whether the bundle trains the base along."""
    figures, training = info.metrics, info.training
    layer = (
        "the final norm" if info.spec.layer == FINAL_NORM else f"decoder layer {info.spec.layer}"
    )
    how = (
        "A LoRA adapter and the markers' rows were trained together with the heads; the line is "
        "learnt to follow the decision."
        if adapter
        else "The base is frozen; there is no adapter."
    )
    rows = training.get("rows", {})
    head = f"""---
license: mit
language: [en, ko]
base_model: {info.base_id}
tags: [dialogue, game, npc]
---
# {info.name}

State heads for the Persona Chat Engine: they read trust, relationship and {len(info.spec.flags)}
game events from the hidden state at `<STATE>` ({layer} of {info.base_id}). {how}
Lines are written in: {", ".join(info.languages)}.

Made by `{training.get("command")}` with seed {training.get("seed")} from
{sum(rows.values())} hand-written turns ({_parts(rows)}). Thresholds: {_thresholds(info)}.

Flags are judged as a game sees them: one fires where it is proposed and the NPC's authored conditions
hold. "Conditions alone" proposes everything, so the heads' worth is the distance to it.
"""
    tables = "".join(
        f"\n## {part.capitalize()}: {about}\n\n{figures_table(figures, part)}"
        for part, about in _PARTS.items()
        if figures.get(part, {}).get("rows")
    )
    return head + tables + _flags(figures) + _languages(figures) + _LIMITS


_LIMITS = """
## Limits

A small base: it ranks intent among what the conditions permit, and reads Korean poorly. Numbers come
from one division of data by the same writers.
"""


def _parts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in rows.items())


def _thresholds(info: BundleInfo) -> str:
    return "one a flag" if info.threshold_source == "constant" else "from the threshold head"


def figures_table(figures: Mapping[str, Any], part: str) -> str:
    """Return the figures of the heads and of what they are held against, as a Markdown table."""
    lines = [
        "| | macro-F1 | micro-F1 | AUPRC | ECE | pairs both right | delta MAE | delta Spearman | "
        "right sign | false grants |",
        "|---|---|---|---|---|---|---|---|---|---|",
        _line("**these heads**", figures[part]),
    ]
    for key, name in _NAMES.items():
        one = figures.get("baselines", {}).get(key, {}).get(part)
        if one:
            lines.append(_line(name, one))
    return "\n".join(lines) + "\n"


def _line(name: str, one: Mapping[str, Any]) -> str:
    return (
        f"| {name} | {one['flag_macro_f1']:.2f} | {one['flag_micro_f1']:.2f} | "
        f"{one['flag_macro_auprc']:.2f} | {one['ece']:.2f} | {one['pairs_both_right']:.2f} | "
        f"{one['delta_mae']:.3f} | {one['delta_spearman']:.2f} | "
        f"{one['delta_sign_accuracy']:.2f} | {one['false_grants']} of {one['attacks']} |"
    )


def _flags(figures: Mapping[str, Any]) -> str:
    rows = figures.get("test", {}).get("per_flag", {})
    lines = ["", "## By flag and by language (test)", "", "| flag | positives | F1 | AUPRC |"]
    lines.append("|---|---|---|---|")
    for flag, one in rows.items():
        auprc = "–" if one["auprc"] is None else f"{one['auprc']:.2f}"
        lines.append(f"| {flag} | {one['positives']} | {one['f1']:.2f} | {auprc} |")
    return "\n".join(lines) + "\n"


def _languages(figures: Mapping[str, Any]) -> str:
    lines = ["", "| language | rows | macro-F1 | delta Spearman |", "|---|---|---|---|"]
    for language, one in figures.get("test", {}).get("by_language", {}).items():
        lines.append(
            f"| {language} | {one['rows']} | {one['flag_macro_f1']:.2f} | "
            f"{one['delta_spearman']:.2f} |"
        )
    return "\n".join(lines) + "\n"
