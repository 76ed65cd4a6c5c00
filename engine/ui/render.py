"""The page's own HTML, drawn from result dicts and NPC files. Pure: values in, HTML strings out.

Every text that an NPC file, a player or the model wrote goes through `esc`. Knows nothing of Gradio.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from engine.npc import NPC, Conditions
from engine.ui.words import say

Json = Mapping[str, Any]

_MOST_ACTS = 3
_BACKSTORY_CHARS = 260


def esc(text: object) -> str:
    """Return `text` for HTML; braces and dollars too, which the page's templates would read."""
    escaped = html.escape(str(text), quote=True)
    return escaped.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def header(locale: str) -> str:
    """Return the page's head."""
    return (
        '<header class="pc-header"><h1>Persona Chat Engine</h1>'
        f"<p>{esc(say('tagline', locale))}</p></header>"
    )


def status_view(status: Json, locale: str) -> str:
    """Draw what `Api.status` returns: ready, loading with a bar, or the reason why not."""
    if status.get("ready"):
        body = _ready(status, locale)
    elif status.get("reason"):
        body = (
            f'<div class="pc-status pc-bad" role="alert"><strong>{esc(say("not_ready", locale))}'
            f"</strong> <span>{esc(status['reason'])}</span></div>"
        )
    else:
        body = _loading(status.get("loading", {}), locale)
    return body + _faults(status, locale)


def _ready(status: Json, locale: str) -> str:
    parts = [status.get("base"), status.get("bundle"), status.get("device")]
    detail = " · ".join(esc(str(part).rsplit("/", 1)[-1]) for part in parts if part)
    return (
        f'<div class="pc-status pc-good" role="status"><strong>{esc(say("ready", locale))}</strong>'
        f" <span>{detail}</span></div>"
    )


def _loading(loading: Json, locale: str) -> str:
    share = max(0.0, min(1.0, float(loading.get("fraction", 0.0))))
    words = f"{say('loading', locale)}: {loading.get('message', '')}"
    return (
        f'<div class="pc-status pc-wait" role="status"><strong>{share:.0%}</strong> '
        f'<span>{esc(words)}</span><div class="pc-bar" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}" aria-label="{esc(words)}">'
        f'<i style="width:{share * 100:.1f}%"></i></div></div>'
    )


def _faults(status: Json, locale: str) -> str:
    lines = [
        f"<strong>{esc(say('npc_fault', locale))}</strong> {esc(fault['message'])}"
        for fault in status.get("npc_faults", ())
    ]
    reason = status.get("knowledge", {}).get("reason")
    if reason:
        lines.append(f"<strong>{esc(say('knowledge_fault', locale))}</strong> {esc(reason)}")
    return "".join(f'<div class="pc-note pc-bad" role="alert">{line}</div>' for line in lines)


def persona_card(npc: NPC, languages: Iterable[str], standing: Json, locale: str) -> str:
    """Draw who the NPC is, and where and in what mood the session has it."""
    who = npc.persona
    traits = "".join(f"<li>{esc(trait)}</li>" for trait in who.traits)
    facts = (
        ("style", standing.get("style") or who.style),
        ("where", _spaced(standing.get("location", npc.defaults.location))),
        ("mood", _spaced(standing.get("npc_mood", npc.defaults.npc_mood))),
        ("speaks", ", ".join(say(language, locale) for language in languages)),
    )
    return (
        f'<article class="pc-card" lang="{npc.language}"><h2>{esc(who.name)}</h2>'
        f'<p class="pc-role">{esc(who.role)}</p>'
        f'<dl class="pc-facts">{_pairs(facts, locale)}</dl>'
        f'<ul class="pc-traits" aria-label="{esc(say("style", locale))}">{traits}</ul>'
        f'<p class="pc-story">{esc(_short(who.backstory))}</p></article>'
    )


def _short(text: str) -> str:
    """Return the first sentences of `text`, at most `_BACKSTORY_CHARS` characters."""
    if len(text) <= _BACKSTORY_CHARS:
        return text
    head = text[:_BACKSTORY_CHARS]
    stop = max(head.rfind(mark) for mark in (". ", "! ", "? ", "다. "))
    return head[: stop + 1] if stop > _BACKSTORY_CHARS // 3 else head.rsplit(" ", 1)[0] + "…"


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")


