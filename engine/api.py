"""The public calls, as plain functions that take and return JSON values; the page uses them too.

Errors come back as `{"error": {...}}`, never as a traceback. The first line of each docstring is its
entry on the generated API page. Knows nothing of Gradio's components.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from engine.errors import EngineError, InvalidRequest
from engine.lookup import documents, gaps
from engine.npc_calls import NPCCalls
from engine.owner import Owner, owner_names
from engine.scene_calls import SceneCalls
from engine.schema import GenParams, invalid_from, parse_request
from engine.service import EngineService
from engine.threshold_calls import ThresholdCalls

logger = logging.getLogger(__name__)

Json = dict[str, Any]


class Api:
    """The calls of one service.

    Args:
        service: who answers.
        signed_in: tells who makes the present call, by their verified name; "" where nobody signed in.
    """

    def __init__(self, service: EngineService, signed_in: Callable[[], str] = str) -> None:
        settings = service.settings
        self._service = service
        self._owner = Owner(settings.admin_token, owner_names(settings.owners), signed_in)
        self.npcs_written = NPCCalls(service, _guarded, self._owner)
        self.scenes = SceneCalls(service, _guarded, self._owner)
        self.thresholds = ThresholdCalls(service, _guarded, self._owner)

    def ask(
        self,
        text: str,
        npc_id: str,
        player_id: str,
        context: dict[str, Any] | None = None,
        gen_params: dict[str, Any] | None = None,
        turn_id: str | None = None,
        expected_version: int | None = None,
    ) -> dict[str, Any]:
        """Say `text` to an NPC: its line, delta, flags and actions, committed."""
        *_, answer = self.ask_stream(
            text, npc_id, player_id, context, gen_params, turn_id, expected_version
        )
        return answer

    def ask_stream(
        self,
        text: str,
        npc_id: str,
        player_id: str,
        context: dict[str, Any] | None = None,
        gen_params: dict[str, Any] | None = None,
        turn_id: str | None = None,
        expected_version: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """As `ask`, streamed: the state first, then {"text"} as it grows, last the whole result."""
        try:
            request = parse_request(
                text=text,
                npc_id=npc_id,
                player_id=player_id,
                context=context,
                gen_params=gen_params,
                turn_id=turn_id,
                expected_version=expected_version,
            )
            for event in self._service.engine.ask_stream(request):
                if event.result is None:
                    yield {"text": event.text}
                else:
                    without = {"text"} if event.kind == "state" else None
                    yield event.result.model_dump(mode="json", exclude=without)
        except EngineError as exc:
            yield exc.to_payload()
        except Exception as exc:  # the caller gets plain words, the log the traceback
            yield _unexpected(exc)

    def prompt(
        self, text: str, npc_id: str, player_id: str, context: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the prompt that `ask` would send now, with its markers shown; plays nothing."""
        return _guarded(
            lambda: self._service.engine.prompt(
                parse_request(text=text, npc_id=npc_id, player_id=player_id, context=context)
            )
        )

    def predict_main(
        self,
        prompt: str,
        npc_id: str,
        persona_tags: dict[str, Any] | None = None,
        gen_params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run a ready prompt ("<SYS>…<STATE>") through the model: no gate, no session."""

        def run() -> Json:
            for name, value in (("prompt", prompt), ("npc_id", npc_id)):
                if not isinstance(value, str):
                    raise InvalidRequest(f"{name}: must be text", field=name)
            if persona_tags is not None and not isinstance(persona_tags, dict):
                raise InvalidRequest("persona_tags: must be an object", field="persona_tags")
            params = _gen_params(gen_params)
            return self._service.engine.predict(prompt, npc_id, persona_tags, params)

        return _guarded(run)

    def npcs(self) -> dict[str, Any]:
        """List the NPCs: names, stages, flags, languages, defaults."""
        return _guarded(lambda: {"npcs": self._service.npcs()})

    def status(self) -> dict[str, Any]:
        """Tell whether turns can be served, by which base and bundle, on which device."""
        return _guarded(self._service.status)

    def reload(self, token: str = "") -> dict[str, Any]:
        """Read NPC files and bundle again, all or nothing; the owner's to do (ADMIN_TOKEN)."""

        def run() -> Json:
            self._owner.check(token)
            return self._service.reload()

        return _guarded(run)

    def save(self, player_id: str) -> dict[str, Any]:
        """Return all that the NPCs remember of a player, for the game's own save file."""
        return _guarded(
            lambda: self._service.engine.save(_player(player_id)).model_dump(mode="json")
        )

    def load(self, data: dict[str, Any]) -> dict[str, Any]:
        """Replace all that the NPCs remember of a player by what `save` returned."""

        def restore() -> Json:
            save = self._service.engine.load(data)
            return {"loaded": True, "player_id": save.player_id, "npcs": sorted(save.sessions)}

        return _guarded(restore)

    def session(self, player_id: str, npc_id: str) -> dict[str, Any]:
        """Return where a player stands with an NPC: version, stage, trust, relationship, memory."""
        return _guarded(lambda: self._service.engine.session(_player(player_id), _npc(npc_id)))

    def undo(self, player_id: str, npc_id: str) -> dict[str, Any]:
        """Take the last turn back, state and all."""
        return _guarded(lambda: self._service.engine.undo(_player(player_id), _npc(npc_id)))

    def forget(self, player_id: str, npc_id: str) -> dict[str, Any]:
        """Make an NPC forget a player."""
        return _guarded(lambda: self._service.engine.forget(_player(player_id), _npc(npc_id)))

    def explain(
        self, npc_id: str, quest_stage: str, flag: str, text: str = "", language: str | None = None
    ) -> dict[str, Any]:
        """Say what a flag means for an NPC at a stage, with the nearest documents and distances."""
        return _guarded(
            lambda: self._service.engine.explain(
                _npc(npc_id), quest_stage, flag, text, language or None
            )
        )

    def documents(self, npc_id: str, language: str | None = None) -> dict[str, Any]:
        """Return an NPC's documents, and what its file leaves out."""

        def read() -> Json:
            npc = self._service.registry.get(_npc(npc_id), language or None)
            return {"documents": documents(npc), "gaps": gaps(npc)}

        return _guarded(read)

    def model_card(self) -> dict[str, Any]:
        """Return the card, the figures and the thresholds of the bundle that serves."""

        def read() -> Json:
            bundle = self._service.engine.parts.host.model.bundle
            return {
                "name": bundle.info.name,
                "card": bundle.card,
                "metrics": dict(bundle.info.metrics),
                "thresholds": dict(bundle.info.thresholds),
                "threshold_source": bundle.info.threshold_source,
            }

        return _guarded(read)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """Return every public call by its API name."""
        return {
            "ask": self.ask,
            "ask_stream": self.ask_stream,
            "prompt": self.prompt,
            "predict_main": self.predict_main,
            "npcs": self.npcs,
            "status": self.status,
            "reload": self.reload,
            "save": self.save,
            "load": self.load,
            "session": self.session,
            "undo": self.undo,
            "forget": self.forget,
            "explain": self.explain,
            "documents": self.documents,
            "model_card": self.model_card,
            **self.npcs_written.calls(),
            **self.scenes.calls(),
            **self.thresholds.calls(),
        }


def _guarded(call: Callable[[], Json]) -> Json:
    try:
        return call()
    except EngineError as exc:
        return exc.to_payload()
    except Exception as exc:  # the caller gets plain words, the log the traceback
        return _unexpected(exc)


def _unexpected(exc: Exception) -> Json:
    logger.exception("unexpected failure")
    return EngineError(
        f"the engine failed unexpectedly ({type(exc).__name__}); the log has the details"
    ).to_payload()


def _gen_params(given: Any) -> GenParams:
    try:
        return GenParams.model_validate({} if given is None else given)
    except ValidationError as exc:
        raise invalid_from(exc) from exc


def _player(value: Any) -> str:
    return _name(value, "player_id")


def _npc(value: Any) -> str:
    return _name(value, "npc_id")


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{field}: must be a non-empty text", field=field)
    return value
