"""What an NPC knows and what its flags mean, as documents of the vector store.

The only place where the engine meets `rag`: it turns NPC files into documents and asks for them. Knows
nothing of models or sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag.store import KnowledgeError, KnowledgeStore, SyncReport

from engine.embed import Embedder
from engine.npc import NPC, NPCRegistry
from engine.prompt import LORE_FACTS
from engine.schema import ANY_STAGE
from rag.documents import Document
from rag.interpret import Interpretation, description, interpret, lore

__all__ = ["Briefing", "Interpretation", "Knowledge", "KnowledgeError", "documents_of"]


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

    Args:
        folder: where Chroma keeps its files; safe to delete.
        embedder: for the documents and the questions.

    Raises:
        KnowledgeError: from every call, where the store cannot answer.
    """

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self._store = KnowledgeStore.open_or_rebuild(folder, embedder.encode, embedder.id)

    def sync(self, registry: NPCRegistry) -> SyncReport:
        """Bring the store in line with the NPC files: what is new is added, what is stale removed."""
        return self._store.sync([doc for npc in registry.all() for doc in documents_of(npc)])

    def briefing(self, npc: NPC, stage: str) -> Briefing:
        """Return lore and scene for the prompt; the same for every turn of an NPC's stage."""
        facts = lore(self._store, npc.id, stage, npc.language, n=LORE_FACTS)
        return Briefing(tuple(facts), description(self._store, npc.id, stage, npc.language))

    def interpret(
        self, npc: NPC, stage: str, flags: Sequence[str], utterance: str = ""
    ) -> dict[str, Interpretation]:
        """Return what each of `flags` means for `npc` at `stage`."""
        return interpret(self._store, npc.id, stage, flags, lang=npc.language, utterance=utterance)

    def count(self) -> int:
        """Return how many documents the store holds."""
        return self._store.count()

    def close(self) -> None:
        """Let go of the store's files."""
        self._store.close()