def _pairs(facts: Iterable[tuple[str, object]], locale: str) -> str:
    return "".join(
        f"<div><dt>{esc(say(key, locale))}</dt><dd>{esc(value)}</dd></div>"
        for key, value in facts
        if value not in (None, "")
    )


def gauge(key: str, before: float, after: float, delta: float | None, locale: str) -> str:
    """Draw one standing on its scale from -1 to 1; with a delta, also where it came from."""
    name = say(key, locale)
    way = "up" if (delta or 0) > 0 else "down" if (delta or 0) < 0 else "same"
    if delta is None:
        figures, label = f"<b>{_signed(after)}</b>", f"{name}: {_signed(after)}"
    else:
        figures = (
            f'<span class="pc-from">{_signed(before)} →</span> <b>{_signed(after)}</b>'
            f'<span class="pc-delta pc-{way}">{_arrow(way)} {_signed(delta)}</span>'
        )
        label = f"{name}: {_signed(before)} → {_signed(after)}, {_signed(delta)}"
    low, high = sorted((_percent(before), _percent(after)))
    base_low, base_high = sorted((50.0, _percent(before if delta is not None else after)))
    moved = f'<i class="pc-move pc-{way}" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
    return (
        f'<div class="pc-gauge"><div class="pc-figures"><span class="pc-name">{esc(name)}</span>'
        f'{figures}</div><div class="pc-scale" role="img" aria-label="{esc(label)}">'
        f'<i class="pc-base" style="left:{base_low:.1f}%;width:{base_high - base_low:.1f}%"></i>'
        f'{moved if delta else ""}<i class="pc-zero"></i>'
        f'<i class="pc-knob" style="left:{_percent(after):.1f}%"></i></div></div>'
    )


def _percent(value: float) -> float:
    return (max(-1.0, min(1.0, value)) + 1.0) * 50.0


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    text = text[:-1] if text.endswith("0") else text
    return text.replace("-", "−") if value else "0.00"


def _arrow(way: str) -> str:
    return {"up": "▲", "down": "▼", "same": "="}[way]


def turn_view(
    result: Json,
    locale: str,
    *,
    stage_flags: Collection[str] = (),
    writing: bool = False,
    plot: str = "",
) -> str:
    """Draw a turn's decision: standings, flags, effects and facts.

    Args:
        result: a `TurnResult` as JSON, or the state event of a streamed turn (no text yet).
        locale: of the words.
        stage_flags: the flags of the turn's stage; the others are folded away. Empty: show all.
        writing: the line is still being written.
        plot: drawn below the standings.
    """
    meta, delta = result["meta"], result["delta"]
    before, after = meta["state_before"], meta["state"]
    gauges = "".join(
        gauge(key, before[key], after[key], delta[key], locale) for key in ("trust", "relationship")
    )
    return (
        f'<section class="pc-turn" aria-label="{esc(say("this_turn", locale))}">'
        f"{_headline(meta, locale, writing)}{gauges}{_acts(meta, locale)}{plot}"
        f"{_effects(meta, locale)}"
        f"{_flags(meta, stage_flags, locale)}{_facts(meta, locale, writing)}</section>"
    )


def _headline(meta: Json, locale: str, writing: bool) -> str:
    old, new = meta["quest_stage"], meta["next_quest_stage"]
    stage = f"{esc(old)} → <b>{esc(new)}</b>" if new != old else esc(old)
    busy = f' <em class="pc-writing">{esc(say("writing", locale))}</em>' if writing else ""
    why = meta.get("route_reason")
    note = f'<p class="pc-why">{esc(why)}</p>' if why else ""
    return (
        f'<h3>{esc(say("this_turn", locale))} <span class="pc-chip pc-{esc(meta["route"])}">'
        f'{esc(meta["route"])}</span>{busy}<span class="pc-stage">{stage}</span></h3>{note}'
    )


def _acts(meta: Json, locale: str) -> str:
    """Say how the player seems to treat the NPC, which the standings moved by."""
    told = [
        f"<li>{esc(say(f'act_{act}', locale))} <b>{share:.0%}</b></li>"
        for act, share in list(meta.get("acts", {}).items())[:_MOST_ACTS]
    ]
    if not told:
        return ""
    return (
        f'<p class="pc-acts-title">{esc(say("taken_as", locale))}</p>'
        f'<ul class="pc-acts">{"".join(told)}</ul>'
    )


