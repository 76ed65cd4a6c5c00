"""The knowledge store: documents on disk, found by exact keys or by meaning.

A derived index: made from documents, brought up to date by `sync`, safe to delete at any time.
What Chroma needs to be reliable stands in `rag.index`, what can go wrong in `rag.errors`.
Knows nothing of NPC files, prompts, or what the embedder is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from chromadb.api.models.Collection import Collection

from rag.documents import Document, from_stored
from rag.errors import KnowledgeCorrupt, KnowledgeError, KnowledgeUnavailable
from rag.files import delete_files
from rag.index import Index
from rag.rows import POSITION, Metadata, Placed, key_filter, place_of, placed_documents
from rag.vectors import Embed, checked_vectors, cosine_distances

__all__ = [
    "Hit",
    "KnowledgeCorrupt",
    "KnowledgeError",
    "KnowledgeStore",
    "KnowledgeUnavailable",
    "SyncReport",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

LAYOUT = 1
"""Raise it when metadata or settings of the collection change; older indexes are then remade."""

_BATCH = 64  # documents embedded and written at once; bounds memory, and how long readers wait


@dataclass(frozen=True)
class SyncReport:
    """How many documents a sync added (damaged ones made anew count too), removed and kept."""

    added: int
    removed: int
    kept: int


@dataclass(frozen=True)
class Hit:
    """A document and its cosine distance from the query: 0 the same meaning, 2 the opposite."""

    document: Document
    distance: float


class KnowledgeStore:
    """Documents on disk, found by key or meaning. Safe to share between threads.

    Make one with `open` or `open_or_rebuild`, and keep to one a folder: Chroma does not tell a
    second store (or process) of later writes, so `get` there finds them but `nearest` raises
    KnowledgeCorrupt until it is opened again.
    """

    def __init__(self, index: Index, embed: Embed, dimension: int) -> None:
        self._index = index
        self._embed = embed
        self._dimension = dimension
        self._syncing = threading.Lock()

    @classmethod
    def open(cls, path: Path, embed: Embed, embedder_id: str) -> KnowledgeStore:
        """Open the index in folder `path`, or make an empty one there.

        An index made with another embedder or dimension is emptied: its vectors mean nothing here.

        Args:
            path: a folder for the index alone.
            embed: texts → array of shape (texts, dimension), finite; called with one text here.
            embedder_id: changes whenever `embed` would give other vectors.

        Raises:
            KnowledgeCorrupt: the folder holds damaged files.
            KnowledgeUnavailable: the folder cannot be used: locked, read-only, not a folder.
            KnowledgeError: the embedder failed.
        """
        dimension = checked_vectors(embed, ["dimension"], None).shape[1]
        made_for = {"layout": LAYOUT, "embedder": embedder_id, "dimension": dimension}
        return cls(Index(path.absolute(), made_for), embed, dimension)

    @classmethod
    def open_or_rebuild(cls, path: Path, embed: Embed, embedder_id: str) -> KnowledgeStore:
        """Do as `open`, but replace a damaged index by an empty one; call `sync` to fill it.

        Only Chroma's own files are deleted, so a wrong `path` costs nobody their data.

        Raises:
            KnowledgeUnavailable: the folder cannot be used, or the damaged files not be deleted.
            KnowledgeError: the embedder failed.
        """
        try:
            return cls.open(path, embed, embedder_id)
        except KnowledgeCorrupt as fault:
            logger.warning("knowledge index made anew: %s", fault)
        delete_files(path)
        try:
            return cls.open(path, embed, embedder_id)
        except KnowledgeCorrupt as fault:
            raise KnowledgeUnavailable(
                f"{path}: a new knowledge index could not be made there; use another folder"
            ) from fault

    def sync(self, documents: Iterable[Document]) -> SyncReport:
        """Make the index hold exactly `documents`; only what is new is embedded.

        New documents are added before stale ones are removed, so readers never miss one that
        stays. A sync that was cut off is completed by the next.

        Raises:
            KnowledgeError: the index cannot be written, or the embedder failed.
        """
        with self._syncing:
            wanted = placed_documents(documents)
            held = self._held()
            new = [place for id_, place in wanted.items() if held.get(id_) is None]
            stale = [id_ for id_ in held if id_ not in wanted]
            moved = [
                place
                for id_, place in wanted.items()
                if held.get(id_) not in (None, place.metadata[POSITION])
            ]
            for batch in _batches(new):
                self._add(batch)
            for batch in _batches(moved):
                self._index.write(_update, batch)
            for stale_batch in _batches(stale):
                self._index.write(_delete, stale_batch)
        report = SyncReport(added=len(new), removed=len(stale), kept=len(wanted) - len(new))
        logger.info("knowledge index: %s", report)
        return report

    def get(
        self,
        npc_id: str,
        quest_stage: str | None = None,
        flag_name: str | None = None,
        type: str | None = None,
        lang: str | None = None,
    ) -> list[Document]:
        """Return the documents whose fields equal all that are given, in the order of the sync.

        Raises:
            KnowledgeError: the index cannot be read.
        """
        where = key_filter(
            npc_id=npc_id, quest_stage=quest_stage, flag_name=flag_name, type=type, lang=lang
        )
        if where is None:
            return []
        rows = self._index.read(
            lambda found: found.get(where=where, include=["documents", "metadatas"])
        )
        metadatas = rows["metadatas"]
        placed = sorted(zip(metadatas, rows["documents"], strict=True), key=place_of)
        return [self._document(text, metadata) for metadata, text in placed]

    def nearest(
        self,
        text: str,
        n: int,
        npc_id: str | None = None,
        quest_stage: str | None = None,
        flag_name: str | None = None,
        type: str | None = None,
        lang: str | None = None,
    ) -> list[Hit]:
        """Return the `n` documents nearest in meaning to `text`, nearest first, fewer if there are.

        Every document that passes the filters is compared, some 0.2 ms each: Chroma's own search
        is approximate, and overlooks a perfect match where many vectors are alike, as NPC texts
        are. Equally near documents come in the order of the sync.

        Raises:
            KnowledgeError: the index cannot be read, or the embedder failed.
        """
        where = key_filter(
            npc_id=npc_id, quest_stage=quest_stage, flag_name=flag_name, type=type, lang=lang
        )
        if where is None or n < 1:
            return []
        rows = self._index.read(
            lambda found: found.get(
                where=where or None, include=["documents", "metadatas", "embeddings"]
            )
        )
        if not rows["ids"]:
            return []
        distances = cosine_distances(
            checked_vectors(self._embed, [text], self._dimension)[0], np.asarray(rows["embeddings"])
        )
        places = [place_of(row) for row in zip(rows["metadatas"], rows["documents"], strict=True)]
        ranked = sorted(range(len(places)), key=lambda at: (float(distances[at]), places[at]))
        return [
            Hit(self._document(rows["documents"][at], rows["metadatas"][at]), float(distances[at]))
            for at in ranked[:n]
        ]

    def count(self) -> int:
        """Return how many documents the index holds.

        Raises:
            KnowledgeError: the index cannot be read.
        """
        # Chroma's own count would stop all threads while the file is locked; reading ids does not.
        return len(self._index.read(lambda found: found.get(include=[]))["ids"])

    def close(self) -> None:
        """Let go of the files. Later calls raise `KnowledgeError`; closing twice does no harm."""
        self._index.close()

    def _held(self) -> dict[str, int | None]:
        """Return id → position for all rows; None where a row is not what its id says."""
        rows = self._index.read(lambda found: found.get(include=["documents", "metadatas"]))
        held: dict[str, int | None] = {}
        for id_, text, metadata in zip(
            rows["ids"], rows["documents"], rows["metadatas"], strict=True
        ):
            held[id_] = None
            with suppress(ValueError, AttributeError):
                if from_stored(text, metadata).id == id_:
                    held[id_] = place_of((metadata, text))[1]
        return held

    def _add(self, batch: Sequence[Placed]) -> None:
        vectors = checked_vectors(
            self._embed, [each.document.text for each in batch], self._dimension
        )
        self._index.write(
            lambda found, places: found.upsert(
                ids=[each.id for each in places],
                embeddings=vectors,
                documents=[each.document.text for each in places],
                metadatas=[each.metadata for each in places],
            ),
            batch,
        )

    def _document(self, text: Any, metadata: Metadata) -> Document:
        try:
            return from_stored(text, metadata)
        except (ValueError, AttributeError) as exc:
            raise KnowledgeCorrupt(
                f"{self._index.path}: the knowledge index holds a damaged document ({exc}); "
                "sync it again, or restart to have it made anew"
            ) from exc


def _update(found: Collection, places: Sequence[Placed]) -> None:
    found.update(ids=[each.id for each in places], metadatas=[each.metadata for each in places])


def _delete(found: Collection, ids: Sequence[str]) -> None:
    found.delete(ids=list(ids))


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
