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
    info = replace(bundle.info, metrics=_merged(bundle.info.metrics, figures))
    card = render_card(info, adapter=bundle.adapter is not None)
    return replace(bundle, info=info, card=card)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        held = merged.get(key)
        if isinstance(held, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(held, value)
        else:
            merged[key] = value
    return merged