def _effects(meta: Json, locale: str) -> str:
    effects = [
        f"<li><code>{esc(act['flag'])}</code>"
        + (f"<code>{esc(act['value'])}</code>" if act.get("value") else "")
        + f"<span>{esc(act['text'])}</span></li>"
        for act in meta.get("actions", ())
    ]
    reaction = meta.get("reaction") or {}
    told = [str(reaction[key]) for key in ("trigger", "action", "emotion") if reaction.get(key)]
    if told:
        effects.append(
            f"<li><code>{esc(say('reaction', locale))}</code><span>{esc(' · '.join(told))}</span></li>"
        )
    if not effects:
        return ""
    return f'<h4>{esc(say("effects", locale))}</h4><ul class="pc-effects">{"".join(effects)}</ul>'


def _flags(meta: Json, stage_flags: Collection[str], locale: str) -> str:
    details = sorted(meta["flags_detail"].items(), key=lambda one: _rank(one[1]))
    here = [(flag, one) for flag, one in details if not stage_flags or flag in stage_flags]
    away = [(flag, one) for flag, one in details if stage_flags and flag not in stage_flags]
    drawn = _flag_table(here, say("flags", locale), locale)
    if away:
        title = say("elsewhere", locale)
        drawn += (
            f'<details class="pc-rest"><summary>{esc(title)} ({len(away)})</summary>'
            f"{_flag_table(away, title, locale)}</details>"
        )
    return drawn


def _rank(detail: Json) -> tuple[bool, bool]:
    """Sort key: what fired first, then what was permitted, then the rest in the bundle's order."""
    return not detail["fired"], not detail["permitted"]


