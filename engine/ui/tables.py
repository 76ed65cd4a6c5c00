"""HTML tables of the studio's tabs: documents, gaps, figures. Pure; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape as esc
from typing import Any

from engine.ui.plots import Line, plot
from engine.ui.words import say

Json = Mapping[str, Any]


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Draw a table; the first cell of a row is its head, None an empty cell."""
    drawn = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{_cell(cell)}</th>' if at == 0 else f"<td>{_cell(cell)}</td>"
            for at, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    head = "".join(f'<th scope="col">{esc(one)}</th>' for one in heads)
    return (
        f'<div class="pc-wide"><table class="pc-table"><caption>{esc(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{drawn}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    return esc(f"{value:.2f}") if isinstance(value, float) else esc(str(value))


def meaning_view(found: Json, locale: str) -> str:
    """Draw what a flag means, and the documents near the question."""
    source = say(f"source_{found['source']}", locale)
    value = f"<code>{esc(found['value'])}</code> " if found["value"] else ""
    kind = "bad" if found["source"] == "none" else "good"
    answer = (
        f'<div class="pc-note pc-{kind}" role="status"><b>{esc(found["flag"])}</b> → {value}'
        f"{esc(found['text'])} <small>({esc(source)})</small></div>"
    )
    heads = [say(key, locale) for key in ("distance", "kind", "stage", "flag", "text")]
    rows = [
        (f"{hit['distance']:.2f}", hit["type"], hit["quest_stage"], hit["flag"], hit["text"])
        for hit in found["hits"]
    ]
    return answer + table(say("near_documents", locale), heads, rows)


def documents_view(documents: Sequence[Json], locale: str) -> str:
    """Draw all documents of an NPC."""
    heads = [say(key, locale) for key in ("kind", "stage", "flag", "value", "text")]
    rows = [
        (one["type"], one["quest_stage"], one["flag"], one["value"], one["text"])
        for one in documents
    ]
    return table(f"{say('documents', locale)} ({len(rows)})", heads, rows)


def gaps_view(gaps: Sequence[Json], locale: str) -> str:
    """Draw what an NPC file leaves out, and where it is to be mended."""
    if not gaps:
        text = esc(say("no_gaps", locale))
        return f'<div class="pc-note pc-good" role="status">{text}</div>'
    heads = [say(key, locale) for key in ("stage", "gap", "where_to_mend")]
    rows = [(one["quest_stage"], one["message"], one["field"]) for one in gaps]
    return table(f"{say('gaps', locale)} ({len(rows)})", heads, rows)


def scenes_view(run: Json, locale: str) -> str:
    """Draw a run of scenes: how many passed, what changed, and each scene with why it failed."""
    failed = sum(bool(failures) for failures in run["scenes"].values())
    passed = len(run["scenes"]) - failed
    kind = "bad" if failed else "good"
    total = f"{passed} {say('scenes_passed', locale)}, {failed} {say('scenes_failed', locale)}"
    changes = "".join(f"<li>{esc(one)}</li>" for one in run["changes"])
    drawn = (
        f'<div class="pc-note pc-{kind}" role="status"><b>{esc(total)}</b>'
        f"{f'<ul>{changes}</ul>' if changes else ''}</div>"
    )
    ordered = sorted(run["scenes"].items(), key=lambda one: not one[1])
    rows = [
        (key, say("scene_fails" if why else "scene_passes", locale), "; ".join(why))
        for key, why in ordered
    ]
    heads = [say(key, locale) for key in ("scene", "outcome", "reason")]
    return drawn + table(say("tab_scenes", locale), heads, rows)


def figures_view(card: Json, locale: str) -> str:
    """Draw the bundle's figures a flag: positives, F1, AUPRC, threshold, on kept-apart turns."""
    heads = [say(key, locale) for key in ("flag", "positives")] + ["F1", "AUPRC"]
    heads.append(say("threshold", locale))
    drawn = ""
    for part in ("test", "unseen"):
        per_flag = card["metrics"].get(part, {}).get("per_flag", {})
        rows = [
            (flag, one["positives"], one["f1"], one["auprc"], card["thresholds"].get(flag))
            for flag, one in per_flag.items()
        ]
        if rows:
            drawn += table(say(f"part_{part}", locale), heads, rows)
    return drawn


def cost_view(found: Json, threshold: float, locale: str) -> str:
    """Draw what a threshold costs on kept-apart turns, beside all others, and how far to trust it.

    Args:
        found: as the call `threshold` returns it.
        threshold: the one that is looked at.
        locale: of the words.
    """
    held = say("override" if found["override"] is not None else "of_the_bundle", locale)
    now = f"{held}: {found['threshold']:g}" if found["threshold"] is not None else held
    what = f"<code>{esc(found['flag'])}</code> · {esc(found['quest_stage'])}: "
    curve = found["curve"]
    if not curve:
        return (
            f'<div class="pc-note" role="status">{what}<b>{threshold:g}</b> '
            f"<small>({esc(now)})</small> "
            f"{esc(say('no_curve', locale))}</div>"
        )
    nearest = min(curve, key=lambda point: abs(point[0] - threshold))
    names = [say(key, locale) for key in ("precision", "recall")]
    told = ", ".join(
        f"{name} {'–' if value is None else f'{value:.2f}'}"
        for name, value in zip(names, nearest[1:], strict=True)
    )
    lines = [
        Line(name, [(p[0], p[at]) for p in curve if p[at] is not None], f"pc-line{at}")
        for at, name in enumerate(names, start=1)
    ]
    meant = [(x, y) for x, y, _ in found["reliability"]]
    reliability = [
        Line(say("ideal", locale), [(0, 0), (1, 1)], "pc-line0"),
        Line(say("came_true", locale), meant, "pc-line1"),
    ]
    title = f"{found['flag']}: {say('by_threshold', locale)}"
    return (
        f'<div class="pc-note" role="status">{what}<b>{threshold:g}</b>: {esc(told)} '
        f"<small>({esc(now)})</small></div>"
        '<div class="pc-charts">'
        + plot(title, say("threshold", locale), lines, threshold)
        + plot(say("reliability", locale), say("said_probability", locale), reliability)
        + "</div>"
    )


def flips_view(found: Json, locale: str) -> str:
    """Draw which scenes pass under one threshold and fail under the other."""
    if not found["flips"]:
        text = esc(say("no_flips", locale))
        return f'<div class="pc-note pc-good" role="status">{text}</div>'
    heads = [say(key, locale) for key in ("scene", "outcome", "reason")]
    rows = [
        (
            one["scene"],
            say("scene_passes" if one["passes"] else "scene_fails", locale),
            one["reason"],
        )
        for one in found["flips"]
    ]
    return table(f"{say('flips', locale)} ({len(rows)})", heads, rows)
