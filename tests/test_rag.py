"""The knowledge index on real Chroma, with an embedder that hashes words."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.types import DefaultEmbeddingFunction
from chromadb.errors import InternalError
from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2
from hypothesis import given, settings
from hypothesis import strategies as st

from rag import files, index
from rag import store as store_module
from rag.documents import Document, from_stored
from rag.interpret import Interpretation, description, interpret, lore
from rag.rows import key_filter
from rag.store import (
    KnowledgeCorrupt,
    KnowledgeError,
    KnowledgeStore,
    KnowledgeUnavailable,
    SyncReport,
)

DIMENSION = 64


class WordEmbedder:
    """Unit vectors of hashed words; remembers what it was asked for."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts.extend(texts)
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                digest = hashlib.md5(word.encode()).digest()
                vector[int.from_bytes(digest[:4], "big") % self.dimension] += 1.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms == 0, 1.0, norms)


def doc(text: str, **keys: str) -> Document:
    given_keys = {
        "npc_id": "silvia",
        "quest_stage": "any",
        "flag_name": "",
        "type": "lore",
        "lang": "en",
        "value": "",
    }
    return Document(text=text, **{**given_keys, **keys})


def flag(text: str, name: str, stage: str, **keys: str) -> Document:
    return doc(text, **{"flag_name": name, "quest_stage": stage, "type": "flag", **keys})


LORE = [doc(f"fact number {number} of the old factory") for number in range(5)]


@pytest.fixture
def embed() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "knowledge"


@pytest.fixture
def opened(folder: Path, embed: WordEmbedder) -> Iterator[Callable[..., KnowledgeStore]]:
    """Open the folder as often as wanted; everything is closed at the end."""
    stores: list[KnowledgeStore] = []

    def open_(embedder_id: str = "words", using: Any = None, rebuild: bool = False) -> Any:
        make = KnowledgeStore.open_or_rebuild if rebuild else KnowledgeStore.open
        stores.append(make(folder, using or embed, embedder_id))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[..., KnowledgeStore]) -> KnowledgeStore:
    return opened()


def texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def database(folder: Path) -> Path:
    return folder / "chroma.sqlite3"


# Documents


def test_document_id_depends_on_every_field_and_nothing_else() -> None:
    base = flag("gives it", "give_item", "done", value="necklace")
    assert base.id == replace(base).id
    others = {replace(base, **{field.name: "other"}).id for field in _free_fields()}
    assert len(others | {base.id}) == len(_free_fields()) + 1


def _free_fields() -> list[Any]:
    return [field for field in fields(Document) if field.name != "type"]


def test_fields_that_run_together_give_different_ids() -> None:
    assert doc("a", npc_id="bc").id != doc("ab", npc_id="c").id


def test_document_metadata_is_flat_text_without_the_text_itself() -> None:
    metadata = doc("a").metadata
    assert "text" not in metadata
    assert all(isinstance(value, str) for value in metadata.values())
    assert from_stored("a", metadata) == doc("a")


def test_document_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        doc("a").text = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text": ""}, "text"),
        ({"npc_id": ""}, "npc_id"),
        ({"quest_stage": ""}, "quest_stage"),
        ({"type": "rumour"}, "type"),
        ({"type": "flag"}, "flag_name"),
        ({"flag_name": "give_item"}, "flag_name"),
        ({"value": 3}, "value"),
        ({"lang": None}, "lang"),
        ({"text": "half \ud800"}, "text"),
    ],
)
def test_unusable_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        replace(doc("a"), **changes)


# Sync


def test_sync_twice_embeds_nothing_the_second_time(
    store: KnowledgeStore, embed: WordEmbedder
) -> None:
    assert store.sync(LORE) == SyncReport(added=5, removed=0, kept=0)
    embed.texts.clear()
    assert store.sync(LORE) == SyncReport(added=0, removed=0, kept=5)
    assert embed.texts == []
    assert store.count() == 5


