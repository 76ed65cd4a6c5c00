"""One open Chroma collection: calls bounded in time, errors in our words.

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

Knows nothing of documents, of what is asked or written, or of what the embedder is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from chromadb.api import ServerAPI
from chromadb.api.client import Client
from chromadb.api.models.Collection import Collection
from chromadb.api.types import EmbeddingFunction, Embeddings
from chromadb.config import Settings, System
from chromadb.errors import NotFoundError
from chromadb.telemetry.product import ProductTelemetryClient
from chromadb.utils.embedding_functions import register_embedding_function

from rag import files
from rag.errors import KnowledgeCorrupt, KnowledgeError, KnowledgeUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

COLLECTION = "knowledge"

_FIRST_READ_SECONDS = 120.0  # the first read rebuilds the vectors in memory
_NEVER = 2**40  # in documents; vector files are written when so many are new

_NOT_DAMAGE = ("locked", "busy", "readonly", "read-only", "permission", "unable to open", "is full")
_NOT_DAMAGE_EITHER = ("no space", "disk i/o", "too many open files")


class Index:
    """One open Chroma collection: calls bounded in time, errors in our words.

    Args:
        path: absolute folder.
        made_for: the collection's metadata; a collection with any other is made anew.
    """

    def __init__(self, path: Path, made_for: Mapping[str, Any]) -> None:
        self.path = path
        self._database = path / files.DATABASE
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
            return self._bounded(lambda: work(collection), seconds or files.LOCK_SECONDS)

    def write(self, work: Callable[[Collection, Sequence[T]], object], batch: Sequence[T]) -> None:
        """Run `work(collection, batch)` after making sure that the file can be locked.

        Another process could still take the lock between the two, and this one then stands still
        until it is freed; the gap is some microseconds, and Chroma offers nothing better.

        Raises:
            KnowledgeError: it failed, or the file is locked or read-only.
        """
        with self._turn(), self._translated():
            collection = self.check()
            files.try_lock(self._database)
            work(collection, batch)

    def check(self) -> Collection:
        """Return the collection, if it is open and its file is the one that was opened.

        Raises:
            KnowledgeError: it is closed, or its file is gone or was replaced.
        """
        collection = self._collection
        if collection is None:
            raise KnowledgeError(f"{self.path}: the knowledge index is closed; open it again")
        if files.file_id(self._database) != self._file_id:
            raise KnowledgeCorrupt(
                f"{self.path}: the knowledge index was deleted or replaced while it was open; "
                "reload or restart to have it made anew"
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
            files.try_lock(self._database)
            files.check_pages(self._database)
        self._system = _start_system(self.path)
        self._client = Client.from_system(self._system)
        self._collection = _collection(self._client, made_for)
        self._file_id = files.file_id(self._database)
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
        if not files.ONE_AT_A_TIME.acquire(timeout=files.LOCK_SECONDS):
            raise KnowledgeUnavailable(f"{self.path}: the knowledge index is busy; try again")
        try:
            yield
        finally:
            files.ONE_AT_A_TIME.release()

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
                f"{self.path}: the knowledge index is damaged ({exc}); "
                "reload or restart to have it made anew"
            ) from exc

    def _locked(self) -> KnowledgeUnavailable:
        return KnowledgeUnavailable(
            f"{self.path}: the knowledge index does not answer, because another program locks "
            f"{files.DATABASE}; stop that program, then try again"
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
