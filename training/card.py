"""The model card of a bundle, written from its own manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.bundle import BundleInfo
from heads.spec import FINAL_NORM
from training.spread import spread_table

_NAMES = {
    "frozen": "frozen base + logistic regression",
    "tfidf_prompt": "TF-IDF, whole prompt",
    "tfidf_utterance": "TF-IDF, utterance",
    "meaning": "sentence vector of the utterance",
    "base_json": "the base, asked for JSON",
    "majority": "majority and mean",
    "always_propose": "conditions alone",
}
_PARTS = {
    "test": "turns kept apart from training, of NPCs that it knows",
    "unseen": "turns of NPCs that it has never met",
}

_BENT = {
    "state_shuffled": "The state of another turn",
    "utterance_only": "The utterance alone, in a neutral state",
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
{sum(rows.values())} hand-written turns ({_parts(rows)}).
Thresholds: {_thresholds(info)}.

Flags are judged as a game sees them: one fires where it is proposed and the NPC's authored conditions
hold. "Conditions alone" proposes everything, so the heads' worth is the distance to it.
"""
    tables = "".join(
        f"\n## {part.capitalize()}: {about}\n\n{figures_table(figures, part)}"
        for part, about in _PARTS.items()
        if figures.get(part, {}).get("rows")
    )
    words = _words(figures) + _spread(figures) + _shortcuts(figures)
    return head + tables + _flags(figures) + _languages(figures) + words + _LIMITS


_LIMITS = """
## Limits

A small base: it ranks intent among what the conditions permit. Numbers come from one division of data
by the same writers. Where the heads have claims, what is said is held against the state and the words
of the NPC's file (its rules, and the names of items, actions and facts in its conditions): a game that
does not tell what a player carries and has done makes liars of honest players.
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
        rival = figures.get("baselines", {}).get(key, {})
        one = rival.get(part)
        if one and one.get("rows"):
            if rival.get("fitted_on"):
                name = f"{name}, fitted on {rival['fitted_on']} rows"
            fewer = one["rows"] != figures[part]["rows"]
            lines.append(_line(f"{name} ({one['rows']} turns)" if fewer else name, one))
    return "\n".join(lines) + "\n"


def _line(name: str, one: Mapping[str, Any]) -> str:
    pairs = one["pairs_both_right"] if one["pairs"] else None
    return (
        f"| {name} | {_shown(one['flag_macro_f1'])} | {_shown(one['flag_micro_f1'])} | "
        f"{_shown(one['flag_macro_auprc'])} | {_shown(one['ece'])} | {_shown(pairs)} | "
        f"{_shown(one['delta_mae'], 3)} | {_shown(one['delta_spearman'])} | "
        f"{_shown(one['delta_sign_accuracy'])} | {one['false_grants']} of {one['attacks']} |"
    )


def _shown(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _flags(figures: Mapping[str, Any]) -> str:
    rows = figures.get("test", {}).get("per_flag", {})
    lines = ["", "## By flag and by language (test)", "", "| flag | positives | F1 | AUPRC |"]
    lines.append("|---|---|---|---|")
    for flag, one in rows.items():
        auprc = _shown(one["auprc"])
        lines.append(f"| {flag} | {one['positives']} | {_shown(one['f1'])} | {auprc} |")
    return "\n".join(lines) + "\n"


def _languages(figures: Mapping[str, Any]) -> str:
    lines = ["", "| language | rows | macro-F1 | delta Spearman |", "|---|---|---|---|"]
    for language, one in figures.get("test", {}).get("by_language", {}).items():
        lines.append(
            f"| {language} | {one['rows']} | {_shown(one['flag_macro_f1'])} | "
            f"{_shown(one['delta_spearman'])} |"
        )
    return "\n".join(lines) + "\n"


def _words(figures: Mapping[str, Any]) -> str:
    """Say how the lines fit the decision, in shares; nothing before `evaluate` has written any."""
    lines = [
        "",
        "## The line and the decision",
        "",
        "Perplexity is of the rows' own replies. The others are of lines that were written to the "
        "true decision:\nis a granted item named (by the model alone, and as the player reads it, with "
        "the sentence that the\nengine adds where it is not), is one promised that was not granted?",
        "",
        "| | perplexity | the base's | named by the model | named as read | promised without a grant |",
        "|---|---|---|---|---|---|",
    ]
    measured = [part for part in _PARTS if "agreement_named" in figures.get(part, {})]
    for part in measured:
        one = figures[part]
        named = _of(one["agreement_named"], one["agreement_named_rows"])
        unaided = _of(one.get("agreement_named_unaided"), one["agreement_named_rows"])
        promised = _of(one["agreement_overpromise"], one["agreement_overpromise_rows"])
        lines.append(
            f"| {part} | {_shown(one['perplexity'])} | {_shown(one.get('base_perplexity'))} | "
            f"{unaided} | {named} | {promised} |"
        )
    return "\n".join(lines) + "\n" if measured else ""


def _of(share: float | None, rows: int) -> str:
    return "–" if share is None else f"{share:.2f} ({rows} lines)"


def _spread(figures: Mapping[str, Any]) -> str:
    """Say how far the figures hang on the rows that the heads were fitted on."""
    found = dict(figures.get("spread", {}))
    draws = found.pop("draws", 0)
    if not draws:
        return ""
    about = (
        "The heads fitted on draws, with replacement, of the training rows (a draw holds 63 % of "
        "them); mean,\ndeviation, least and most."
    )
    return f"\n## Spread\n\n{about}\n\n{spread_table(f'{draws} draws', found)}"


def _shortcuts(figures: Mapping[str, Any]) -> str:
    probes = figures.get("probes", {})
    lines = []
    for name, what in _BENT.items():
        one = probes.get(name, {})
        if one.get("rows"):
            kept, drop = one["changed"], one["drop"]
            lines.append(
                f"- {what}: AUPRC {_shown(kept['flag_macro_auprc'])} "
                f"({_shown(drop['flag_macro_auprc'])} less), delta Spearman "
                f"{_shown(kept['delta_spearman'])} ({_shown(drop['delta_spearman'])} less)."
            )
    swept = probes.get("trust_sweep", {})
    if swept.get("rows"):
        lines.append(
            f"- Trust moved from -1 to 1: the probabilities of permitted flags change by "
            f"{_shown(swept['range'])}, Spearman with trust {_shown(swept['spearman'])}."
        )
    stuffed = probes.get("keyword_stuffing", {})
    if stuffed.get("rows"):
        lines.append(
            f"- Keywords piled up without meaning: a flag is proposed in "
            f"{_shown(stuffed['fire_rate'])} of the turns (as said: "
            f"{_shown(stuffed['fire_rate_as_said'])}) and fires in "
            f"{_shown(stuffed['fires_after_gate'])}."
        )
    if not lines:
        return ""
    return "\n".join(["", "## Shortcuts (the heads without the gate)", "", *lines]) + "\n"
