"""Locks: one per key, gone when nobody holds or wants it; and the one under which models are loaded.

Plain locks, because a streamed turn is taken up again by whichever thread asks for its next event.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from engine.errors import Busy

# transformers swaps methods of its own classes while it loads (tying weights, initialising) and puts
# back what it found. Two loads that overlap leave the swapped ones behind: tied heads without data,
# in every model loaded after. So whatever loads a model of that library holds this.
LOADING = threading.RLock()


class KeyedLocks:
    """Serialises what belongs to one key.

    Args:
        timeout_s: how long `hold` waits before it gives up, in seconds.
    """

    def __init__(self, timeout_s: float = 120.0) -> None:
        self._timeout_s = timeout_s
        self._guard = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of `key`.

        Raises:
            Busy: somebody else held it too long.
        """
        lock = self._enlist(key)
        try:
            if not lock.acquire(timeout=self._timeout_s):
                raise Busy("an earlier turn of this player with this NPC is still running; retry")
            try:
                yield
            finally:
                lock.release()
        finally:
            self._leave(key)

    def _enlist(self, key: Hashable) -> threading.Lock:
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
            return lock

    def _leave(self, key: Hashable) -> None:
        with self._guard:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)
