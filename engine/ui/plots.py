"""Small line plots as SVG, in the page's own colours. Pure; every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as esc

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 340, 220, 34, 30, 12
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name, its points (both axes 0 to 1), its CSS class."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str


def plot(title: str, across: str, lines: Sequence[Line], marked: float | None = None) -> str:
    """Draw lines over a square of 0 to 1.

    Args:
        title: is shown, and read out with each line's name.
        across: what the horizontal axis is.
        lines: are drawn in their order; one without points is left out.
        marked: a place on the horizontal axis that gets an upright line.
    """
    drawn = [line for line in lines if line.points]
    grid = "".join(
        f'<line class="pc-grid" x1="{_x(0):.0f}" x2="{_x(1):.0f}" y1="{_y(at):.0f}" '
        f'y2="{_y(at):.0f}"/><text class="pc-tick" x="{_LEFT - 5}" y="{_y(at) + 3:.0f}" '
        f'text-anchor="end">{at:g}</text><text class="pc-tick" x="{_x(at):.0f}" '
        f'y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{at:g}</text>'
        for at in _TICKS
    )
    paths = "".join(
        f'<polyline class="{line.css}" points="'
        + " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in line.points)
        + '"/>'
        for line in drawn
    )
    mark = (
        f'<line class="pc-mark" x1="{_x(marked):.1f}" x2="{_x(marked):.1f}" y1="{_y(0):.0f}" '
        f'y2="{_y(1):.0f}"/>'
        if marked is not None
        else ""
    )
    legend = " ".join(
        f'<span class="pc-legend"><i class="{line.css}"></i>{esc(line.name)}</span>'
        for line in drawn
    )
    read = f"{title}: {', '.join(line.name for line in drawn)}"
    return (
        f'<figure class="pc-chart"><figcaption>{esc(title)} {legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{esc(read)}">{grid}{paths}{mark}'
        f'<text class="pc-tick" x="{_x(0.5):.0f}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{esc(across)}</text></svg></figure>"
    )


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - 12)


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - value * (_HEIGHT - _BOTTOM - _TOP)
