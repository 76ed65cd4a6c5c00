"""Between documents and the rows of the index: their places, and the filter that finds them.

Knows nothing of Chroma's calls or of vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rag.documents import Document

Metadata = Mapping[str, Any]

POSITION = "position"


@dataclass(frozen=True)
class Placed:
    """A document, its id, and its metadata with the place among its NPC's documents."""

    id: str
    document: Document
    metadata: dict[str, Any]


def placed_documents(documents: Iterable[Document]) -> dict[str, Placed]:
    """Return id → document with its place among its NPC's documents; the same twice counts once.

    Places are counted per NPC, so that a change in one NPC's file rewrites no other's rows.
    """
    placed: dict[str, Placed] = {}
    seen: Counter[str] = Counter()
    for document in documents:
        id_ = document.id
        if id_ not in placed:
            metadata = {**document.metadata, POSITION: seen[document.npc_id]}
            placed[id_] = Placed(id_, document, metadata)
            seen[document.npc_id] += 1
    return placed


def place_of(row: tuple[Metadata, str]) -> tuple[str, int, str]:
    """Sort key of a row's (metadata, text): the order of the sync, within each NPC."""
    metadata, text = row
    position = metadata.get(POSITION)
    return str(metadata.get("npc_id")), position if isinstance(position, int) else -1, text


def key_filter(**keys: str | None) -> dict[str, Any] | None:
    """Return Chroma's filter for all keys that are given, {} for none, None if nothing can match.

    Values are always operands of $eq, so that none can be read as an operator.
    """
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        "".join(given.values()).encode()
    except UnicodeEncodeError:
        return None  # half a character: no document holds one, and Chroma would refuse it
    parts: list[dict[str, Any]] = [{key: {"$eq": value}} for key, value in given.items()]
    return {"$and": parts} if len(parts) > 1 else next(iter(parts), {})
