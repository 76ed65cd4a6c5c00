"""From a fired flag to what it does in the game, and from an NPC to what it knows.

Exact keys come first, meaning second, and where nothing is written nothing is made up.
Knows nothing of Chroma, prompts or probabilities; the gate has long decided which flags fire.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rag.documents import ANY_STAGE, Document

if TYPE_CHECKING:
    from rag.store import KnowledgeStore

Source = Literal["exact", "any_stage", "nearest", "none"]


@dataclass(frozen=True)
class Interpretation:
    """What a flag does for one NPC at one stage.

    Args:
        flag: the flag's name.
        value: the game's own word for it, or None where the document gives none.
        text: the sentence for people.
        source: which step found it; "none" says that no document explains this flag.
        distance: cosine distance (0 to 2) of a "nearest" document, else None.
    """

    flag: str
    value: str | None
    text: str
    source: Source
    distance: float | None = None


def interpret(
    store: KnowledgeStore,
    npc_id: str,
    quest_stage: str,
    flags: Iterable[str],
    *,
    lang: str | None = None,
    utterance: str = "",
) -> dict[str, Interpretation]:
    """Say what each of `flags` does for this NPC at this stage.

    In this order: the document of this stage, the one of the stage "any", the document of another
    stage that is nearest in meaning to `utterance` (without one: to the flag and stage), none. At
    each step a document in `lang` comes before one in another language.

    Returns:
        One interpretation per flag, in the order asked.

    Raises:
        KnowledgeError: the index cannot be read.
    """
    asked = list(dict.fromkeys(flags))
    if not asked:
        return {}
    # One lookup for all flags: an NPC has tens of flag documents, and a lookup costs more than they.
    documents = store.get(npc_id, type="flag")
    found: dict[str, Interpretation] = {}
    for flag in asked:
        own = [document for document in documents if document.flag_name == flag]
        found[flag] = _by_stage(flag, own, quest_stage, lang) or _by_meaning(
            store, npc_id, flag, own, lang, utterance or f"{flag} {quest_stage}"
        )
    return found


def lore(
    store: KnowledgeStore,
    npc_id: str,
    quest_stage: str,
    lang: str,
    utterance: str = "",
    n: int = 4,
) -> list[str]:
    """Return at most `n` pieces of the NPC's lore that hold at this stage, in one language.

    Without an utterance: what is written for the stage first, then what holds at any, each in the
    authored order; the same list every time, so that the prompt's prefix can be reused. With one:
    the nearest in meaning first.

    Raises:
        KnowledgeError: the index cannot be read.
    """
    pieces = _in_one_language(store.get(npc_id, type="lore"), lang)
    if utterance and pieces and n > 0:
        hits = store.nearest(
            utterance, len(pieces), npc_id=npc_id, type="lore", lang=pieces[0].lang
        )
        pieces = [hit.document for hit in hits]
        return [piece.text for piece in pieces if piece.quest_stage in (quest_stage, ANY_STAGE)][:n]
    stages = dict.fromkeys((quest_stage, ANY_STAGE))
    ordered = [piece.text for stage in stages for piece in pieces if piece.quest_stage == stage]
    return ordered[: max(n, 0)]


def description(store: KnowledgeStore, npc_id: str, quest_stage: str, lang: str) -> str:
    """Return the description of the stage, else the one for any stage, else "".

    Raises:
        KnowledgeError: the index cannot be read.
    """
    documents = store.get(npc_id, type="description")
    for stage in (quest_stage, ANY_STAGE):
        chosen = _prefer([each for each in documents if each.quest_stage == stage], lang)
        if chosen:
            return chosen.text
    return ""


def _by_stage(
    flag: str, own: Sequence[Document], quest_stage: str, lang: str | None
) -> Interpretation | None:
    steps: tuple[tuple[Source, str], ...] = (("exact", quest_stage), ("any_stage", ANY_STAGE))
    for source, stage in steps:
        chosen = _prefer([each for each in own if each.quest_stage == stage], lang)
        if chosen:
            return Interpretation(flag, chosen.value or None, chosen.text, source)
    return None


def _by_meaning(
    store: KnowledgeStore,
    npc_id: str,
    flag: str,
    own: Sequence[Document],
    lang: str | None,
    query: str,
) -> Interpretation:
    """Pick the nearest of the documents for other stages; asks the index only if there are any."""
    if own:
        spoken = lang if any(each.lang == lang for each in own) else None
        hits = store.nearest(query, 1, npc_id=npc_id, flag_name=flag, type="flag", lang=spoken)
        if hits:
            nearest = hits[0].document
            return Interpretation(
                flag, nearest.value or None, nearest.text, "nearest", hits[0].distance
            )
    text = f"no interpretation: no document explains {flag} for {npc_id}"
    return Interpretation(flag, None, text, "none")


def _prefer(documents: Sequence[Document], lang: str | None) -> Document | None:
    """Return the first document in `lang`, else the first of all, else None."""
    return next((each for each in documents if each.lang == lang), next(iter(documents), None))


def _in_one_language(documents: Sequence[Document], lang: str) -> list[Document]:
    """Keep the documents in `lang`, or, where there is none, those in the first one's language."""
    chosen = _prefer(documents, lang)
    return [each for each in documents if chosen and each.lang == chosen.lang]
