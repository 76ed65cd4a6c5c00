"""The model card of a bundle, written from its own manifest."""

from __future__ import annotations

from typing import Any

from heads.bundle import BundleInfo
from heads.spec import FINAL_NORM

_NAMES = {
    "heads": "**these heads**",
    "tfidf_prompt": "TF-IDF, whole prompt",
    "tfidf_utterance": "TF-IDF, utterance",
    "majority": "majority and mean",
    "always_propose": "always propose",
}


def render_card(info: BundleInfo) -> str:
    """Return the card as Markdown."""
    figures, training = info.metrics, info.training
    layer = (
        "the final norm" if info.spec.layer == FINAL_NORM else f"decoder layer {info.spec.layer}"
    )
    head = f"""---
license: mit
language: [en, ko]
base_model: {info.base_id}
tags: [dialogue, game, npc]
---
# {info.name}

State heads for the Persona Chat Engine: they read trust, relationship and {len(info.spec.flags)}
game events from the hidden state at `<STATE>` ({layer} of {info.base_id}). The base is frozen; there
is no adapter. Lines are written in: {", ".join(info.languages)}.

Made by `{training.get("command")}` with seed {training.get("seed")} from
{sum(training.get("rows", {}).values())} hand-written turns ({_parts(training.get("rows", {}))}).

## Test part

Turns that were neither fitted on nor chosen by. "With the gate" is what a game sees: a flag fires
where the heads propose it and the NPC's authored conditions hold. "Always propose" shows what the
conditions do alone.

"""
    return head + figures_table(figures) + _flags(figures) + _languages(figures) + _LIMITS


_LIMITS = """
## Limits

A small frozen base and linear heads: they rank intent among what the conditions permit, and know
little of NPCs they were not fitted on. Numbers come from one split of data by the same writers.
"""


def _parts(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in rows.items())


def figures_table(figures: Any) -> str:
    """Return the figures of the heads and of what they are held against, as a Markdown table."""
    lines = [
        "| | macro-F1 with the gate | AUPRC with the gate | ECE | macro-F1 without | delta MAE | "
        "delta Spearman | right sign |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, name in _NAMES.items():
        one = figures.get(key)
        if one:
            gated, alone = one["with_gate"], one["heads_alone"]
            lines.append(
                f"| {name} | {gated['flag_macro_f1']:.2f} | {gated['flag_macro_auprc']:.2f} | "
                f"{gated['ece']:.2f} | {alone['flag_macro_f1']:.2f} | {one['delta_mae']:.3f} | "
                f"{one['delta_spearman']:.2f} | {one['delta_sign_accuracy']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _flags(figures: Any) -> str:
    rows = figures.get("heads", {}).get("per_flag", {})
    lines = ["", "| flag | positives | F1 | AUPRC |", "|---|---|---|---|"]
    for flag, one in rows.items():
        auprc = "–" if one["auprc"] is None else f"{one['auprc']:.2f}"
        lines.append(f"| {flag} | {one['positives']} | {one['f1']:.2f} | {auprc} |")
    return "\n".join(lines) + "\n"


def _languages(figures: Any) -> str:
    lines = [
        "",
        "| language | rows | macro-F1 with the gate | delta Spearman |",
        "|---|---|---|---|",
    ]
    for language, one in figures.get("heads", {}).get("by_language", {}).items():
        lines.append(
            f"| {language} | {one['rows']} | {one['with_gate']['flag_macro_f1']:.2f} | "
            f"{one['delta_spearman']:.2f} |"
        )
    return "\n".join(lines) + "\n"
