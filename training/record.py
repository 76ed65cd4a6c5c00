"""Figures as JSON has them, and into a bundle's manifest and card.

Knows nothing of how they came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from heads.bundle import Bundle
from training.card import render_card
from training.report import PARTS


def plain(value: Any) -> Any:
    """Return figures as JSON has them: plain numbers, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def with_figures(bundle: Bundle, figures: Mapping[str, Any]) -> Bundle:
    """Return the bundle with `figures` in its manifest and its card; other records stay."""
    info = replace(bundle.info, metrics=merged(bundle.info.metrics, figures))
    card = render_card(info, adapter=bundle.adapter is not None)
    return replace(bundle, info=info, card=card)


# Of a part: what is said of its words, which hang on base and adapter and on no head; and what of that
# hangs on the base alone.
_OF_WORDS = ("agreement_", "perplexity", "base_perplexity", "reply_tokens")
_OF_BASE_WORDS = ("base_perplexity", "reply_tokens")
# Rivals that read nothing of the heads; one of them was fitted on the rows of its day.
_OF_BASE = ("base_json", "frozen")


def without_heads(figures: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return what of a bundle's figures still holds when its heads are fitted anew.

    Args:
        figures: of the bundle that the adapter is taken from.
        rows: that this bundle's own heads, and the regression on the frozen base, were fitted on.
    """
    return _without(figures, rows, _OF_WORDS)


def of_base(figures: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return what still holds when adapter and heads are others: what was said of the base alone.

    Args:
        figures: of the bundle that a run goes on from.
        rows: as for `without_heads`.
    """
    return _without(figures, rows, _OF_BASE_WORDS)


def _without(figures: Mapping[str, Any], rows: int, words: tuple[str, ...]) -> dict[str, Any]:
    held = figures.get("baselines", {})
    kept: dict[str, Any] = {"baselines": {name: held[name] for name in _OF_BASE if name in held}}
    if "frozen" in kept["baselines"]:
        kept["baselines"]["frozen"] = {"fitted_on": rows, **held["frozen"]}
    for part in PARTS:
        one = figures.get(part, {})
        kept[part] = _named(one, words)
        kept[part]["by_language"] = {
            language: _named(spoken, words)
            for language, spoken in one.get("by_language", {}).items()
        }
    return kept


def _named(figures: Mapping[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name.startswith(words)}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `old` with `new` laid over it, level by level."""
    both = dict(old)
    for key, value in new.items():
        held = both.get(key)
        if isinstance(held, Mapping) and isinstance(value, Mapping):
            both[key] = merged(held, value)
        else:
            both[key] = value
    return both
