"""The dialogue engine: one turn from request to committed result, and what surrounds it.

    request → session → gate → knowledge → prompt → model (state, then line) → commit → result

Each step takes values and returns new ones; the only thing that changes is the session store, in one
transaction at the end. Turns of one player with one NPC run one after the other. Knows nothing of
Gradio.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import ConflictError, InvalidRequest, ModelError, NotReady
from engine.host import Job, StateKnown
from engine.knowledge import KnowledgeError
from engine.locks import KeyedLocks
from engine.lookup import explain
from engine.npc import NPC
from engine.play import Parts, Turn, TurnEvent, sampling_of
from engine.prompt import CTX, PLAYER, STATE, parse_marked, with_markers_plain
from engine.schema import (
    GenParams,
    ModelInfo,
    SessionState,
    TurnRequest,
    TurnResult,
)
from engine.sessions import SaveFile, SessionStore, StoredTurn, body_hash
from engine.state import after_turn, initial_state, merge_context
from engine.text import clean, language_of
from engine.turn import Outcome, TurnFrame, seed_of

logger = logging.getLogger(__name__)


class DialogueEngine:
    """Plays turns.

    Args:
        parts: NPCs, model, knowledge and embedder.
        sessions: where states and turns are kept.
        max_text_chars: longest utterance, in characters.
        history_turns: exchanges that a session remembers.
    """

    def __init__(
        self,
        parts: Parts,
        sessions: SessionStore,
        *,
        max_text_chars: int = 1000,
        history_turns: int = 6,
    ) -> None:
        self.parts = parts
        self.sessions = sessions
        self._max_text_chars = max_text_chars
        self._history_turns = history_turns
        self._locks = KeyedLocks()

    def ask(self, request: TurnRequest) -> TurnResult:
        """Play a turn and return its result, committed.

        Raises:
            EngineError: see `engine.errors`; nothing was committed.
        """
        result = None
        for event in self.ask_stream(request):
            result = event.result
        if result is None:
            raise ModelError("the turn ended without a result")
        return result

    def ask_stream(self, request: TurnRequest) -> Iterator[TurnEvent]:
        """Play a turn and tell of it as it goes; the last event carries the committed result.

        A caller that stops listening before the last event leaves no trace of the turn.

        Raises:
            EngineError: as `ask`, at the first event.
        """
        started = time.perf_counter()
        with self._locks.hold((request.player_id, request.npc_id)):
            parts = self.parts
            done = self._stored(request)
            if done is not None:
                yield TurnEvent("state", "", done.model_copy(update={"text": ""}))
                yield TurnEvent("result", done.text, done)
                return
            frame = self._frame(parts, request)
            turn = Turn(parts, frame, started)
            for event in turn.play():
                if event.kind == "result" and event.result is not None:
                    self._commit(frame, event.result, turn.outcome)
                yield event

    def undo(self, player_id: str, npc_id: str) -> dict[str, Any]:
        """Take the last turn back, state and all; return the standing that holds again.

        Raises:
            InvalidRequest: there is no turn to take back.
        """
        npc = self.parts.registry.get(npc_id)
        with self._locks.hold((player_id, npc_id)):
            stored = self.sessions.undo(player_id, npc_id)
        return _standing(npc, stored.state, stored.version)

    def forget(self, player_id: str, npc_id: str) -> dict[str, Any]:
        """Make the NPC forget the player; return the standing of a stranger."""
        npc = self.parts.registry.get(npc_id)
        with self._locks.hold((player_id, npc_id)):
            stored = self.sessions.reset(player_id, npc_id)
        return _standing(npc, stored.state, stored.version)

    def session(self, player_id: str, npc_id: str) -> dict[str, Any]:
        """Return where the player stands with the NPC now: version, stage, standing and the rest."""
        npc = self.parts.registry.get(npc_id)
        stored = self.sessions.load(player_id, npc_id)
        return _standing(npc, stored.state, stored.version)

    def transcript(self, player_id: str, npc_id: str) -> list[StoredTurn]:
        """Return the committed turns of the player with the NPC, oldest first."""
        self.parts.registry.get(npc_id)
        return list(self.sessions.transcript(player_id, npc_id))

    def save(self, player_id: str) -> SaveFile:
        """Return all that the NPCs remember of the player, for the game's save file."""
        return self.sessions.save(player_id)

    def load(self, data: Mapping[str, Any]) -> SaveFile:
        """Replace all that the NPCs remember of a player by a save file.

        Raises:
            InvalidRequest: not a save file, or a broken one; nothing is changed.
        """
        return self.sessions.load_save(data)

    def prompt(self, request: TurnRequest) -> dict[str, Any]:
        """Return the prompt that a turn would send now, in the markers' text form; plays nothing.

        Raises:
            EngineError: as `ask` before anything is played.
        """
        parts = self.parts
        turn = Turn(parts, self._frame(parts, request), time.perf_counter())
        try:
            read = turn.prompt_parts()
        except KnowledgeError as exc:
            raise ModelError("the knowledge store is not open; restart the program") from exc
        encoded = parts.host.model.encoder.encode(read)
        return {
            "prompt": with_markers_plain(read).marked(),
            "tokens": len(encoded.ids),
            "shared_tokens": encoded.prefix_length,
            "dropped_turns": encoded.dropped_turns,
            "dropped_lore": encoded.dropped_lore,
        }

    def predict(
        self, prompt: str, npc_id: str, persona_tags: Mapping[str, Any] | None, params: GenParams
    ) -> dict[str, Any]:
        """Run a ready prompt in the markers' text form: no gate, no evidence and no session.

        Args:
            prompt: "<SYS>…<STATE>", or on to "<NPC>".
            npc_id: whose name the line is cleaned of.
            persona_tags: extra tags, put at the head of <CTX>.
            params: sampling.

        Raises:
            PromptError: the prompt breaks the marker rules.
        """
        npc = self.parts.registry.get(npc_id)
        model = self.parts.host.model
        encoded, suffix = model.encoder.encode_marked(_with_tags(prompt, persona_tags))
        seed = seed_of(params, "", npc_id, 0, prompt)
        plan_free = Job(
            encoded.ids,
            sampling_of(params, seed),
            suffix=suffix,
            prefix=encoded.prefix_length,
            meaning=self.parts.meaning(dict(parse_marked(prompt)).get(PLAYER, "").strip()),
        )
        reading, text = None, ""
        for event in self.parts.host.run(plan_free):
            if isinstance(event, StateKnown):
                reading = event.reading
            else:
                text = event.text.removeprefix(f"{npc.persona.name}:").strip()
        if reading is None:
            raise ModelError("the model gave no reading")
        return {
            "text": text,
            "delta": [round(reading.trust, 3), round(reading.relationship, 3)],
            "flags": {flag: round(p, 3) for flag, p in reading.probabilities.items()},
        }

    def explain(
        self, npc_id: str, quest_stage: str, flag: str, said: str, language: str | None
    ) -> dict[str, Any]:
        """Say what a flag means for an NPC at a stage; see `engine.lookup.explain`.

        Raises:
            InvalidRequest: there is no such NPC, stage or flag.
            NotReady: the knowledge store cannot answer.
        """
        npc, knowledge = self.parts.registry.get(npc_id, language), self.parts.knowledge
        if knowledge is None:
            raise NotReady("the knowledge store is not open; restart the program")
        try:
            return explain(knowledge, npc, quest_stage, flag, said)
        except KnowledgeError as exc:
            raise NotReady(f"the knowledge store cannot answer: {exc}") from exc

    def _stored(self, request: TurnRequest) -> TurnResult | None:
        if request.turn_id is None:
            return None
        return self.sessions.find_turn(
            request.player_id, request.npc_id, request.turn_id, body_hash(request)
        )

    def _frame(self, parts: Parts, request: TurnRequest) -> TurnFrame:
        """Check the request against NPC and session, and gather what the turn starts from."""
        utterance = self._utterance(request.text)
        language = request.context.language or language_of(utterance)
        npc = parts.registry.get(request.npc_id, language)
        stored = self.sessions.load(request.player_id, request.npc_id)
        if request.expected_version not in (None, stored.version):
            raise ConflictError(
                f"expected_version is {request.expected_version}, but the session is at "
                f"{stored.version}; fetch the newest state and decide again",
                field="expected_version",
            )
        model = parts.host.model
        before = stored.state or initial_state(npc)
        return TurnFrame(
            request=request,
            turn_id=request.turn_id or uuid.uuid4().hex,
            npc=npc,
            before=before,
            state=merge_context(before, request.context, npc),
            version=stored.version,
            utterance=utterance,
            seed=seed_of(request.gen_params, request.player_id, npc.id, stored.version, utterance),
            flags=model.bundle.info.spec.flags,
            model=ModelInfo(base=model.base_id, bundle=model.bundle.info.name),
        )

    def _utterance(self, text: str) -> str:
        # The length is looked at before anything is done with the text, however long it is.
        if len(text) > self._max_text_chars:
            raise InvalidRequest(
                f"text is {len(text)} characters long; the limit is {self._max_text_chars} "
                "(MAX_TEXT_CHARS)",
                field="text",
            )
        utterance = clean(text)
        if not utterance:
            raise InvalidRequest("text is empty; say something to the NPC", field="text")
        return utterance

    def _commit(self, frame: TurnFrame, result: TurnResult, outcome: Outcome) -> None:
        request = frame.request
        after = after_turn(
            frame.state,
            frame.npc,
            utterance=frame.utterance,
            line=result.text,
            delta=outcome.delta,
            fired=outcome.fired,
            history_turns=self._history_turns,
        )
        if outcome.route == "degraded":
            # Nothing was decided, so saying it once more must not count as a repetition.
            after = after.model_copy(update={"said": frame.state.said})
        self.sessions.commit(
            player_id=request.player_id,
            npc_id=request.npc_id,
            turn_id=frame.turn_id,
            body_hash=body_hash(request),
            text=frame.utterance,
            result=result,
            before=frame.before,
            after=after,
            base_version=frame.version,
        )


def _standing(npc: NPC, state: SessionState | None, version: int) -> dict[str, Any]:
    """Return a session as the API shows it."""
    held = state or initial_state(npc)
    return {"npc_id": npc.id, "version": version, **held.model_dump(mode="json")}


def _with_tags(prompt: str, tags: Mapping[str, Any] | None) -> str:
    """Put `tags` at the head of the <CTX> segment, which is made where there is none."""
    if not tags:
        return prompt
    text = "; ".join(f"{clean(str(key))} {clean(str(value))}" for key, value in tags.items())
    if CTX in prompt:
        return prompt.replace(CTX, f"{CTX}{text}. ", 1)
    anchor = PLAYER if PLAYER in prompt else STATE
    return prompt.replace(anchor, f"{CTX}{text}. {anchor}", 1)
