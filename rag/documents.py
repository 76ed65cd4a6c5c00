"""What the knowledge index holds: one text each, with the keys that find it.

Knows nothing of Chroma, embeddings or NPC files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, cast

ANY_STAGE = "any"
"""The quest stage of a document that holds at every stage."""

TYPES = ("flag", "lore", "description")
KEYS = ("npc_id", "quest_stage", "flag_name", "type", "lang", "value")
"""The fields that are stored as metadata; `text` is stored as the document itself."""


@dataclass(frozen=True)
class Document:
    """One text about one NPC.

    Args:
        text: what people read, never empty.
        npc_id: the NPC that it is about.
        quest_stage: the stage at which it holds, or "any".
        flag_name: the flag that it explains; "" for lore and descriptions.
        type: "flag", "lore" or "description".
        lang: language of `text`, such as "en" or "ko".
        value: for a flag, the game's own word for what it does ("gold_necklace"); "" where none.

    Raises:
        ValueError: naming the field that cannot be used.
    """

    text: str
    npc_id: str
    quest_stage: str
    flag_name: str
    type: str
    lang: str
    value: str

    def __post_init__(self) -> None:
        for name in ("text", *KEYS):
            _check_text(name, getattr(self, name))
        for name in ("text", "npc_id", "quest_stage"):
            if not getattr(self, name):
                raise ValueError(f"{name}: must not be empty")
        if self.type not in TYPES:
            raise ValueError(f"type: must be one of {', '.join(TYPES)}")
        if (self.type == "flag") != bool(self.flag_name):
            raise ValueError('flag_name: must be set for type "flag", and "" for every other type')

    @property
    def id(self) -> str:
        """SHA-256 over all fields, in hex: the same content always has the same id."""
        content = json.dumps(astuple(self), ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def metadata(self) -> dict[str, str]:
        """All fields but the text, flat: Chroma stores no nested values."""
        return {name: getattr(self, name) for name in KEYS}


def from_stored(text: Any, metadata: Mapping[str, Any]) -> Document:
    """Return the document that was stored as `text` and `metadata`.

    Raises:
        ValueError: they are not what `Document.metadata` once gave, so the index is damaged.
    """
    fields = {name: metadata.get(name) for name in KEYS}
    return Document(text=text, **cast("dict[str, Any]", fields))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{name}: holds half a character (a lone surrogate)") from exc
