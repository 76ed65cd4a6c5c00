"""The knowledge index: documents in one Chroma collection, found by exact keys or by meaning.

A derived index: made from documents, brought up to date by `sync`, safe to delete at any time.

    KnowledgeError (RuntimeError)       also: the index is closed, or the embedder failed
    ├── KnowledgeCorrupt                files damaged or gone; `open_or_rebuild` makes a new index
    └── KnowledgeUnavailable            locked, read-only or out of space; free it and try again

What Chroma 1.5 does, and what follows from it here:
- It waits more than nine minutes for a locked file (measured). While it waits, `get` and `query`
  let other Python threads run; every other call, opening and `count` included, stops them all. So
  reads run on a thread of their own, which costs some 0.1 ms, and are given up after a few seconds;
  before anything else the lock is tried with the standard library, which waits for a set time.
- It answers from files that were deleted under it. So each call looks whether the file it opened is
  still the one in the folder.
- It does not check the vector files that it writes: damaged ones give wrong neighbours in silence.
  So it is told never to write them. It then rebuilds the vectors in memory from its SQLite file,
  which is checked when it is opened (4 s for 5000 documents of 384 numbers; NPCs have hundreds).
- It keeps one client per path and process, even one that failed to start. So clients are made here
  without that cache, and a folder can be opened again after it was deleted or damaged.

Knows nothing of NPC files, prompts, or what the embedder is.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
from chromadb.api import ServerAPI
from chromadb.api.client import Client
from chromadb.api.models.Collection import Collection
from chromadb.api.types import EmbeddingFunction, Embeddings
from chromadb.config import Settings, System
from chromadb.errors import NotFoundError
from chromadb.telemetry.product import ProductTelemetryClient
from chromadb.utils.embedding_functions import register_embedding_function
from numpy.typing import NDArray

from rag.documents import Document, from_stored

logger = logging.getLogger(__name__)

T = TypeVar("T")
Embed = Callable[[Sequence[str]], "NDArray[Any]"]
Rows = Mapping[str, Any]

COLLECTION = "knowledge"
DATABASE = "chroma.sqlite3"
LAYOUT = 1
"""Raise it when metadata or settings of the collection change; older indexes are then remade."""

LOCK_SECONDS = 3.0
"""How long a call waits for a file that another process holds, before it gives up."""

_FIRST_READ_SECONDS = 120.0  # the first read rebuilds the vectors in memory
_BATCH = 64  # documents embedded and written at once; bounds memory, and how long readers wait
_NEVER = 2**40  # in documents; vector files are written when so many are new
_POSITION = "position"

# Two libraries in one process do not see each other's SQLite locks, and one of them closing the
# file drops the other's (sqlite.org/howtocorrupt.html, 2.2). So one call at a time for the process.
_ONE_AT_A_TIME = threading.RLock()

_NOT_DAMAGE = ("locked", "busy", "readonly", "read-only", "permission", "unable to open", "is full")
_NOT_DAMAGE_EITHER = ("no space", "disk i/o", "too many open files")


class KnowledgeError(RuntimeError):
    """The index cannot answer; the message says why and what to do."""


class KnowledgeCorrupt(KnowledgeError):
    """The index is damaged, or was deleted or replaced while it was open."""


class KnowledgeUnavailable(KnowledgeError):
    """The index may be sound but cannot be used now: locked, read-only, or the disk is full."""


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
    second store (or process) of later writes, so `get` there finds them but `nearest` does not
    until it is opened again.
    """

    def __init__(self, index: _Index, embed: Embed, dimension: int) -> None:
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
        dimension = _vectors(embed, ["dimension"], None).shape[1]
        made_for = {"layout": LAYOUT, "embedder": embedder_id, "dimension": dimension}
        return cls(_Index(path.absolute(), made_for), embed, dimension)

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
        _delete_files(path)
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
            wanted = _placed(documents)
            held = self._held()
            new = [place for id_, place in wanted.items() if held.get(id_) is None]
            stale = [id_ for id_ in held if id_ not in wanted]
            moved = [
                place
                for id_, place in wanted.items()
                if held.get(id_) not in (None, place.metadata[_POSITION])
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
        where = _where(
            npc_id=npc_id, quest_stage=quest_stage, flag_name=flag_name, type=type, lang=lang
        )
        if where is None:
            return []
        rows = self._index.read(
            lambda found: found.get(where=where, include=["documents", "metadatas"])
        )
        metadatas = rows["metadatas"]
        placed = sorted(zip(metadatas, rows["documents"], strict=True), key=_place_of)
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

        Raises:
            KnowledgeError: the index cannot be read, or the embedder failed.
        """
        where = _where(
            npc_id=npc_id, quest_stage=quest_stage, flag_name=flag_name, type=type, lang=lang
        )
        self._index.check()
        if where is None or n < 1:
            return []
        query = _vectors(self._embed, [text], self._dimension)
        rows = self._index.read(
            lambda found: found.query(
                query_embeddings=query,
                n_results=n,
                where=where or None,
                include=["documents", "metadatas", "distances"],
            )
        )
        # Rounding can push the distance of equal vectors below zero.
        hits = [
            Hit(self._document(text, metadata), max(0.0, float(distance)))
            for text, metadata, distance in zip(
                rows["documents"][0], rows["metadatas"][0], rows["distances"][0], strict=True
            )
        ]
        return sorted(hits, key=lambda hit: (hit.distance, hit.document.id))

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
                    held[id_] = _place_of((metadata, text))[1]
        return held

    def _add(self, batch: Sequence[_Placed]) -> None:
        vectors = _vectors(self._embed, [each.document.text for each in batch], self._dimension)
        self._index.write(
            lambda found, places: found.upsert(
                ids=[each.id for each in places],
                embeddings=vectors,
                documents=[each.document.text for each in places],
                metadatas=[each.metadata for each in places],
            ),
            batch,
        )

    def _document(self, text: Any, metadata: Rows) -> Document:
        try:
            return from_stored(text, metadata)
        except (ValueError, AttributeError) as exc:
            raise KnowledgeCorrupt(
                f"{self._index.path}: the knowledge index holds a damaged document ({exc}); "
                "sync it again, or restart to have it made anew"
            ) from exc


@dataclass(frozen=True)
class _Placed:
    """A document, its id, and its metadata with the place among its NPC's documents."""

    id: str
    document: Document
    metadata: dict[str, Any]


class _Index:
    """One open Chroma collection: calls bounded in time, errors in our words.

    Args:
        path: absolute folder.
        made_for: the collection's metadata; a collection with any other is made anew.
    """

    def __init__(self, path: Path, made_for: Mapping[str, Any]) -> None:
        self.path = path
        self._database = path / DATABASE
        self._given_up: threading.Thread | None = None
        self._system: System | None = None
        self._client: Client | None = None
        self._collection: Collection | None = None
        try:
            with self._turn(), self._translated():
                self._open(made_for)
        except BaseException:
            self.close()
            raise

    def read(self, work: Callable[[Collection], Any], seconds: float | None = None) -> Any:
        """Return `work(collection)`, for a `get` or `query` alone: others would stop all threads.

        Raises:
            KnowledgeError: it failed, or took longer than `seconds` (by default `LOCK_SECONDS`).
        """
        with self._turn(), self._translated():
            collection = self.check()
            return self._bounded(lambda: work(collection), seconds or LOCK_SECONDS)

    def write(self, work: Callable[[Collection, Sequence[T]], object], batch: Sequence[T]) -> None:
        """Run `work(collection, batch)` after making sure that the file can be locked.

        Another process could still take the lock between the two, and this one then stands still
        until it is freed; the gap is some microseconds, and Chroma offers nothing better.

        Raises:
            KnowledgeError: it failed, or the file is locked or read-only.
        """
        with self._turn(), self._translated():
            collection = self.check()
            _try_lock(self._database)
            work(collection, batch)

    def check(self) -> Collection:
        """Return the collection, if it is open and its file is the one that was opened.

        Only looks at the file's entry: opening and closing it would drop Chroma's locks.

        Raises:
            KnowledgeError: it is closed, or its file is gone or was replaced.
        """
        collection = self._collection
        if collection is None:
            raise KnowledgeError(f"{self.path}: the knowledge index is closed; open it again")
        if _file_id(self._database) != self._file_id:
            raise KnowledgeCorrupt(
                f"{self.path}: the knowledge index was deleted or replaced while it was open; "
                "restart to have it made anew"
            )
        return collection

    def close(self) -> None:
        """Release Chroma's files; errors on the way out are of no use to anyone."""
        client, system = self._client, self._system
        self._collection = self._client = self._system = None
        # The client's own close stops the newest system of this path, which may not be ours.
        for stop in (client and client.close, system and system.stop):
            if stop:
                with suppress(Exception):  # it says "no attribute 'bindings'" where already stopped
                    stop()

    def _open(self, made_for: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if self._database.exists():
            _try_lock(self._database)
            _check_pages(self._database)
        self._system = _start_system(self.path)
        self._client = Client.from_system(self._system)
        self._collection = _collection(self._client, made_for)
        self._file_id = _file_id(self._database)
        self.read(lambda found: found.get(limit=1, include=[]), _FIRST_READ_SECONDS)

    def _bounded(self, work: Callable[[], T], seconds: float) -> T:
        """Return `work()`, but not after `seconds`: its thread is then left behind.

        While it is there further reads fail at once, so that threads do not pile up. It is a
        daemon, or the program could not end before Chroma has waited to its end.
        """
        if self._given_up is not None and self._given_up.is_alive():
            raise self._locked()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as exc:
                errors.append(exc)

        thread = threading.Thread(target=run, name="knowledge-read", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self._given_up = thread
            raise self._locked()
        if errors:
            raise errors[0]
        return results[0]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not _ONE_AT_A_TIME.acquire(timeout=LOCK_SECONDS):
            raise KnowledgeUnavailable(f"{self.path}: the knowledge index is busy; try again")
        try:
            yield
        finally:
            _ONE_AT_A_TIME.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn whatever Chroma, SQLite or the file system raises into a `KnowledgeError`."""
        try:
            yield
        except (KnowledgeError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as exc:  # a panic in Chroma's Rust code is no Exception
            words = str(exc).lower()
            if isinstance(exc, OSError) or any(
                sign in words for sign in _NOT_DAMAGE + _NOT_DAMAGE_EITHER
            ):
                raise KnowledgeUnavailable(
                    f"{self.path}: the knowledge index cannot be used ({exc}); it needs a folder "
                    "that can be written, free space, and no other program that locks it"
                ) from exc
            raise KnowledgeCorrupt(
                f"{self.path}: the knowledge index is damaged ({exc}); restart to have it made anew"
            ) from exc

    def _locked(self) -> KnowledgeUnavailable:
        return KnowledgeUnavailable(
            f"{self.path}: the knowledge index does not answer, because another program locks "
            f"{DATABASE}; stop that program, then try again"
        )


@register_embedding_function
class _OutsideEmbeddings(EmbeddingFunction[Any]):
    """Stands in the collection's settings for the embedder, which Chroma is never to call.

    Without one of its own, a collection gets Chroma's default, which downloads a model. Registered
    by name, so that opening the collection again finds the same function.
    """

    def __init__(self) -> None:
        """Take nothing: the embedder is named in the collection's metadata."""

    def __call__(self, input: Any) -> Embeddings:
        raise KnowledgeError("texts must be embedded before they are given to Chroma")

    @staticmethod
    def name() -> str:
        return "knowledge_outside_embeddings"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> _OutsideEmbeddings:
        return _OutsideEmbeddings()

    def get_config(self) -> dict[str, Any]:
        return {}

    def default_space(self) -> Any:
        return "cosine"


def _start_system(path: Path) -> System:
    """Start what `chromadb.PersistentClient` would, but outside its cache of clients by path."""
    system = System(
        Settings(
            chroma_api_impl="chromadb.api.rust.RustBindingsAPI",
            is_persistent=True,
            persist_directory=str(path),
            anonymized_telemetry=False,
        )
    )
    parts: tuple[Any, ...] = (ProductTelemetryClient, ServerAPI)
    for part in parts:
        system.instance(part)
    system.start()
    return system


def _collection(client: Client, made_for: Mapping[str, Any]) -> Collection:
    """Return our collection, made anew unless it says that it was `made_for` the same."""
    with suppress(NotFoundError):
        try:
            found = client.get_collection(COLLECTION, embedding_function=_OutsideEmbeddings())
            if found.metadata == made_for:
                return found
            logger.info("knowledge index emptied: made for %s, now %s", found.metadata, made_for)
        except ValueError as exc:  # made by another program, with its own embedding function
            logger.info("knowledge index emptied: %s", exc)
        client.delete_collection(COLLECTION)
    return client.get_or_create_collection(
        COLLECTION,
        embedding_function=_OutsideEmbeddings(),
        metadata=dict(made_for),
        configuration={"hnsw": {"space": "cosine", "sync_threshold": _NEVER}},
    )


def _try_lock(database: Path) -> None:
    """Take the lock for writing and free it; waits `LOCK_SECONDS` at most.

    Raises:
        sqlite3.Error: locked by another program, read-only, or not a database.
    """
    with closing(_connect(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _check_pages(database: Path) -> None:
    """Raise KnowledgeCorrupt if SQLite finds a damaged page, which Chroma would meet only later."""
    with closing(_connect(database)) as connection:
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    # A Python built without full-text search cannot look into Chroma's text table.
    if verdict != "ok" and "no such module" not in verdict:
        raise KnowledgeCorrupt(f"{database}: the knowledge index is damaged ({verdict})")


def _connect(database: Path) -> sqlite3.Connection:
    # mode=rw does not create the file, which would hide that it is gone.
    uri = f"{database.as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)


def _file_id(file: Path) -> tuple[int, int] | None:
    try:
        entry = file.stat()
    except OSError:
        return None
    return entry.st_dev, entry.st_ino


def _delete_files(path: Path) -> None:
    """Delete what Chroma keeps in `path`: its database and its folders, which are named by UUIDs.

    Raises:
        KnowledgeUnavailable: something could not be deleted.
    """
    try:
        with _ONE_AT_A_TIME:
            for entry in path.iterdir():
                if entry.name.startswith(DATABASE):
                    entry.unlink()
                elif entry.is_dir() and _is_uuid(entry.name):
                    shutil.rmtree(entry)
    except OSError as exc:
        raise KnowledgeUnavailable(
            f"{path}: the damaged knowledge index cannot be deleted ({exc}); delete the folder"
        ) from exc


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _where(**keys: str | None) -> dict[str, Any] | None:
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


def _placed(documents: Iterable[Document]) -> dict[str, _Placed]:
    """Return id → document with its place among its NPC's documents; the same twice counts once.

    Places are counted per NPC, so that a change in one NPC's file rewrites no other's rows.
    """
    placed: dict[str, _Placed] = {}
    seen: Counter[str] = Counter()
    for document in documents:
        id_ = document.id
        if id_ not in placed:
            metadata = {**document.metadata, _POSITION: seen[document.npc_id]}
            placed[id_] = _Placed(id_, document, metadata)
            seen[document.npc_id] += 1
    return placed


def _place_of(row: tuple[Rows, str]) -> tuple[str, int, str]:
    metadata, text = row
    position = metadata.get(_POSITION)
    return str(metadata.get("npc_id")), position if isinstance(position, int) else -1, text


def _update(found: Collection, places: Sequence[_Placed]) -> None:
    found.update(ids=[each.id for each in places], metadatas=[each.metadata for each in places])


def _delete(found: Collection, ids: Sequence[str]) -> None:
    found.delete(ids=list(ids))


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _vectors(embed: Embed, texts: Sequence[str], dimension: int | None) -> NDArray[np.float32]:
    """Return float32 vectors of shape (texts, dimension); None takes whatever dimension comes.

    Raises:
        KnowledgeError: the embedder failed, or gave another shape or a number that is not finite.
    """
    try:
        vectors = np.asarray(embed(texts), dtype=np.float32)
    except Exception as exc:
        raise KnowledgeError(f"the embedder failed: {exc}") from exc
    fits = vectors.ndim == 2 and len(vectors) == len(texts) and vectors.shape[1] > 0
    if not fits or dimension not in (None, vectors.shape[1]):
        raise KnowledgeError(
            f"the embedder gave shape {vectors.shape}; "
            f"expected ({len(texts)}, {dimension or 'any dimension'})"
        )
    if not np.isfinite(vectors).all():
        raise KnowledgeError("the embedder gave a number that is not finite")
    return vectors
