"""One thread computes for the whole process, and others hand it their work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.compute import compute, disown, in_passing, own
from engine.embed import SentenceEmbedder
from engine.serving.batch import BatchHost
from engine.serving.lean import LeanDecoder
from engine.weights import resolve_embedder
from tests.fakes import tiny_language_model


@pytest.fixture
def host() -> Iterator[BatchHost]:
    model = tiny_language_model()
    one = BatchHost(model, LeanDecoder(model.model, 200))
    yield one
    one.close(wait_s=10)


def test_work_is_done_in_the_models_thread_and_its_result_comes_back(host):
    assert compute(threading.current_thread) is host._thread
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: compute(lambda: (at, threading.get_ident())), range(64)))
    assert [at for at, _ in found] == list(range(64))
    assert {thread for _, thread in found} == {host._thread.ident}


def test_failing_work_fails_its_caller_and_nobody_else(host):
    with pytest.raises(KeyError, match="nothing there"):
        compute(lambda: {}["nothing there"])
    assert compute(lambda: 1) == 1


def test_work_that_hands_on_work_does_not_wait_for_itself(host):
    assert compute(lambda: compute(threading.current_thread)) is host._thread


def test_latest_owner_computes_and_the_former_one_again_when_it_has_gone(host):
    model = tiny_language_model()
    later = BatchHost(model, LeanDecoder(model.model, 200))
    assert compute(threading.current_thread) is later._thread
    later.close(wait_s=10)
    assert compute(threading.current_thread) is host._thread


def test_without_an_owner_work_is_done_where_it_is_asked_for(host):
    host.close(wait_s=10)
    assert compute(threading.current_thread) is not host._thread


def test_work_in_passing_is_done_in_a_thread_that_ends_with_it():
    thread = in_passing(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    with pytest.raises(ZeroDivisionError):
        in_passing(lambda: 1 // 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_computes_by_itself_and_does_not_wait_for_a_thread_it_lacks(host):
    assert compute(threading.current_thread) is host._thread
    child = os.fork()
    if child == 0:
        os._exit(0 if compute(lambda: 7) == 7 else 1)
    deadline, ended = time.monotonic() + 30, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended
    assert status == 0


def test_owner_that_can_no_longer_take_work_is_passed_over():
    class Gone:
        def take(self, work: Callable[[], None]) -> bool:
            return False

    gone = Gone()
    own(gone)
    try:
        assert compute(lambda: 5) == 5
    finally:
        disown(gone)


def test_sentence_vectors_are_computed_in_the_models_thread(host, monkeypatch):
    embedder, seen = SentenceEmbedder(resolve_embedder(None)), list[threading.Thread]()
    assert embedder._lean is not None
    encode = embedder._lean.encode

    def note(*given: object, **options: object) -> object:
        seen.append(threading.current_thread())
        return encode(*given, **options)

    monkeypatch.setattr(embedder._lean, "encode", note)
    embedder.encode(["Nobody has asked me this before."])
    assert seen == [host._thread]
