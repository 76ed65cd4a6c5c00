"""Character cards of chat front ends: V2 and V3 into an NPC file, and an NPC file into a V2 card.

    name, description, personality   persona (name, backstory, traits)
    scenario                         the first stage's description
    first_mes, mes_example           greeting, example turns
    character_book entries           lore
    all else                         kept under `extensions.card`, and given back on export

A card has no conditions or flags: what comes in is a talk without consequences, to be filled in.

Sources: "Character Card V2" specification (spec "chara_card_v2"), "Character Card V3" (RFC).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from engine.authoring.template import free_id, new_npc
from engine.errors import InvalidRequest
from engine.npc import NPC
from engine.text import hangul_share

Json = dict[str, Any]

_SPECS = ("chara_card_v2", "chara_card_v3")
_STAGE = "not_started"
_MOST_TURNS, _MOST_LORE, _MOST_TRAITS = 30, 100, 20


def npc_of_card(card: Any, taken: Collection[str] = ()) -> tuple[Json, list[str]]:
    """Return an NPC file's data for a card, and warnings about what was cut.

    Args:
        card: its JSON.
        taken: ids that are in use.

    Raises:
        InvalidRequest: it is no V2 or V3 card, or has no name.
    """
    if not isinstance(card, Mapping) or card.get("spec") not in _SPECS:
        raise InvalidRequest(
            "the file is no Character Card V2 or V3 (its `spec` says neither)", field="spec"
        )
    data = card.get("data")
    if not isinstance(data, Mapping) or not _text(data, "name"):
        raise InvalidRequest("the card has no name", field="data.name")
    warnings: list[str] = []
    name = " ".join(_text(data, "name").split())[:60]

    def told(key: str, most: int) -> str:
        text = _filled(_text(data, key), name)
        if len(text) > most:
            warnings.append(f"{key}: cut to {most} characters")
            text = _cut(text, most)
        return text

    description, personality = told("description", 3400), told("personality", 500)
    korean = hangul_share(description + _text(data, "first_mes")) > 0.3
    made = new_npc(name, "ko" if korean else "en", taken)
    made["id"] = free_id(name, taken)
    persona = made["persona"]
    traits = _traits(personality)
    persona["traits"] = traits
    # Sentences about the personality are part of the story; a list of words is the traits alone.
    story = (description, personality if len(" ".join(traits)) < len(personality) // 2 else "")
    persona["backstory"] = "\n".join(filter(None, story)) or persona["backstory"]
    persona["greeting"] = told("first_mes", 600)
    stage = made["stages"][_STAGE]
    stage["description"] = told("scenario", 4000) or stage["description"]
    stage["flags"] = {}
    turns = list(_turns(_filled(_text(data, "mes_example"), name), name))
    stage["turns"] = turns[:_MOST_TURNS]
    made["lore"] = list(_lore(data.get("character_book"), name, warnings))
    made["extensions"] = {"card": dict(card)}
    return made, warnings


def card_of(npc: NPC) -> Json:
    """Return an NPC as a V2 card; what came in with a card and has no place here goes out again."""
    held: Any = npc.extensions.get("card")
    data: Json = {}
    if isinstance(held, Mapping) and isinstance(held.get("data"), Mapping):
        data = dict(held["data"])
    first = npc.stage(npc.defaults.quest_stage)
    examples = "\n".join(
        f"<START>\n{{{{user}}}}: {turn.player}\n{{{{char}}}}: {turn.npc}" for turn in first.turns
    )
    book = data.get("character_book")
    entries = [
        {"keys": [], "content": fact, "extensions": {}, "enabled": True, "insertion_order": number}
        for number, fact in enumerate(npc.lore)
    ]
    data |= {
        "name": npc.persona.name,
        "description": npc.persona.backstory,
        "personality": ", ".join(npc.persona.traits),
        "scenario": first.description,
        "first_mes": npc.persona.greeting,
        "mes_example": examples,
        "character_book": {
            **(dict(book) if isinstance(book, Mapping) else {"extensions": {}}),
            "entries": entries,
        },
    }
    defaults: Json = {
        "creator_notes": "",
        "system_prompt": "",
        "post_history_instructions": "",
        "alternate_greetings": [],
        "tags": [],
        "creator": "",
        "character_version": "",
        "extensions": {},
    }
    return {"spec": "chara_card_v2", "spec_version": "2.0", "data": {**defaults, **data}}


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value.strip() if isinstance(value, str) else ""


def _filled(text: str, name: str) -> str:
    """Put names for a card's placeholders."""
    text = re.sub(r"\{\{char\}\}|<BOT>", name, text, flags=re.IGNORECASE)
    return re.sub(r"\{\{user\}\}|<USER>", "the player", text, flags=re.IGNORECASE)


def _cut(text: str, most: int) -> str:
    head = text[:most]
    stop = max(head.rfind(mark) for mark in (". ", "! ", "? ", "\n"))
    return head[: stop + 1].strip() if stop > most // 2 else head.strip()


def _traits(personality: str) -> list[str]:
    parts = [part.strip(" .") for part in re.split(r"[,;\n]", personality)]
    short = [part for part in parts if 0 < len(part) <= 40]
    return list(dict.fromkeys(short))[:_MOST_TRAITS]


def _turns(text: str, name: str) -> Iterator[Json]:
    """Yield the exchanges of a card's examples: the player's line, then the NPC's."""
    player = ""
    spoken = re.compile(rf"^(the player|{re.escape(name)})\s*:\s*(.+)$", re.IGNORECASE)
    for line in text.splitlines():
        found = spoken.match(line.strip())
        if not found:
            continue
        who, words = found.group(1).lower(), found.group(2).strip()[:600]
        if who == "the player":
            player = words
        elif player:
            yield {"player": player, "npc": words}
            player = ""


def _lore(book: Any, name: str, warnings: list[str]) -> Iterator[str]:
    entries = book.get("entries") if isinstance(book, Mapping) else None
    if not isinstance(entries, list):
        return
    told = 0
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("enabled") is False:
            continue
        text = _filled(_text(entry, "content"), name)
        if not text:
            continue
        if told == _MOST_LORE:
            warnings.append(f"character_book: only the first {_MOST_LORE} entries are taken")
            return
        if len(text) > 600:
            warnings.append("character_book: an entry was cut to 600 characters")
        told += 1
        yield _cut(text, 600) if len(text) > 600 else text
