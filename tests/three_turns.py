"""`python -m tests.three_turns URL`: three turns with Silvia through gradio_client, as a game would.

She gives the gold necklace in the last one, when the photograph is shown; the same talk without it
never gets her to. Used by the CI against the real app; exits with 1 if anything is not so.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import httpx
from gradio_client import Client

NPC = "mother_abandoned_factory"
TALK = (
    "Good evening, Silvia. I was inside the old mill today. I am so sorry for your loss.",
    "You carried all of this alone for years. I will listen, for as long as you like.",
    "I found this photograph of the party. Please look at it. Is this Jason?",
)
STATE = {"quest_stage": "in_progress", "actions": ["visited_factory"]}


def connect(url: str, seconds: float = 300.0) -> Client:
    """Return a client as soon as the engine behind `url` is ready."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client = Client(url, verbose=False)
            status = client.predict(api_name="/status")
            if status["ready"]:
                return client
            problem = status["reason"] or status["loading"]
            if status["reason"]:
                raise SystemExit(f"not ready: {problem}")
        except (OSError, ValueError, httpx.HTTPError) as exc:
            problem = exc
        if time.monotonic() > deadline:
            raise SystemExit(f"not ready after {seconds:.0f} s: {problem}")
        time.sleep(1.0)


def play(client: Client, items: list[str]) -> list[dict[str, Any]]:
    """Hold the talk as a new player who carries `items`."""
    player = f"ci-{uuid.uuid4().hex}"
    results = []
    for text in TALK:
        result = client.predict(
            text=text,
            npc_id=NPC,
            player_id=player,
            context={**STATE, "items": items},
            api_name="/ask",
        )
        if "error" in result:
            raise SystemExit(f"the turn failed: {result['error']}")
        meta = result["meta"]
        print(f"> {text}\n< {result['text']}")  # noqa: T201
        print(f"  {meta['route']} {result['delta']} {meta['state']} {meta['actions']}")  # noqa: T201
        results.append(result)
    return results


def main() -> int:
    """Play with the photograph and without; return the exit code."""
    client = connect(sys.argv[1])
    shown = play(client, ["photo_forgotten_party"])
    values = [action["value"] for action in shown[-1]["meta"]["actions"]]
    unshown = play(client, [])
    given_without = [result for result in unshown if result["flags"]["give_item"]]
    if "gold_necklace" not in values:
        print(f"the necklace was not given: {shown[-1]['meta']['flags_detail']['give_item']}")  # noqa: T201
        return 1
    if given_without:
        print("the necklace was given without the photograph")  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