def test_documents_survive_closing_and_opening(
    opened: Callable[..., KnowledgeStore], embed: WordEmbedder
) -> None:
    first = opened()
    first.sync(LORE)
    hits = first.nearest("fact number 3", 3)
    first.close()
    again = opened()
    embed.texts.clear()
    assert again.sync(LORE) == SyncReport(added=0, removed=0, kept=5)
    assert embed.texts == []
    assert texts(again.get("silvia")) == texts(LORE)
    assert again.nearest("fact number 3", 3) == hits


def test_sync_removes_stale_documents_and_embeds_only_new_ones(
    store: KnowledgeStore, embed: WordEmbedder
) -> None:
    store.sync(LORE)
    embed.texts.clear()
    assert store.sync([*LORE[1:], doc("new")]) == SyncReport(added=1, removed=1, kept=4)
    assert embed.texts == ["new"]
    assert texts(store.get("silvia")) == [*texts(LORE[1:]), "new"]


def test_sync_with_nothing_empties_the_index(store: KnowledgeStore) -> None:
    store.sync(LORE)
    assert store.sync([]) == SyncReport(added=0, removed=5, kept=0)
    assert store.count() == 0
    assert store.get("silvia") == []
    assert store.nearest("fact", 3) == []


def test_the_same_document_twice_is_stored_once(store: KnowledgeStore) -> None:
    assert store.sync([LORE[0], LORE[0]]) == SyncReport(added=1, removed=0, kept=0)