def _flag_table(details: Iterable[tuple[str, Json]], caption: str, locale: str) -> str:
    heads = "".join(
        f'<th scope="col">{esc(say(key, locale))}</th>'
        for key in ("flag", "probability", "outcome")
    )
    rows = "".join(_flag_row(flag, one, locale) for flag, one in details)
    return (
        f'<table class="pc-flags"><caption>{esc(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _flag_row(flag: str, detail: Json, locale: str) -> str:
    fired = bool(detail["fired"])
    why = "" if fired or not detail.get("reason") else f"<small>{esc(detail['reason'])}</small>"
    mark = (
        f'<span class="pc-yes">✓ {esc(say("fired", locale))}</span>'
        if fired
        else f'<span class="pc-no" title="{esc(say("not_fired", locale))}">–'
        f'<span class="pc-sr">{esc(say("not_fired", locale))}</span></span>'
    )
    kind = "pc-fired" if fired else "" if detail["permitted"] else "pc-barred"
    return (
        f'<tr class="{kind}"><th scope="row"><code>{esc(flag)}</code>{why}</th>'
        f"<td>{_meter(detail, locale)}</td><td>{mark}</td></tr>"
    )


def _meter(detail: Json, locale: str) -> str:
    chance, bound = detail.get("probability"), detail.get("threshold")
    if chance is None:
        return f'<span class="pc-none" title="{esc(say("not_asked", locale))}">—</span>'
    tick = "" if bound is None else f'<i class="pc-tick" style="left:{bound * 100:.1f}%"></i>'
    limit = "" if bound is None else f" / {bound:.2f}"
    return (
        f'<span class="pc-meter" aria-hidden="true"><i class="pc-fill" '
        f'style="width:{chance * 100:.1f}%"></i>{tick}</span>'
        f'<span class="pc-number">{chance:.2f}{limit}</span>'
    )


def _facts(meta: Json, locale: str, writing: bool) -> str:
    times = meta["timings_ms"]
    total = "…" if writing else _seconds(times["total"])
    timing = (
        f"{say('t_state', locale)} {_seconds(times['state'])} · {say('t_total', locale)} {total}"
    )
    spoken = f"{say(meta['line'], locale)} · {say(meta['language'], locale)}"
    facts = (
        ("line", say("writing", locale) if writing else spoken),
        ("timing", timing),
        ("version", meta["version"]),
        ("seed_short", meta["seed"]),
        ("model", f"{meta['model']['base'].rsplit('/', 1)[-1]} + {meta['model']['bundle']}"),
    )
    return f'<dl class="pc-facts pc-small">{_pairs(facts, locale)}</dl>'


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def standing_view(npc: NPC, standing: Json, locale: str) -> str:
    """Draw where the player stands before a turn, and what each flag of the stage asks for."""
    held, stage = standing["standing"], standing["quest_stage"]
    gauges = "".join(
        gauge(key, held[key], held[key], None, locale) for key in ("trust", "relationship")
    )
    flags = npc.stage(stage).flags
    rows = "".join(
        f"<li><code>{esc(flag)}</code>{_value(rule.value)}<span>{esc(rule.text)}</span>"
        f"<small>{_needs(rule.when, locale)}</small></li>"
        for flag, rule in flags.items()
    )
    body = rows or f"<li><span>{esc(say('nothing_can', locale))}</span></li>"
    version = standing.get("version") or 0
    count = f"{say('version', locale)} {version}" if version else say("stranger", locale)
    return (
        f'<section class="pc-turn" lang="{npc.language}"><h3>{esc(say("now", locale))} '
        f'<span class="pc-chip">{esc(count)}</span><span class="pc-stage">{esc(stage)}</span></h3>'
        f"{gauges}<h4>{esc(say('may_happen', locale))}</h4>"
        f'<ul class="pc-effects">{body}</ul></section>'
    )


def _value(value: str | None) -> str:
    return f"<code>{esc(value)}</code>" if value else ""


def _needs(when: Conditions, locale: str) -> str:
    needs = [f"{say('needs_item', locale)} {esc(item)}" for item in when.items]
    needs += [f"{say('needs_action', locale)} {esc(action)}" for action in when.actions]
    needs += [
        f"{esc(key)} = {esc(json.dumps(value, ensure_ascii=False))}"
        for key, value in when.game_state.items()
    ]
    for name in ("trust", "relationship"):
        bound = getattr(when, f"min_{name}")
        if bound is not None:
            needs.append(f"{esc(say(f'needs_{name}', locale))} {_signed(bound)}")
    if when.said:
        needs.append(esc(say("needs_said", locale)))
    return " · ".join(needs) or esc(say("needs_nothing", locale))


def speech(talk: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return chat messages whose text is shown as it stands: the chat would draw markup in it."""
    return [{**one, "content": html.escape(one["content"], quote=False)} for one in talk]


def will_send_view(context: Json, gen_params: Json, locale: str) -> str:
    """Draw which scene fields the next turn will carry."""
    pairs = [*context.items(), *gen_params.items()]
    if not pairs:
        return f'<p class="pc-will">{esc(say("will_send_nothing", locale))}</p>'
    chips = "".join(f"<li><code>{esc(key)}</code> {esc(_value_text(v))}</li>" for key, v in pairs)
    return f'<div class="pc-will"><b>{esc(say("will_send", locale))}</b><ul>{chips}</ul></div>'


def _value_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "[]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def note(message: str, kind: str = "bad") -> str:
    """Draw a message above the input: kind "bad" (an error) or "good"."""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="pc-note pc-{kind}" role="{role}">{esc(message)}</div>' if message else ""


def error_note(error: Json, locale: str) -> str:
    """Draw an error payload's inner part in its own words."""
    return note(f"{say('error_note', locale)}: {error['message']}")


def calls_table(calls: Iterable[tuple[str, str]], locale: str) -> str:
    """Draw (call with its arguments, what for) of every public call; `x` in a text is code."""
    heads = "".join(f'<th scope="col">{esc(say(key, locale))}</th>' for key in ("call", "what_for"))
    rows = "".join(
        f'<tr><th scope="row"><code>{esc(call)}</code></th><td>{_ticked(text)}</td></tr>'
        for call, text in calls
    )
    return (
        f'<table class="pc-calls"><caption>{esc(say("calls", locale))}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _ticked(text: str) -> str:
    """Return `text` for HTML, with what stands between backticks set as code."""
    parts = esc(text).split("`")
    return "".join(f"<code>{one}</code>" if n % 2 else one for n, one in enumerate(parts))
