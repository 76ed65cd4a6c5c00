"""One NPC's documents on their way into a file, and the warnings that gather meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from engine.npc_import.documents import Document
from engine.npc_import.made_up import made_line
from engine.schema import FLAGS

_LEGACY_FLAGS = {"change_npc_state": "npc_action"}
_Kind = TypeVar("_Kind", bound=Document)


@dataclass
class Source:
    """One NPC's documents, and the warnings so far."""

    npc_id: str
    documents: list[Document]
    warnings: list[str] = field(default_factory=list)
    language: str = "en"
    name: str = ""

    def of(self, kind: type[_Kind], stage: str | None = None) -> list[_Kind]:
        """Return the documents of a type, of one stage or (None) of all."""
        found = [document for document in self.documents if isinstance(document, kind)]
        return [one for one in found if stage is None or one.quest_stage == stage]

    def warn(self, about: Document | None, message: str) -> None:
        """Keep a warning, once, about a document or (None) about the NPC."""
        warning = f"{about.id if about else self.npc_id}: {message}"
        if warning not in self.warnings:
            self.warnings.append(warning)

    def made_line(self, about: Document | None, *hints: str | None) -> str:
        """Return a stand-in line, with a warning, by the actions or emotions that hint at one."""
        line = made_line(self.language, *hints)
        self.warn(about, f"has no line to speak; stands in: {line!r}. Write one")
        return line

    def flag(self, about: Document, name: str) -> str | None:
        """Return today's name of a flag, or None (with a warning) where there is none."""
        if name in FLAGS:
            return name
        today = _LEGACY_FLAGS.get(name)
        if today:
            self.warn(about, f"flag {name!r} is imported as {today!r}")
        else:
            self.warn(about, f"flag {name!r} is unknown and left out; known: {', '.join(FLAGS)}")
        return today


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields that hold nothing, so that a file shows only what was authored."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], (), {})}


def today_name(flag: str) -> str:
    """Return the name that a flag of the older form goes by now, known or not."""
    return _LEGACY_FLAGS.get(flag, flag)
