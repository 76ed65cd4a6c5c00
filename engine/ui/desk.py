"""What one browser looks at: which player, which NPC, what was said, what came of it.

Values and look-ups only; the tab that draws them is `engine.ui.chat`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.api import Api
from engine.errors import EngineError
from engine.npc import NPC
from engine.service import EngineService
from engine.state import initial_state
from engine.ui.journey import step

Json = dict[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class View:
    """One browser's view. `language` is "" where the utterance decides.

    `talk` holds the chat's messages, `standing` the session as `Api.session` returns it, `shown` the
    scene fields as last filled in, `steps` the turns played on this page with what they decided.
    """

    player: str = ""
    npc_id: str = ""
    language: str = ""
    ready: bool = False
    talk: tuple[Message, ...] = ()
    standing: Json = field(default_factory=dict)
    shown: Json = field(default_factory=dict)
    steps: tuple[Json, ...] = ()

    @property
    def last_words(self) -> str:
        """What the player said last, or nothing."""
        said = [one["content"] for one in self.talk if one["role"] == "user"]
        return said[-1] if said else ""

    def with_turn(self, words: str, result: Json) -> View:
        """Return the view after a committed turn."""
        said = (message("user", words), message("assistant", result["text"]))
        return replace(self, talk=(*self.talk, *said), steps=(*self.steps, step(words, result)))

    def without_turn(self) -> View:
        """Return the view with its last exchange taken back."""
        talk = self.talk
        if len(talk) > 1 and talk[-1]["role"] == "assistant" and talk[-2]["role"] == "user":
            talk = talk[:-2]
        return replace(self, talk=talk, steps=self.steps[:-1])


def message(role: str, content: str) -> Message:
    """Return a chat message."""
    return {"role": role, "content": content}


def new_player() -> str:
    """Return an id for a browser that has none."""
    return f"web-{uuid.uuid4().hex[:12]}"


class Desk:
    """Looks up what a view needs.

    Args:
        service: for the NPC files and the state of starting.
        api: the public calls.
    """

    def __init__(self, service: EngineService, api: Api) -> None:
        self._service = service
        self.api = api

    @property
    def ready(self) -> bool:
        """Whether turns can be served."""
        return bool(self.api.status().get("ready"))

    def npc_choices(self) -> list[tuple[str, str]]:
        """Return (label, id) of every NPC: "Name, role"."""
        registry = self._service.registry
        return [(_label(registry.get(npc_id)), npc_id) for npc_id in sorted(registry.by_id)]

    def npc_files(self) -> list[Json]:
        """Return what the files of all NPCs say, for what a game's rules have in common."""
        every = self._service.registry.all()
        return [npc.model_dump(mode="json", exclude_defaults=True) for npc in every]

    def npc(self, view: View) -> NPC:
        """Return the view's NPC in its language, as far as there is a file in it."""
        return self._service.registry.get(view.npc_id, view.language or None)

    def languages(self, view: View) -> tuple[str, ...]:
        """Return the languages of the view's NPC, the main one first."""
        return self._service.registry.languages(view.npc_id)

    def standing(self, view: View) -> Json:
        """Return the player's session; that of a stranger while the engine is not ready."""
        session = self.api.session(view.player, view.npc_id)
        if "error" not in session:
            return session
        npc = self.npc(view)
        return {"npc_id": npc.id, "version": 0, **initial_state(npc).model_dump(mode="json")}

    def opened(self, view: View) -> View:
        """Return `view` with the session of its player and NPC: standing, greeting, what was said."""
        known = self._service.registry.by_id
        if view.npc_id not in known:
            view = replace(view, npc_id=next(iter(sorted(known)), ""))
        if not view.npc_id:
            return view
        standing = self.standing(view)
        return replace(view, standing=standing, talk=self._talk(view, standing), steps=())

    def _talk(self, view: View, standing: Mapping[str, Any]) -> tuple[Message, ...]:
        greeting = self.npc(view).persona.greeting
        talk = [message("assistant", greeting)] if greeting else []
        for turn in standing.get("history", ()):
            talk += [message("user", turn["player"]), message("assistant", turn["npc"])]
        return tuple(talk)


def _label(npc: NPC) -> str:
    return f"{npc.persona.name}, {npc.persona.role}" if npc.persona.role else npc.persona.name


def error_of(payload: Mapping[str, Any]) -> Json | None:
    """Return the inner part of an error payload, or None where it is none."""
    error = payload.get("error")
    return error if isinstance(error, dict) and "code" in error else None


def plain_error(exc: EngineError) -> Json:
    """Return an engine error as the inner part of its payload."""
    inner: Json = exc.to_payload()["error"]
    return inner
