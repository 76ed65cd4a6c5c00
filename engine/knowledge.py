"""What an NPC knows and what its flags mean, as documents of the vector store.

The only place where the engine meets `rag`: it turns NPC files into documents and asks for them.
Knows nothing of models or sessions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.embed import Embedder
from engine.npc import NPC, NPCRegistry
from engine.prompt import LORE_FACTS
from engine.schema import ANY_STAGE
from rag.documents import Document
from rag.interpret import Interpretation, description, interpret, lore
from rag.store import Hit, KnowledgeCorrupt, KnowledgeError, KnowledgeStore, SyncReport

__all__ = ["Briefing", "Interpretation", "Knowledge", "KnowledgeError", "documents_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Briefing:
    """What stands in the prompt's <RAG> segment."""

    lore: tuple[str, ...]
    scene: str


def documents_of(npc: NPC) -> Iterator[Document]:
    """Yield every document that an NPC file makes: lore, descriptions, and what each flag does."""

    def document(kind: str, stage: str, text: str, flag: str = "", value: str = "") -> Document:
        return Document(
            text=text,
            npc_id=npc.id,
            quest_stage=stage,
            flag_name=flag,
            type=kind,
            lang=npc.language,
            value=value,
        )

    for fact in npc.lore:
        yield document("lore", ANY_STAGE, fact)
    for name, stage in npc.stages.items():
        if stage.description:
            yield document("description", name, stage.description)
        for flag, rule in stage.flags.items():
            yield document("flag", name, rule.text, flag, rule.value or "")


class Knowledge:
    """The store for one set of NPC files.

    Turns read only what a sync has filled, so that none is answered from an empty store. A store
    that was damaged fails those reads until the next `sync` makes it anew: a turn would have to
    wait for every document to be embedded.

    Args:
        folder: where Chroma keeps its files; safe to delete.
        embedder: for the documents and the questions.

    Raises:
        KnowledgeError: from every call, where the store cannot answer.
    """

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self._folder = folder
        self._embedder = embedder
        self._syncing = threading.Lock()
        self._store: KnowledgeStore | None = self._open()
        self._filled: KnowledgeStore | None = None

    def sync(self, registry: NPCRegistry) -> SyncReport:
        """Bring the store in line with the NPC files: what is new is added, what is stale removed.

        A damaged store is made anew, once; turns are refused while that lasts.
        """
        documents = [doc for npc in registry.all() for doc in documents_of(npc)]
        with self._syncing:
            try:
                report = self._opened().sync(documents)
            except KnowledgeCorrupt as fault:
                logger.warning("the knowledge store is opened again and filled: %s", fault)
                self._let_go()
                report = self._opened().sync(documents)
            self._filled = self._store
        return report

    def briefing(self, npc: NPC, stage: str) -> Briefing:
        """Return lore and scene for the prompt; the same for every turn of an NPC's stage."""
        store = self._readable()
        facts = lore(store, npc.id, stage, npc.language, n=LORE_FACTS)
        return Briefing(tuple(facts), description(store, npc.id, stage, npc.language))

    def interpret(
        self, npc: NPC, stage: str, flags: Sequence[str], utterance: str = ""
    ) -> dict[str, Interpretation]:
        """Return what each of `flags` means for `npc` at `stage`."""
        store = self._readable()
        return interpret(store, npc.id, stage, flags, lang=npc.language, utterance=utterance)

    def near(self, npc: NPC, text: str, count: int) -> list[Hit]:
        """Return the NPC's documents nearest in meaning to `text`, in its language."""
        return self._readable().nearest(text, count, npc_id=npc.id, lang=npc.language)

    def count(self) -> int:
        """Return how many documents the store holds."""
        return self._readable().count()

    def close(self) -> None:
        """Let go of the store's files."""
        if self._store is not None:
            self._store.close()

    def _open(self) -> KnowledgeStore:
        return KnowledgeStore.open_or_rebuild(
            self._folder, self._embedder.encode, self._embedder.id
        )

    def _opened(self) -> KnowledgeStore:
        """Return the store to be synced; opens it where an earlier attempt to do so failed."""
        if self._store is None:
            self._store = self._open()
        return self._store

    def _let_go(self) -> None:
        """Close a damaged store. `_filled` goes first, or turns would read the next one half full."""
        self._filled = None
        self.close()
        self._store = None

    def _readable(self) -> KnowledgeStore:
        if self._filled is None:
            raise KnowledgeError(
                "the knowledge store is not filled; if this lasts, reload the NPC files or restart"
            )
        return self._filled
