"""What belongs to the rows beside their NPC files: how items are named in speech.

One file an NPC, `training/data/items/<npc_id>.json`: {"<item>": {"en": [names], "ko": [names]}}.
Knows nothing of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.text import fold

ITEMS_DIR = Path(__file__).parent / "data" / "items"

# A hand-over in words: said of an item that was not granted, it is a promise the game does not keep.
_GIVING = {
    "en": re.compile(
        r"\b(take (it|this|the|my|them)|here(?:'s| is| are|,)|(?:it|this|that|they)(?:'s| is|'re| are)"
        r" yours|yours now|you (?:may|can|shall) have|i(?:'ll| will)? (?:give|hand|lend|pass) you|"
        r"have (?:it|the|this|my)|keep (?:it|the|this)|i(?:'m| am) giving you)\b"
    ),
    "ko": re.compile(r"(가져가|가지고 가|받아|받게|받으|드릴게|드리지|드리겠|줄게|주겠|여기 있)"),
}
_DENIAL = {
    "en": re.compile(
        r"\b(not|no|never|nobody|nothing|without|until|unless|if|when|once|before|after|won't|don't|"
        r"can't|isn't|wouldn't|couldn't|didn't|cannot|first|bring|show|stays?|refuse|hands off)\b"
    ),
    "ko": re.compile(r"(안|못|없|말고|마라|마세|먼저|면|전에|아니|까지|거절|어야|아야|해야)"),
}
_SENTENCE = re.compile(r"(?<=[.!?…])\s+")


@dataclass(frozen=True)
class NPCWords:
    """An NPC's items by their names in each language."""

    items: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    def names(self, item: str, language: str) -> tuple[str, ...]:
        """Return how `item` is named; without an entry, the last word of its identifier."""
        known = self.items.get(item, {}).get(language)
        return known or (item.split("_")[-1],)


def read_words(folder: Path | None = None) -> dict[str, NPCWords]:
    """Read the files of all NPCs, by NPC id."""
    found: dict[str, NPCWords] = {}
    for path in sorted((folder or ITEMS_DIR).glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        items = {
            item: {lang: tuple(fold(name) for name in names) for lang, names in by_lang.items()}
            for item, by_lang in data.items()
        }
        found[path.stem] = NPCWords(items)
    return found


def is_named(text: str, names: tuple[str, ...]) -> bool:
    """Return whether `text` names an item."""
    said = fold(text)
    return any(name in said for name in names)


def is_promised(text: str, names: tuple[str, ...], language: str) -> bool:
    """Return whether a sentence of `text` hands the item over or says that it will be.

    A rule of thumb: the name beside a giving phrase, and no denial or condition in the sentence.
    """
    giving, denial = _GIVING[language], _DENIAL[language]
    for sentence in _SENTENCE.split(text):
        said = fold(sentence)
        if is_named(said, names) and giving.search(said) and not denial.search(said):
            return True
    return False
