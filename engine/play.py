"""One turn from gate to line: which route it takes, what it decides, what the NPC says.

Commits nothing and reads no session: values in, events out. Knows nothing of Gradio.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.decision import Decision, Rules
from engine.decode import Sampling
from engine.embed import Embedder
from engine.errors import ModelError
from engine.evidence import gather_evidence
from engine.fallback import authored_line, fallback_line
from engine.gate import check_flags, count_repeats, find_forbidden, open_in_bad_faith, overrides
from engine.host import Host, Job, LineDone, LineSoFar, Plan, StateKnown
from engine.knowledge import Briefing, Interpretation, Knowledge, KnowledgeError
from engine.listen import Listener
from engine.naming import missing_sentence
from engine.npc import NPC, DeltaPolicy, NPCRegistry
from engine.prompt import PromptParts, render_parts
from engine.schema import (
    Action,
    Delta,
    FlagDetail,
    GenParams,
    Reaction,
    Timings,
    TurnResult,
    round3,
)
from engine.state import after_turn
from engine.text import has_words
from engine.turn import Outcome, TurnFrame, build_result, effect_id, off_details
from heads.evidence import NOTHING, Evidence

logger = logging.getLogger(__name__)


# Less probable ways of treating an NPC are not worth a game's while.
_LEAST_TOLD = 0.05


@dataclass(frozen=True)
class Parts:
    """Everything a turn works with; replaced whole by a reload, so that no turn sees a mixture.

    `embedder` serves gate and knowledge; `listener` gives what the bundle's heads hear of an
    utterance: the same vectors, mostly with counted words behind them. None: they hear nothing.
    """

    registry: NPCRegistry
    host: Host
    knowledge: Knowledge | None
    embedder: Embedder
    listener: Embedder | None = None

    @property
    def sentences(self) -> Embedder:
        """What gives the sentence vectors that the bundle's heads were trained with."""
        if self.listener is None:
            return self.embedder
        return self.listener.sentences if isinstance(self.listener, Listener) else self.listener

    def meaning(self, utterance: str) -> tuple[float, ...]:
        """Return what the heads hear of an utterance; () where they hear nothing."""
        if self.listener is None:
            return ()
        return tuple(self.listener.encode([utterance])[0].tolist())


@dataclass(frozen=True)
class TurnEvent:
    """What a streamed turn tells: the state before any word, the growing line, the committed result.

    `result` is there for "state" (with an empty text) and "result", `text` for all three.
    """

    kind: Literal["state", "text", "result"]
    text: str
    result: TurnResult | None = None


@dataclass(frozen=True)
class _Asked:
    """What the gate and the store say of a turn before the model is asked."""

    rules: Rules
    briefing: Briefing
    meanings: Mapping[str, Interpretation]
    prompt_npc: NPC


