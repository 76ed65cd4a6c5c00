"""The engine behind an address: a turn of talk, streamed, and retried with its id, so played once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from gradio_client import Client

Json = dict[str, Any]

_TRIES = 5


class TalkFailed(Exception):
    """The engine refused the turn for good; the message is its own."""


class Engine:
    """A running engine.

    Args:
        url: of the page.
        client: anything with `submit` and `predict` of `gradio_client.Client`; for tests.
    """

    def __init__(self, url: str, client: Any = None) -> None:
        self._client = client or Client(url, verbose=False)

    def talk(
        self, player_id: str, npc_id: str, text: str, context: Json, shown: Callable[[str], None]
    ) -> Json:
        """Play one turn and return its result.

        Args:
            player_id: of the player.
            npc_id: who is talked to.
            text: what the player says.
            context: the game's state.
            shown: given the line as far as it is written, again and again.

        Raises:
            TalkFailed: it cannot be played; or not after several tries.
        """
        turn_id = uuid.uuid4().hex
        given = {"text": text, "npc_id": npc_id, "player_id": player_id, "context": context}
        problem = "no answer"
        for tried in range(_TRIES):
            time.sleep(0.5 * tried)
            try:
                for event in self._events({**given, "turn_id": turn_id}):
                    error = event.get("error")
                    if error:
                        if not error["retryable"]:
                            raise TalkFailed(error["message"])
                        problem = error["message"]
                        break
                    if "meta" in event and event.get("text"):
                        return event
                    shown(event.get("text", ""))
            except (
                OSError,
                ValueError,
                httpx.HTTPError,
            ) as exc:  # the line to the engine broke; the turn may stand
                problem = str(exc)
        raise TalkFailed(f"the engine does not answer: {problem}")

    def _events(self, given: Json) -> Iterator[Json]:
        yield from self._client.submit(**given, api_name="/ask_stream")

    def save(self, player_id: str) -> Json:
        """Return all that the NPCs remember of the player."""
        saved: Json = self._client.predict(player_id, api_name="/save")
        return saved

    def load(self, data: Json) -> None:
        """Make the NPCs remember what `save` returned.

        Raises:
            TalkFailed: the engine does not take it.
        """
        told = self._client.predict(data, api_name="/load")
        if "error" in told:
            raise TalkFailed(told["error"]["message"])
