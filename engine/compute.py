"""The one thread in which torch computes, and how others hand it their work.

Torch's operators share their work by OpenMP, whose threads spin between two operators for as long as
there are no more of them than processors. Every thread that starts an operator gets helpers of its own;
from the second such thread on there are more, and then all sleep and are woken for each operator. On
two processors a prompt took 85 ms instead of 48 for it, and a step 37 instead of 29.

So whoever owns a model computes in a thread of its own and says so here, and what else wants to compute
(sentence vectors) is done there as well. What is loaded meanwhile is loaded in a thread that ends, and
takes its helpers along. Source: GCC's libgomp, `gomp_managed_threads` and GOMP_SPINCOUNT.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Owner(Protocol):
    """A thread that computes, and takes work from others in between."""

    def take(self, work: Callable[[], None]) -> bool:
        """Promise to do `work` soon, in that thread; False where it no longer can.

        Called from that very thread, it is done at once.
        """


_owners: list[Owner] = []
_changing = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A forked process has the owners' names and none of their threads.
    os.register_at_fork(after_in_child=_owners.clear)


def own(owner: Owner) -> None:
    """Let `owner` compute for the process from here on; the latest one does."""
    with _changing:
        _owners.append(owner)


def disown(owner: Owner) -> None:
    """Take that back."""
    with _changing:
        if owner in _owners:
            _owners.remove(owner)


def compute(work: Callable[[], Result]) -> Result:
    """Do `work` in the owner's thread, if there is one; return or raise what it does."""
    done: Future[Result] = Future()

    def fulfil() -> None:
        try:
            done.set_result(work())
        except BaseException as exc:  # it is the caller's, whatever it is
            done.set_exception(exc)

    with _changing:
        owners = _owners[::-1]
    if not any(owner.take(fulfil) for owner in owners):
        return work()
    return done.result()


def in_passing(work: Callable[[], Result]) -> Result:
    """Do `work` in a thread that ends with it; return or raise what it does."""
    with ThreadPoolExecutor(1, thread_name_prefix="in-passing") as thread:
        return thread.submit(work).result()
