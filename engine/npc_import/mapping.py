"""From a list of older documents to NPCs: who the NPC is, and where a player starts with it.

Knows nothing of files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import NPCFileError
from engine.npc import NPC, parse_npc
from engine.npc_import.documents import (
    Document,
    Lore,
    PersonaDoc,
    fault,
    parse_document,
    unknown_fields,
)
from engine.npc_import.forbidden import forbidden_of
from engine.npc_import.source import Source, given
from engine.npc_import.stages import stage_of
from engine.schema import ANY_STAGE
from engine.text import language_of

DEFAULT_STAGE = "not_started"
_LORE_LENGTH = 600


@dataclass(frozen=True)
class ImportResult:
    """The NPCs, in the source's order, and what a designer should look at, a sentence each."""

    npcs: tuple[NPC, ...]
    warnings: tuple[str, ...]


def import_documents(
    documents: Sequence[Mapping[str, Any]], *, source: str = "documents"
) -> ImportResult:
    """Turn a flat list of documents into NPCs, one for each `npc_id`.

    Args:
        documents: as the module says; unknown fields are warned about.
        source: what error messages call the list.

    Raises:
        NPCFileError: naming the document's id and the field; also for an empty list.
    """
    by_npc: dict[str, Source] = {}
    ids: set[str] = set()
    for number, raw in enumerate(documents, start=1):
        document = parse_document(raw, number, source)
        if document.id in ids:
            raise fault(source, document.id, "id", "stands on two documents")
        ids.add(document.id)
        by_npc.setdefault(document.npc_id, Source(document.npc_id, [])).documents.append(document)
    if not by_npc:
        raise NPCFileError(f"{source}: holds no documents", path=source)
    npcs = tuple(_npc(one, source) for one in by_npc.values())
    return ImportResult(npcs, tuple(text for one in by_npc.values() for text in one.warnings))


def _npc(source: Source, file: str) -> NPC:
    """Put one NPC together."""
    source.language = language_of(" ".join(_texts(source.documents)))
    for document in source.documents:
        for unknown in unknown_fields(document):
            source.warn(document, f"{unknown} has no counterpart and is left out")
    persona = _persona(source, file)
    named = dict.fromkeys(one.quest_stage for one in source.documents)
    stages = [name for name in named if name != ANY_STAGE] or [DEFAULT_STAGE]
    source.warn(None, f"names no first stage; players start at {stages[0]!r}")
    source.warn(None, "names no first standing; trust and relationship start at 0")
    built = {name: stage_of(source, name, stages) for name in [*stages, ANY_STAGE]}
    if not all("fallback" in built[name] for name in stages):
        built[ANY_STAGE].setdefault("fallback", [{"text": source.made_line(None)}])
    if not built[ANY_STAGE]:
        del built[ANY_STAGE]
    data = {
        "schema_version": 1,
        "id": source.npc_id,
        "language": source.language,
        "persona": persona,
        "defaults": {
            "quest_stage": stages[0],
            "location": _location(source),
            "trust": 0.0,
            "relationship": 0.0,
        },
        "lore": [part for one in source.of(Lore) for part in _wrapped(one.content)],
        "stages": built,
        "forbidden": forbidden_of(source),
    }
    npc = parse_npc(given(data), path=f"{file}: {source.npc_id}")
    _warn_unreachable(source, npc)
    return npc


def _texts(documents: Iterable[Document]) -> Iterable[str]:
    """Yield what people wrote to be read, which tells the language."""
    for one in documents:
        for name in ("backstory", "content", "description", "npc", "player"):
            yield getattr(one, name, None) or ""


def _wrapped(text: str) -> list[str]:
    """Cut a long text at spaces into lines that a lore entry may hold."""
    return textwrap.wrap(text, _LORE_LENGTH, break_on_hyphens=False)


def _persona(source: Source, file: str) -> dict[str, Any]:
    found = source.of(PersonaDoc)
    if len(found) > 1:
        raise fault(file, found[1].id, "type", f"{source.npc_id!r} has a second npc_persona")
    source.name = found[0].persona_name if found else source.npc_id.replace("_", " ").title()[:64]
    if not found:
        source.warn(None, f"has no npc_persona; its name is taken to be {source.name!r}")
    backstory = found[0].backstory if found else None
    if not backstory:
        lore = [one.content for one in source.of(Lore)]
        backstory = lore[0] if lore else source.name
        source.warn(None, "has no backstory; its first lore (or name) stands in. Write one")
    persona = {"name": source.name, "backstory": backstory}
    if found:
        persona |= found[0].model_dump(mode="json", include={"style", "traits"})
    return given(persona)


def _location(source: Source) -> str:
    named = list(dict.fromkeys(one.location for one in source.documents if one.location))
    if len(named) > 1:
        source.warn(None, f"names several locations; only {named[0]!r} is kept, as the first")
    if not named:
        source.warn(None, "names no location; it is 'unknown'")
    return named[0] if named else "unknown"


def _warn_unreachable(source: Source, npc: NPC) -> None:
    """Point out flags that ask for more than talk at the first stage can ever earn."""
    start = npc.stage(npc.defaults.quest_stage)
    for flag, rule in start.flags.items():
        for name in ("trust", "relationship"):
            needed = getattr(rule.when, f"min_{name}")
            most = getattr(start.delta_policy, name).max
            if needed is not None and needed > getattr(npc.defaults, name) + most:
                source.warn(
                    None,
                    f"{flag} needs {name} {needed:g} but a stage earns at most {most:g}: "
                    f"raise defaults.{name} or let the game send it",
                )
