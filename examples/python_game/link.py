"""The engine behind an address: a turn of talk, streamed, and retried with its id, so played once.

    TalkFailed
    ├── Refused    the engine will not play the turn as it stands; nothing happened
    └── Silent     no answer after several tries; the turn may have been played

Knows nothing of rooms or terminals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from gradio_client import Client

from examples.python_game.game import Json, Turn

_TRIES = 5
_POLL_SECONDS = 0.02


class TalkFailed(Exception):
    """The message is the engine's own."""


class Refused(TalkFailed):
    """Say something else."""


class Silent(TalkFailed):
    """Ask again with the same turn."""


class Engine:
    """A running engine.

    Args:
        url: of the page.
        connect: makes a client of an address; tests give their own.
        patience: seconds without any event after which a try counts as broken.

    Raises:
        Silent: nobody answers there.
    """

    def __init__(
        self,
        url: str,
        connect: Callable[[str], Any] = lambda url: Client(url, verbose=False),
        patience: float = 60.0,
    ) -> None:
        self._url = url
        self._connect = connect
        self._patience = patience
        self._client: Any = None
        self._connected()

    def talk(self, player_id: str, turn: Turn, grown: Callable[[str], None]) -> Json:
        """Play one turn and return its result.

        Args:
            player_id: of the player.
            turn: what is said, to whom, in which state.
            grown: given the line as far as it is written, again and again.

        Raises:
            Refused: the turn cannot be played.
            Silent: no answer after several tries.
        """
        problem = ""
        for tried in range(_TRIES):
            time.sleep(0.5 * tried)
            try:
                return self._once(player_id, turn, grown)
            except Silent as exc:
                problem = str(exc)
        raise Silent(problem)

    def save(self, player_id: str) -> Json:
        """Return all that the NPCs remember of the player."""
        return self._call("/save", player_id)

    def load(self, minds: Json) -> None:
        """Make the NPCs remember what `save` returned."""
        self._call("/load", minds)

    def _once(self, player_id: str, turn: Turn, grown: Callable[[str], None]) -> Json:
        """Try once; whatever the client raises means that the line broke."""
        client, event = self._connected(), {}
        try:
            job = client.submit(player_id=player_id, **asdict(turn), api_name="/ask_stream")
            for event in self._events(job):
                grown(event.get("text", ""))
        except Exception as exc:
            raise self._broken(exc) from exc
        return _checked(event)

    def _events(self, job: Any) -> Iterator[Json]:
        """Yield events as they come.

        A job's own iterator would wait for ever where the line breaks, so this one looks itself.
        """
        seen, heard = 0, time.monotonic()
        while True:
            done = job.done()
            fresh = job.outputs()[seen:]
            yield from fresh
            if done:
                job.result()  # raises what went wrong
                return
            now = time.monotonic()
            seen, heard = seen + len(fresh), now if fresh else heard
            if now - heard > self._patience:
                job.cancel()
                raise TimeoutError(f"nothing came in {self._patience:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _call(self, name: str, argument: Any) -> Json:
        client = self._connected()
        try:
            answer: Json = client.predict(argument, api_name=name)
        except Exception as exc:
            raise self._broken(exc) from exc
        return _checked(answer)

    def _connected(self) -> Any:
        if self._client is None:
            try:
                self._client = self._connect(self._url)
            except Exception as exc:
                raise self._broken(exc) from exc
        return self._client

    def _broken(self, exc: Exception) -> Silent:
        """Let the next try connect anew."""
        self._client = None
        return Silent(f"no engine answers at {self._url}: {exc or type(exc).__name__}")


def _checked(answer: Json) -> Json:
    """Return an answer that is no error.

    Raises:
        Refused: it is one for good.
        Silent: it is one that passes, or no answer at all.
    """
    error = answer.get("error") if answer else {"message": "no answer", "retryable": True}
    if error:
        raise (Silent if error["retryable"] else Refused)(error["message"])
    return answer