class Turn:
    """One turn in the making: its route, its outcome, its timings.

    Args:
        parts: what to work with.
        frame: what the turn starts from.
        started: `time.perf_counter()` at the turn's begin.
    """

    def __init__(self, parts: Parts, frame: TurnFrame, started: float) -> None:
        self._parts = parts
        self._frame = frame
        self._started = started
        self._timings = Timings()
        self.outcome = self._off("invalid", "")

    def play(self) -> Iterator[TurnEvent]:
        """Take the turn's route; yield its events."""
        frame, encoder = self._frame, self._parts.embedder
        if not has_words(frame.utterance):
            yield from self._authored(self._off("invalid", "there are no words in it"))
            return
        forbidden = find_forbidden(frame.npc, frame.utterance, encoder)
        if forbidden:
            trigger, why = forbidden
            reaction = trigger.reaction
            outcome = replace(
                self._off("forbidden", why),
                delta=reaction.delta,
                reaction=Reaction(
                    trigger=trigger.name, action=reaction.action, emotion=reaction.emotion
                ),
            )
            yield from self._authored(outcome, reaction.text)
            return
        try:
            yield from self._main(self._ask_gate_and_store())
        except (ModelError, KnowledgeError) as failure:
            logger.exception("degraded turn of %s: %s", frame.npc.id, failure)
            yield from self._authored(self._off("degraded", _plain(failure)))

    def _ask_gate_and_store(self) -> _Asked:
        frame, npc, state = self._frame, self._frame.npc, self._frame.state
        knowledge, encoder = self._parts.knowledge, self._parts.embedder
        if knowledge is None:
            raise KnowledgeError("the knowledge store is not open; restart the program")
        stage = state.quest_stage
        verdicts = check_flags(npc, stage, state, frame.utterance, encoder)
        rules = Rules(
            verdicts=verdicts,
            overrides=overrides(npc, stage),
            policy=npc.stage(stage).delta_policy or DeltaPolicy(),
            standing=state.standing,
            spent=state.spent,
            repeats=count_repeats(frame.utterance, state.said, encoder),
            even_in_bad_faith=open_in_bad_faith(npc, stage),
            temper=npc.temper,
        )
        permitted = [flag for flag, verdict in verdicts.items() if verdict.permitted]
        prompt_npc = self._prompt_npc()
        return _Asked(
            rules=rules,
            briefing=knowledge.briefing(prompt_npc, stage),
            meanings=knowledge.interpret(npc, stage, permitted, frame.utterance),
            prompt_npc=prompt_npc,
        )

    def _prompt_npc(self) -> NPC:
        """Return the variant the model reads: the speaker's, if the model writes its language."""
        npc, languages = self._frame.npc, self._parts.host.model.languages
        if npc.language in languages:
            return npc
        readable = [one for one in self._parts.registry.languages(npc.id) if one in languages]
        return self._parts.registry.get(npc.id, readable[0]) if readable else npc

    def _main(self, asked: _Asked) -> Iterator[TurnEvent]:
        frame, host = self._frame, self._parts.host
        writes = frame.npc.language in host.model.languages
        line = ""
        for event in host.run(self._job(asked, write=writes)):
            if isinstance(event, StateKnown) and event.decision:
                self._known(event, event.decision, asked, writes)
                yield TurnEvent("state", "", self._result(""))
            elif isinstance(event, LineSoFar):
                yield TurnEvent("text", event.text)
            elif isinstance(event, LineDone):
                line = event.text
                self._timings = self._timings.model_copy(update={"generate": event.generate_ms})
        if not has_words(line):
            self.outcome = replace(self.outcome, line="authored")
            line = authored_line(
                frame.npc, frame.state, frame.utterance, self.outcome.fired, self._parts.embedder
            )
            yield TurnEvent("text", line)
        elif missing := missing_sentence(
            frame.npc, frame.state.quest_stage, self.outcome.fired, line
        ):
            self.outcome = replace(self.outcome, line="completed")
            line = f"{line} {missing}"
            yield TurnEvent("text", line)
        yield TurnEvent("result", line, self._result(line))

    def prompt_parts(self) -> PromptParts:
        """Return what the model would read of this turn; plays nothing.

        Raises:
            KnowledgeError: the store is not open.
        """
        return self._rendered(self._ask_gate_and_store())

    def _rendered(self, asked: _Asked) -> PromptParts:
        frame = self._frame
        return render_parts(
            asked.prompt_npc,
            frame.state,
            lore=asked.briefing.lore,
            scene=asked.briefing.scene,
            utterance=frame.utterance,
            events=asked.prompt_npc.events(frame.state.quest_stage, tuple(asked.meanings)),
        )

    def _job(self, asked: _Asked, *, write: bool) -> Job:
        frame = self._frame
        encoded = self._parts.host.model.encoder.encode(self._rendered(asked))
        return Job(
            ids=encoded.ids,
            prefix=encoded.prefix_length,
            session=f"{frame.request.player_id}\n{frame.npc.id}",
            sampling=sampling_of(frame.request.gen_params, frame.seed),
            plan=Plan(
                rules=asked.rules,
                actions={flag: meaning.text for flag, meaning in asked.meanings.items()},
                speaker=asked.prompt_npc.persona.name,
            ),
            write=write,
            meaning=self._parts.meaning(frame.utterance),
            evidence=self._evidence(asked),
        )

    def _evidence(self, asked: _Asked) -> Evidence:
        """Return what the heads need to tell a claim by; nothing where they make nothing of it."""
        frame, model = self._frame, self._parts.host.model
        if not model.bundle.info.spec.claims:
            return NOTHING
        return gather_evidence(
            frame.npc, frame.state, frame.utterance, asked.rules.verdicts, self._parts.sentences
        )

    def _known(self, event: StateKnown, decision: Decision, asked: _Asked, writes: bool) -> None:
        actions = tuple(
            Action(
                flag=flag,
                value=asked.meanings[flag].value,
                text=asked.meanings[flag].text,
                source=asked.meanings[flag].source,
                effect_id=effect_id(self._frame, flag),
            )
            for flag in decision.fired
        )
        self._timings = Timings(prefill=event.prefill_ms, state=self._elapsed())
        self.outcome = Outcome(
            route="main",
            delta=decision.delta,
            details=decision.details,
            acts=_likely(decision.acts),
            actions=actions,
            line="generated" if writes else "authored",
        )

    def _authored(self, outcome: Outcome, text: str = "") -> Iterator[TurnEvent]:
        """Answer without the model: the state, then the whole line at once."""
        frame = self._frame
        self.outcome = outcome
        line = text or fallback_line(frame.npc, frame.state, frame.utterance, self._parts.embedder)
        self._timings = Timings(state=self._elapsed())
        yield TurnEvent("state", "", self._result(""))
        yield TurnEvent("text", line)
        yield TurnEvent("result", line, self._result(line))

    def _off(self, route: Literal["forbidden", "invalid", "degraded"], why: str) -> Outcome:
        reasons = {
            "forbidden": "the utterance is forbidden",
            "invalid": "the utterance has no words",
            "degraded": "the turn could not be decided",
        }
        details: dict[str, FlagDetail] = off_details(self._frame.flags, reasons[route])
        return Outcome(
            route=route, delta=Delta(), details=details, line="authored", route_reason=why or None
        )

    def _result(self, text: str) -> TurnResult:
        frame, outcome = self._frame, self.outcome
        after = after_turn(
            frame.state,
            frame.npc,
            utterance=frame.utterance,
            line=text,
            delta=outcome.delta,
            fired=outcome.fired,
            history_turns=1,
        )
        timings = self._timings.model_copy(update={"total": self._elapsed()})
        return build_result(frame, outcome, text, next_stage=after.quest_stage, timings=timings)

    def _elapsed(self) -> float:
        return round((time.perf_counter() - self._started) * 1000, 1)


def sampling_of(params: GenParams, seed: int) -> Sampling:
    """Return how to sample, as plain values for the model."""
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=params.max_new_tokens,
        seed=seed,
    )


def _likely(acts: Mapping[str, float]) -> dict[str, float]:
    """Return the acts that are worth telling, the likeliest first."""
    told = sorted(acts.items(), key=lambda one: -one[1])
    return {act: round3(p) for act, p in told if p >= _LEAST_TOLD}


def _plain(failure: Exception) -> str:
    """Return an error's own words, and never a library's."""
    return failure.message if isinstance(failure, ModelError) else "the knowledge store failed"
