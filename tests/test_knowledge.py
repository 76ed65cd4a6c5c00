"""What an NPC file becomes in the knowledge store, what turns read of it, and how it heals."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.knowledge import Briefing, Interpretation, Knowledge, KnowledgeError, documents_of
from engine.npc import NPC, NPCRegistry, load_folder, read_npc
from engine.prompt import LORE_FACTS
from rag.documents import Document
from rag.store import KnowledgeCorrupt, KnowledgeUnavailable, SyncReport
from tests.engines import KEEPER, SHIPPED, keeper, keeper_data, korean_keeper_data, registry_of
from tests.fakes import WordEmbedder

FILES = sorted(SHIPPED.glob("*.json"))
FACTS = [f"Fact {number} of the rock." for number in range(LORE_FACTS + 3)]


class WatchedEmbedder(WordEmbedder):
    """Hashed words; calls `before` with the texts of each batch, which may raise."""

    def __init__(self) -> None:
        self.before: Callable[[Sequence[str]], object] = lambda texts: None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.before(texts)
        return super().encode(texts)


@pytest.fixture
def embedder() -> WatchedEmbedder:
    return WatchedEmbedder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chroma"


@pytest.fixture
def knowledge(folder: Path, embedder: WatchedEmbedder) -> Iterator[Knowledge]:
    opened = Knowledge(folder, embedder)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shipped() -> NPCRegistry:
    return load_folder(SHIPPED)


@pytest.fixture(scope="module")
def shipped_knowledge(
    shipped: NPCRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Knowledge]:
    opened = Knowledge(tmp_path_factory.mktemp("shipped") / "chroma", WordEmbedder())
    opened.sync(shipped)
    yield opened
    opened.close()


def of_type(documents: Sequence[Document], type_: str) -> list[Document]:
    return [document for document in documents if document.type == type_]


def ids(npc: NPC) -> set[str]:
    return {document.id for document in documents_of(npc)}


def gossip(**changes: Any) -> NPCRegistry:
    """Return the small NPC with more lore than a prompt takes."""
    return registry_of(keeper_data(**{"lore": FACTS, **changes}))


# --- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_fact_description_and_flag_of_a_file_is_one_document(file: Path) -> None:
    npc = read_npc(file)
    documents = list(documents_of(npc))
    assert [each.text for each in of_type(documents, "lore")] == list(npc.lore)
    assert {each.quest_stage: each.text for each in of_type(documents, "description")} == {
        name: stage.description for name, stage in npc.stages.items() if stage.description
    }
    flags = of_type(documents, "flag")
    assert {(each.quest_stage, each.flag_name): (each.text, each.value) for each in flags} == {
        (name, flag): (rule.text, rule.value or "")
        for name, stage in npc.stages.items()
        for flag, rule in stage.flags.items()
    }
    assert flags
    assert {(each.npc_id, each.lang) for each in documents} == {(npc.id, npc.language)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_read_again_gives_the_same_ids_in_the_same_order(file: Path) -> None:
    first, again = (
        [document.id for document in documents_of(npc)] for npc in map(read_npc, [file] * 2)
    )
    assert first == again


def test_no_two_documents_of_the_shipped_files_share_an_id(shipped: NPCRegistry) -> None:
    documents = [document for npc in shipped.all() for document in documents_of(npc)]
    assert len({document.id for document in documents}) == len(documents)


def test_lore_holds_at_any_stage() -> None:
    lore = of_type(list(documents_of(keeper())), "lore")
    assert [document.quest_stage for document in lore] == ["any"]


def test_what_is_not_written_makes_no_document() -> None:
    data = keeper_data(lore=[])
    data["stages"]["closed"] |= {"description": "", "flags": {}}
    data["stages"]["open"]["flags"]["give_hint"]["value"] = None
    (npc,) = registry_of(data).all()
    documents = list(documents_of(npc))
    assert [(each.type, each.quest_stage) for each in documents] == [
        ("description", "open"),
        ("flag", "open"),
    ]
    assert documents[1].value == ""


def test_changing_one_fact_changes_its_id_alone() -> None:
    before, after = ids(keeper(lore=FACTS)), ids(keeper(lore=["Another.", *FACTS[1:]]))
    assert (len(before - after), len(after - before)) == (1, 1)


def test_what_is_no_document_changes_no_id() -> None:
    data = keeper_data()
    data["persona"]["backstory"] = "Another life."
    data["forbidden"] = []
    data["stages"]["closed"]["turns"] = []
    data["stages"]["closed"]["flags"]["give_item"]["when"] = {"min_trust": 0.9}
    (npc,) = registry_of(data).all()
    assert ids(npc) == ids(keeper())


def test_the_same_words_in_another_language_are_other_documents() -> None:
    # The Korean keeper's lore is still in English, word for word.
    english, korean = registry_of(keeper_data(), korean_keeper_data()).all()
    assert english.lore == korean.lore
    assert not ids(english) & ids(korean)
    assert {document.lang for document in documents_of(korean)} == {"ko"}


# --- what turns read ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_briefing_is_what_the_file_says_first(file: Path, shipped_knowledge: Knowledge) -> None:
    npc = read_npc(file)
    for stage in npc.quest_stages:
        expected = Briefing(npc.lore[:LORE_FACTS], npc.stage(stage).description)
        assert shipped_knowledge.briefing(npc, stage) == expected


def test_briefing_takes_lore_in_authored_order_and_no_more_than_a_prompt_holds(
    knowledge: Knowledge,
) -> None:
    registry = gossip()
    knowledge.sync(registry)
    briefing = knowledge.briefing(registry.get(KEEPER), "closed")
    assert briefing.lore == tuple(FACTS[:LORE_FACTS])
    assert len(FACTS) > LORE_FACTS


def test_briefing_is_the_same_for_every_turn(
    knowledge: Knowledge, folder: Path, embedder: WatchedEmbedder
) -> None:
    registry = gossip()
    npc = registry.get(KEEPER)
    knowledge.sync(registry)
    first = knowledge.briefing(npc, "closed")
    knowledge.interpret(npc, "closed", ["give_item", "give_hint"], "Tell me of fact 6.")
    knowledge.sync(registry)
    assert knowledge.briefing(npc, "closed") == first
    knowledge.close()
    again = Knowledge(folder, embedder)
    again.sync(registry)
    assert again.briefing(npc, "closed") == first
    again.close()


def test_briefing_follows_the_file_when_its_lore_is_put_in_another_order(
    knowledge: Knowledge,
) -> None:
    knowledge.sync(gossip())
    turned = gossip(lore=FACTS[::-1])
    assert knowledge.sync(turned).added == 0
    briefing = knowledge.briefing(turned.get(KEEPER), "closed")
    assert briefing.lore == tuple(FACTS[::-1][:LORE_FACTS])


def test_briefing_without_a_scene_takes_that_of_any_stage(knowledge: Knowledge) -> None:
    data = keeper_data()
    data["stages"]["open"]["description"] = ""
    data["stages"]["any"]["description"] = "A rock in the sea."
    registry = registry_of(data)
    knowledge.sync(registry)
    npc = registry.get(KEEPER)
    assert knowledge.briefing(npc, "open").scene == "A rock in the sea."
    assert knowledge.briefing(npc, "closed").scene == "The door is shut."


def test_each_language_of_an_npc_reads_its_own_documents(knowledge: Knowledge) -> None:
    korean = korean_keeper_data()
    korean["lore"] = ["등대가 한 번 꺼졌다."]
    korean["stages"]["closed"]["description"] = "문이 닫혀 있다."
    registry = registry_of(keeper_data(), korean)
    knowledge.sync(registry)
    said = {}
    for language in ("en", "ko"):
        npc = registry.get(KEEPER, language)
        action = knowledge.interpret(npc, "closed", ["give_item"])["give_item"]
        said[language] = (knowledge.briefing(npc, "closed"), action)
    assert said == {
        "en": (
            Briefing(("The light went out once.",), "The door is shut."),
            Interpretation("give_item", "brass_key", "Ada hands over the brass key.", "exact"),
        ),
        "ko": (
            Briefing(("등대가 한 번 꺼졌다.",), "문이 닫혀 있다."),
            Interpretation("give_item", "brass_key", "에이다가 놋쇠 열쇠를 건넨다.", "exact"),
        ),
    }


def test_nothing_is_read_before_the_first_sync(knowledge: Knowledge) -> None:
    with pytest.raises(KnowledgeError, match="not filled"):
        knowledge.briefing(keeper(), "closed")


def test_first_sync_that_fails_leaves_nothing_to_read(
    knowledge: Knowledge, embedder: WatchedEmbedder
) -> None:
    embedder.before = refuse
    with pytest.raises(KnowledgeError, match="out of memory"):
        knowledge.sync(gossip())
    with pytest.raises(KnowledgeError, match="not filled"):
        knowledge.interpret(keeper(), "closed", ["give_item"])


def test_closed_knowledge_says_so(knowledge: Knowledge) -> None:
    knowledge.sync(gossip())
    knowledge.close()
    with pytest.raises(KnowledgeError, match="closed"):
        knowledge.briefing(keeper(), "closed")


# --- damage ---------------------------------------------------------------------------------------


def refuse(texts: Sequence[str]) -> None:
    raise MemoryError("out of memory")


def garbage(folder: Path) -> None:
    (folder / "chroma.sqlite3").write_bytes(b"garbage " * 1000)


def emptied(folder: Path) -> None:
    os.truncate(folder / "chroma.sqlite3", 0)


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES = [garbage, emptied, deleted]


def files_in(folder: Path) -> dict[str, int]:
    """Return the size of every file below `folder`."""
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_reads_of_a_turn_report_damage_and_repair_nothing(
    damage: Callable[[Path], None],
    knowledge: Knowledge,
    folder: Path,
    embedder: WatchedEmbedder,
) -> None:
    knowledge.sync(gossip())
    damage(folder)
    before = files_in(folder)
    embedder.before = refuse
    reads: list[Callable[[], object]] = [
        lambda: knowledge.briefing(keeper(), "closed"),
        lambda: knowledge.interpret(keeper(), "closed", ["give_item"], "The key!"),
        knowledge.count,
    ]
    for read in reads * 2:
        with pytest.raises(KnowledgeCorrupt):
            read()
    assert files_in(folder) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_sync_makes_a_damaged_store_anew(
    damage: Callable[[Path], None],
    knowledge: Knowledge,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = gossip()
    npc = registry.get(KEEPER)
    first = knowledge.sync(registry)
    briefing = knowledge.briefing(npc, "closed")
    damage(folder)
    with caplog.at_level(logging.WARNING, logger="engine.knowledge"):
        assert knowledge.sync(registry) == first
    assert "opened again" in caplog.text
    assert knowledge.briefing(npc, "closed") == briefing
    assert knowledge.count() == first.added
    assert knowledge.sync(registry) == SyncReport(added=0, removed=0, kept=first.added)


def test_sync_of_a_sound_store_opens_nothing_and_embeds_nothing(
    knowledge: Knowledge, embedder: WatchedEmbedder
) -> None:
    report = knowledge.sync(gossip())
    embedder.before = refuse
    assert knowledge.sync(gossip()).kept == report.added


def test_turns_are_refused_while_a_damaged_store_is_filled_again(
    knowledge: Knowledge, folder: Path, embedder: WatchedEmbedder
) -> None:
    registry = gossip()
    knowledge.sync(registry)
    garbage(folder)
    embedded: list[str] = []

    def play_a_turn(texts: Sequence[str]) -> None:
        embedded.extend(texts)
        with pytest.raises(KnowledgeError):
            knowledge.briefing(keeper(), "closed")

    embedder.before = play_a_turn
    knowledge.sync(registry)
    assert set(FACTS) <= set(embedded)
    assert knowledge.briefing(keeper(), "closed").lore == tuple(FACTS[:LORE_FACTS])


def test_repair_that_cannot_be_done_yet_is_tried_again_by_the_next_sync(
    knowledge: Knowledge, folder: Path
) -> None:
    registry = gossip()
    first = knowledge.sync(registry)
    deleted(folder)
    folder.write_text("a file where a folder should be")
    for _ in range(2):
        with pytest.raises(KnowledgeUnavailable):
            knowledge.sync(registry)
    with pytest.raises(KnowledgeError, match="not filled"):
        knowledge.briefing(keeper(), "closed")
    folder.unlink()
    assert knowledge.sync(registry) == first
    assert knowledge.briefing(keeper(), "closed").lore == tuple(FACTS[:LORE_FACTS])


def test_sync_that_fails_on_a_sound_store_leaves_what_was_there(
    knowledge: Knowledge, embedder: WatchedEmbedder
) -> None:
    registry = gossip()
    report = knowledge.sync(registry)
    embedder.before = refuse
    with pytest.raises(KnowledgeError, match="out of memory"):
        knowledge.sync(gossip(lore=["Something new."]))
    assert knowledge.count() == report.added
    assert knowledge.briefing(keeper(), "closed").lore == tuple(FACTS[:LORE_FACTS])