def test_sync_larger_than_a_batch_stores_everything(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BATCH", 4)
    many = [doc(f"fact {number}") for number in range(11)]
    assert store.sync(many) == SyncReport(added=11, removed=0, kept=0)
    assert texts(store.get("silvia")) == texts(many)
    assert store.sync(many[:1]) == SyncReport(added=0, removed=10, kept=1)


def test_order_is_that_of_the_last_sync_however_the_index_came_to_be(
    store: KnowledgeStore, embed: WordEmbedder
) -> None:
    store.sync(LORE)
    embed.texts.clear()
    reordered = [doc("first of all"), *reversed(LORE)]
    assert store.sync(reordered).kept == 5
    assert embed.texts == ["first of all"]
    assert texts(store.get("silvia")) == texts(reordered)


def test_change_in_one_npc_rewrites_no_other_npcs_rows(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [replace(each, npc_id="bruno") for each in LORE]
    store.sync([*LORE, *others])
    rewritten: list[Any] = []
    monkeypatch.setattr(store_module, "_update", lambda found, places: rewritten.extend(places))
    store.sync([doc("new"), *LORE, *others])
    assert {each.document.npc_id for each in rewritten} == {"silvia"}


def test_row_whose_text_was_altered_is_made_anew(store: KnowledgeStore) -> None:
    store.sync(LORE)
    collection = store._index.check()
    vectors = WordEmbedder()(["forged"])
    collection.update(ids=[LORE[0].id], documents=["forged"], embeddings=vectors)
    assert store.sync(LORE) == SyncReport(added=1, removed=0, kept=4)
    assert texts(store.get("silvia")) == texts(LORE)


@pytest.mark.parametrize("change", ["id", "dimension"])
def test_index_of_another_embedder_is_emptied(
    change: str, opened: Callable[..., KnowledgeStore], caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    first.sync(LORE)
    first.close()
    caplog.set_level("INFO", logger="rag")
    other = opened("other") if change == "id" else opened(using=WordEmbedder(DIMENSION * 2))
    assert "emptied" in caplog.text
    assert other.count() == 0
    assert other.sync(LORE) == SyncReport(added=5, removed=0, kept=0)
    assert len(other.nearest("fact", 9)) == 5


# Lookup


def test_get_matches_all_keys_that_are_given(store: KnowledgeStore) -> None:
    wanted = flag("gives it", "give_item", "done", lang="ko")
    store.sync(
        [
            wanted,
            replace(wanted, npc_id="bruno"),
            replace(wanted, quest_stage="any"),
            replace(wanted, flag_name="give_hint"),
            replace(wanted, lang="en"),
            doc("lore", quest_stage="done", lang="ko"),
        ]
    )
    assert store.get("silvia", "done", "give_item", "flag", "ko") == [wanted]
    assert len(store.get("silvia", type="flag")) == 4
    assert store.get("silvia", "missing") == []
    assert store.get("") == []


def test_nearest_comes_nearest_first_within_its_filters(store: KnowledgeStore) -> None:
    near, far = doc("the gold necklace of mother"), doc("the gold mine")
    store.sync([far, near, doc("the gold necklace of mother", npc_id="bruno")])
    hits = store.nearest("gold necklace of mother", 5, npc_id="silvia")
    assert [hit.document for hit in hits] == [near, far]
    assert 0.0 <= hits[0].distance < hits[1].distance <= 2.0
    assert store.nearest(near.text, 1, npc_id="silvia")[0].distance == pytest.approx(0, abs=1e-5)
    assert store.nearest("gold", 0) == []


def test_distance_is_never_below_zero(store: KnowledgeStore) -> None:
    store.sync(LORE)
    assert all(store.nearest(each.text, 1)[0].distance >= 0.0 for each in LORE)


def test_perfect_match_among_many_documents_alike_is_found(store: KnowledgeStore) -> None:
    store.sync([doc(f"word{number} common", npc_id=f"npc{number % 300}") for number in range(600)])
    hits = store.nearest("word7 common", 5, npc_id="npc7")
    assert [hit.document.text for hit in hits] == ["word7 common", "word307 common"]
    assert hits[0].distance == 0.0


def test_equally_near_documents_come_in_the_order_of_the_sync(store: KnowledgeStore) -> None:
    documents = [doc("same words", quest_stage=stage) for stage in ("b", "a", "c")]
    store.sync(documents)
    assert [hit.document for hit in store.nearest("same", 2)] == documents[:2]


def test_text_that_says_nothing_is_equally_far_from_all(store: KnowledgeStore) -> None:
    store.sync(LORE)
    assert {hit.distance for hit in store.nearest("", 9)} == {1.0}


HOSTILE = [
    "it's",
    'say "hi"',
    "$eq",
    "$and",
    '{"$ne": ""}',
    "a' OR '1'='1",
    "실비아",
    "naïve 🗝️",
    "a\x00b",
    "back\\slash",
    "%",
    "_",
    " ",
]


def test_hostile_ids_match_only_themselves(store: KnowledgeStore) -> None:
    store.sync([doc(f"about {name}", npc_id=name, quest_stage=name) for name in HOSTILE])
    for name in HOSTILE:
        assert texts(store.get(name, name)) == [f"about {name}"]
        hits = store.nearest("about", 99, npc_id=name, quest_stage=name)
        assert [hit.document.npc_id for hit in hits] == [name]


def test_half_a_character_in_a_filter_matches_nothing(store: KnowledgeStore) -> None:
    store.sync(LORE)
    assert store.get("silvia\ud800") == []
    assert store.nearest("fact", 3, npc_id="\ud800") == []


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_filter_values_are_never_read_as_operators(npc_id: str, stage: str) -> None:
    where = key_filter(npc_id=npc_id, quest_stage=stage)
    try:
        (npc_id + stage).encode()
    except UnicodeEncodeError:
        assert where is None
    else:
        assert where == {"$and": [{"npc_id": {"$eq": npc_id}}, {"quest_stage": {"$eq": stage}}]}


def test_many_threads_read_while_one_writes(store: KnowledgeStore) -> None:
    store.sync(LORE)
    faults: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            for _ in range(10):
                work()
        except BaseException as exc:
            faults.append(exc)

    def write() -> None:
        store.sync([*LORE, doc(uuid.uuid4().hex)])

    def read() -> None:
        assert texts(store.get("silvia", type="lore"))[:5] == texts(LORE)
        assert store.nearest("fact", 2)

    works = [read, read, read, write]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


# Embedder


def test_chromas_own_embedder_and_the_network_are_never_touched(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[..., KnowledgeStore]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("must not be used")

    monkeypatch.setattr(DefaultEmbeddingFunction, "__init__", refuse)
    monkeypatch.setattr(DefaultEmbeddingFunction, "__call__", refuse)
    monkeypatch.setattr(ONNXMiniLM_L6_V2, "__init__", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "True")
    monkeypatch.setenv("CHROMA_API_IMPL", "chromadb.api.fastapi.FastAPI")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            store = opened()
            store.sync(LORE)
            assert store.nearest("fact", 1)
            assert store.count() == 5
            store.close()


def test_chroma_asking_for_an_embedding_is_an_error(store: KnowledgeStore) -> None:
    with pytest.raises(KnowledgeError, match="must be embedded"):
        store._index.check().query(query_texts=["fact"])


def test_failing_embedder_is_a_knowledge_error(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(texts: Sequence[str]) -> np.ndarray:
        raise MemoryError("too much")

    store.sync(LORE)
    monkeypatch.setattr(store, "_embed", fail)
    with pytest.raises(KnowledgeError, match="embedder failed: too much"):
        store.nearest("fact", 1)
    with pytest.raises(KnowledgeError, match="embedder failed"):
        store.sync([doc("new")])


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        (np.zeros((1, DIMENSION + 1)), "shape"),
        (np.zeros((2, DIMENSION)), "shape"),
        (np.zeros(DIMENSION), "shape"),
        (np.full((1, DIMENSION), np.nan), "finite"),
    ],
)
def test_unusable_vectors_are_refused(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch, vectors: np.ndarray, complaint: str
) -> None:
    store.sync(LORE)
    monkeypatch.setattr(store, "_embed", lambda texts: vectors)
    with pytest.raises(KnowledgeError, match=complaint):
        store.nearest("fact", 1)


# Damage


def garbage(folder: Path) -> None:
    database(folder).write_bytes(b"garbage " * 1000)


def truncated(folder: Path) -> None:
    os.truncate(database(folder), database(folder).stat().st_size // 2)


def cut_to_nothing(folder: Path) -> None:
    os.truncate(database(folder), 0)


def damaged_inside(folder: Path) -> None:
    size = database(folder).stat().st_size
    with database(folder).open("r+b") as file:
        file.seek(size // 8)
        file.write(b"\xff" * (size // 2))


def damaged_vectors(folder: Path) -> None:
    segment = next(entry for entry in folder.iterdir() if entry.is_dir())
    for name in ("index_metadata.pickle", "header.bin", "data_level0.bin"):
        (segment / name).write_bytes(b"garbage " * 100)


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES = [garbage, truncated, cut_to_nothing, damaged_inside, damaged_vectors, deleted]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_is_made_anew(
    damage: Callable[[Path], None], folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    first = opened()
    first.sync(LORE)
    first.close()
    damage(folder)
    again = opened(rebuild=True)
    again.sync(LORE)
    assert texts(again.get("silvia")) == texts(LORE)
    assert again.nearest(LORE[2].text, 1)[0].document == LORE[2]


def test_lost_vector_files_lose_nothing(
    folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    first = opened()
    first.sync(LORE)
    first.close()
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    again = opened()
    assert again.sync(LORE).kept == 5
    assert again.nearest(LORE[2].text, 1)[0].document == LORE[2]


def test_damage_is_reported_and_other_files_are_left_alone(
    folder: Path, opened: Callable[..., KnowledgeStore], caplog: pytest.LogCaptureFixture
) -> None:
    opened().close()
    garbage(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "photos").mkdir()
    with pytest.raises(KnowledgeCorrupt, match="damaged"):
        opened()
    assert database(folder).read_bytes().startswith(b"garbage")
    assert opened(rebuild=True).count() == 0
    assert "made anew" in caplog.text
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "photos").is_dir()


@pytest.mark.parametrize("damage", [garbage, truncated, cut_to_nothing, deleted])
def test_damage_while_running_is_an_error_and_can_be_repaired_in_the_same_process(
    damage: Callable[[Path], None], folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    running = opened()
    running.sync(LORE)
    damage(folder)
    for call in (
        lambda: running.get("silvia"),
        lambda: running.nearest("fact", 1),
        running.count,
        lambda: running.sync(LORE),
    ):
        with pytest.raises(KnowledgeCorrupt):
            call()
    repaired = opened(rebuild=True)
    assert repaired.sync(LORE).added == 5
    running.close()
    assert texts(repaired.get("silvia")) == texts(LORE)


def test_replaced_index_is_an_error_for_the_store_that_had_the_old_one(
    folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    old = opened()
    old.sync(LORE)
    folder.rename(folder.with_name("moved"))
    new = opened()
    assert new.count() == 0
    with pytest.raises(KnowledgeCorrupt, match="deleted or replaced"):
        old.get("silvia")


def test_second_store_on_a_folder_never_leaves_new_documents_out_in_silence(
    opened: Callable[..., KnowledgeStore],
) -> None:
    first = opened()
    first.sync(LORE[:2])
    second = opened()
    first.sync(LORE)
    assert len(second.get("silvia")) == 5
    with pytest.raises(KnowledgeCorrupt):
        second.nearest("fact", 9)
    assert len(opened().nearest("fact", 9)) == 5


def test_closing_one_of_two_stores_on_a_folder_leaves_the_other_open(
    opened: Callable[..., KnowledgeStore],
) -> None:
    first = opened()
    first.sync(LORE)
    second = opened()
    first.close()
    assert second.nearest("fact", 1)
    third = opened()
    second.close()
    assert third.nearest("fact", 1)
    assert third.count() == 5


def test_closed_store_says_so(store: KnowledgeStore) -> None:
    store.close()
    store.close()
    with pytest.raises(KnowledgeError, match="closed"):
        store.get("silvia")
    with pytest.raises(KnowledgeError, match="closed"):
        store.nearest("fact", 1)


def test_panic_in_chroma_is_a_knowledge_error(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it: not an Exception."""

    def panic(**kwargs: Any) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(store._index.check(), "get", panic)
    with pytest.raises(KnowledgeCorrupt, match="unwrap") as caught:
        store.get("silvia")
    assert isinstance(caught.value.__cause__, PanicException)


# Folders that cannot be used

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another_process(file: Path) -> Iterator[None]:
    command = [sys.executable, "-c", LOCKER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"locked"
        yield
        process.communicate()  # closes its input, and so ends it


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.3)


@pytest.mark.usefixtures("_impatient")
def test_locked_index_cannot_be_opened_and_is_not_deleted(
    folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    first = opened()
    first.sync(LORE)
    first.close()
    with (
        locked_by_another_process(database(folder)),
        pytest.raises(KnowledgeUnavailable, match="locked"),
    ):
        opened(rebuild=True)
    assert opened().count() == 5


@pytest.mark.usefixtures("_impatient")
def test_lock_while_running_is_an_error_until_it_is_gone(
    folder: Path, store: KnowledgeStore
) -> None:
    store.sync(LORE)
    with locked_by_another_process(database(folder)):
        for call in (
            lambda: store.get("silvia"),
            lambda: store.nearest("fact", 1),
            lambda: store.sync([]),
            store.count,
        ):
            with pytest.raises(KnowledgeUnavailable, match="lock"):
                call()
    waiting = store._index._given_up
    assert waiting is not None
    waiting.join()
    assert store.count() == 5


@pytest.mark.usefixtures("_impatient")
def test_write_does_not_wait_for_a_lock_inside_chroma(folder: Path, store: KnowledgeStore) -> None:
    with (
        locked_by_another_process(database(folder)),
        pytest.raises(KnowledgeUnavailable, match="locked"),
    ):
        store._index.write(lambda found, batch: pytest.fail("was called"), [])


@pytest.mark.usefixtures("_impatient")
def test_locked_store_can_be_closed(folder: Path, store: KnowledgeStore) -> None:
    with locked_by_another_process(database(folder)):
        with pytest.raises(KnowledgeUnavailable):
            store.count()
        store.close()


def test_path_that_is_a_file_is_unavailable(
    folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    folder.write_text("a file")
    with pytest.raises(KnowledgeUnavailable, match="needs a folder"):
        opened(rebuild=True)
    assert folder.read_text() == "a file"


@pytest.mark.parametrize(
    "complaint",
    [
        "(code: 8) attempt to write a readonly database",
        "(code: 13) database or disk is full",
        "(code: 14) unable to open database file",
        "(code: 5) database is locked",
    ],
)
def test_index_that_cannot_be_used_now_is_not_taken_for_damaged(
    complaint: str,
    folder: Path,
    opened: Callable[..., KnowledgeStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = opened()
    first.sync(LORE)
    first.close()

    def refuse(path: Path) -> None:
        raise InternalError(f"error returned from database: {complaint}")

    with monkeypatch.context() as patch:
        patch.setattr(index, "_start_system", refuse)
        with pytest.raises(KnowledgeUnavailable) as caught:
            opened(rebuild=True)
    assert complaint in str(caught.value)
    assert isinstance(caught.value.__cause__, InternalError)
    assert opened().count() == 5


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_index_without_write_permission_is_unavailable_and_kept(
    what: str, folder: Path, opened: Callable[..., KnowledgeStore]
) -> None:
    first = opened()
    first.sync(LORE)
    first.close()
    guarded = folder if what == "folder" else database(folder)
    mode = guarded.stat().st_mode
    guarded.chmod(mode & ~0o222)
    try:
        with pytest.raises(KnowledgeUnavailable):
            opened(rebuild=True)
    finally:
        guarded.chmod(mode)
    assert opened().count() == 5


# Interpretation

FLAGS = [
    flag("Silvia hands over the necklace", "give_item", "in_progress", value="gold_necklace"),
    flag("실비아가 목걸이를 건넨다", "give_item", "in_progress", value="gold_necklace", lang="ko"),
    flag("Silvia hands over a coin", "give_item", "any", value="coin"),
    flag("Silvia names the factory", "give_hint", "any", value="factory"),
    flag("the door opens", "unlock_hidden_path", "done", value="door"),
    flag("the tunnel under the river opens", "unlock_hidden_path", "later"),
    flag("Bruno opens the gate", "npc_action", "in_progress", npc_id="bruno"),
]


@pytest.fixture
def flags(store: KnowledgeStore) -> KnowledgeStore:
    store.sync(FLAGS)
    return store


def test_exact_stage_comes_before_any_stage(flags: KnowledgeStore) -> None:
    found = interpret(flags, "silvia", "in_progress", ["give_item"], lang="en")
    assert found == {
        "give_item": Interpretation(
            "give_item", "gold_necklace", "Silvia hands over the necklace", "exact"
        )
    }


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("ko", "실비아가 목걸이를 건넨다"),
        ("fr", "Silvia hands over the necklace"),
        (None, "Silvia hands over the necklace"),
    ],
)
def test_exact_stage_in_the_asked_language_else_in_any(
    flags: KnowledgeStore, lang: str | None, text: str
) -> None:
    found = interpret(flags, "silvia", "in_progress", ["give_item"], lang=lang)["give_item"]
    assert (found.text, found.source) == (text, "exact")


def test_stage_without_its_own_document_takes_that_of_any_stage(flags: KnowledgeStore) -> None:
    found = interpret(flags, "silvia", "unknown", ["give_item", "give_hint"], lang="ko")
    assert list(found) == ["give_item", "give_hint"]
    assert {each.source for each in found.values()} == {"any_stage"}
    assert found["give_hint"].value == "factory"


def test_document_of_another_stage_is_picked_by_the_utterance(flags: KnowledgeStore) -> None:
    found = interpret(
        flags, "silvia", "in_progress", ["unlock_hidden_path"], utterance="under the river"
    )["unlock_hidden_path"]
    assert (found.text, found.source) == ("the tunnel under the river opens", "nearest")
    assert found.value is None
    assert found.distance is not None
    assert 0.0 < found.distance < 1.0


def test_without_an_utterance_flag_and_stage_are_the_query(
    flags: KnowledgeStore, embed: WordEmbedder
) -> None:
    embed.texts.clear()
    found = interpret(flags, "silvia", "in_progress", ["unlock_hidden_path"])
    assert embed.texts == ["unlock_hidden_path in_progress"]
    assert found["unlock_hidden_path"].source == "nearest"


def test_flag_that_nothing_explains_is_not_made_up(flags: KnowledgeStore) -> None:
    found = interpret(flags, "silvia", "in_progress", ["npc_action"])["npc_action"]
    assert found.value is None
    assert found.source == "none"
    assert "no document explains npc_action for silvia" in found.text


def test_all_flags_take_one_lookup(flags: KnowledgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    read = flags._index.read

    def counted(work: Any) -> Any:
        calls.append(work)
        return read(work)

    monkeypatch.setattr(flags._index, "read", counted)
    interpret(flags, "silvia", "in_progress", ["give_item", "give_hint", "npc_action"])
    assert len(calls) == 1
    assert interpret(flags, "silvia", "in_progress", []) == {}
    assert len(calls) == 1


def test_lore_is_the_same_list_every_time_without_an_utterance(
    opened: Callable[..., KnowledgeStore],
) -> None:
    staged = doc("only now", quest_stage="now")
    documents = [
        *LORE,
        staged,
        doc("only later", quest_stage="later"),
        doc("한국어", lang="ko"),
        doc("not hers", npc_id="bruno"),
    ]
    first = opened()
    first.sync(documents[3:])
    first.sync(documents)
    expected = [staged.text, *texts(LORE)]
    assert lore(first, "silvia", "now", "en", n=9) == expected
    first.close()
    again = opened()
    assert lore(again, "silvia", "now", "en", n=9) == expected
    assert lore(again, "silvia", "now", "en") == expected[:4]
    assert lore(again, "silvia", "now", "en", n=0) == []
    assert lore(again, "silvia", "now", "ko") == ["한국어"]
    assert lore(again, "nobody", "now", "en") == []


def test_lore_follows_the_utterance_where_there_is_one(store: KnowledgeStore) -> None:
    store.sync([*LORE, doc("fact number 3 too late", quest_stage="later")])
    found = lore(store, "silvia", "now", "en", "tell me fact number 3", n=2)
    assert len(found) == 2
    assert found[0] == LORE[3].text
    assert lore(store, "silvia", "now", "en", "fact", n=0) == []


def test_lore_in_a_language_that_is_not_written_comes_in_the_main_one(
    store: KnowledgeStore,
) -> None:
    store.sync([*LORE, doc("한국어", lang="ko")])
    assert lore(store, "silvia", "now", "fr", n=9) == texts(LORE)


def test_description_of_the_stage_then_of_any_stage_then_empty(store: KnowledgeStore) -> None:
    store.sync(
        [
            doc("now", type="description", quest_stage="now"),
            doc("지금", type="description", quest_stage="now", lang="ko"),
            doc("always", type="description"),
        ]
    )
    assert description(store, "silvia", "now", "en") == "now"
    assert description(store, "silvia", "now", "ko") == "지금"
    assert description(store, "silvia", "now", "fr") == "now"
    assert description(store, "silvia", "later", "en") == "always"
    assert description(store, "bruno", "now", "en") == ""
