"""Forbidden words and sentences, and the reactions to them."""

from __future__ import annotations

from typing import Any

from engine.npc_import.documents import ForbiddenList, TriggerMeta
from engine.npc_import.source import Source


def forbidden_of(source: Source) -> list[dict[str, Any]]:
    """Return one entry a trigger_meta; words that no trigger_meta names go with the first."""
    lists, metas = source.of(ForbiddenList), source.of(TriggerMeta)
    keywords = list(dict.fromkeys(word for one in lists for word in one.triggers.keywords))
    sentences = list(dict.fromkeys(text for one in lists for text in one.triggers.text))
    entries: list[dict[str, Any]] = []
    for meta in metas:
        if any(entry["name"] == meta.trigger for entry in entries):
            source.warn(meta, f"is left out: {meta.trigger!r} has a reaction already")
            continue
        entry = {"name": meta.trigger, "keywords": [], "sentences": []}
        entries.append({**entry, "reaction": _reaction(source, meta)})
        if meta.trigger in sentences:
            sentences.remove(meta.trigger)
            entries[-1]["sentences"] = [meta.trigger]
        else:
            if meta.trigger not in keywords:
                source.warn(meta, f"no list names {meta.trigger!r}; it is taken for a keyword")
            keywords = [word for word in keywords if word != meta.trigger]
            entries[-1]["keywords"] = [meta.trigger]
    if not keywords and not sentences:
        return entries
    if not entries:
        source.warn(None, "has no trigger_meta; forbidden words get a reaction without a delta")
        reaction = {"text": source.made_line(lists[0], "angry")}
        entries = [{"name": "forbidden", "keywords": [], "sentences": [], "reaction": reaction}]
    else:
        source.warn(None, f"words without a trigger_meta get the reaction of {metas[0].trigger!r}")
    entries[0]["keywords"] += keywords
    entries[0]["sentences"] += sentences
    return entries


def _reaction(source: Source, meta: TriggerMeta) -> dict[str, Any]:
    return {
        "text": meta.npc or source.made_line(meta, meta.npc_action, meta.npc_emotion, "angry"),
        "action": meta.npc_action,
        "emotion": meta.npc_emotion,
        "delta": meta.delta.model_dump(mode="json"),
    }
