"""One turn's work on the model as one call with plain values in and out.

A ZeroGPU Space lends its GPU only inside such a call, in a forked worker, so the call holds all of it:
prefill, heads, decision, line. Elsewhere the same call runs in place, one turn at a time. Knows nothing
of NPC files, sessions or the vector store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.decision import Decision, Reading, Rules, decide
from engine.decode import Sampling, tidy, whole_sentences
from engine.errors import Busy
from engine.gpu import on_accelerator
from engine.model import LanguageModel
from engine.prompt import PromptEncoder, act_text
from heads.evidence import NOTHING, Evidence


@dataclass(frozen=True)
class Plan:
    """How to decide and what to tell the line: the rules, each flag's action in words, the speaker."""

    rules: Rules
    actions: Mapping[str, str]
    speaker: str


@dataclass(frozen=True)
class Job:
    """One pass: a prompt up to <STATE>, then either a plan or ready ids for what follows.

    `prefix` counts the leading ids that the NPC's stage shares with other prompts, and `session` names
    whose prompt it is: what may be kept for the next one. `write` is False where only the heads are
    wanted. `meaning` is what is heard of the utterance, where the model's heads read that, and
    `evidence` what the game's state says of it. All values can be pickled.
    """

    ids: tuple[int, ...]
    sampling: Sampling
    plan: Plan | None = None
    suffix: tuple[int, ...] | None = None
    write: bool = True
    prefix: int = 0
    session: str = ""
    meaning: tuple[float, ...] = ()
    evidence: Evidence = NOTHING


@dataclass(frozen=True)
class StateKnown:
    """First event: what the heads read, the decision (with a plan), and the prefill's milliseconds."""

    reading: Reading
    decision: Decision | None
    prefill_ms: float


@dataclass(frozen=True)
class LineSoFar:
    """The line as far as it is written."""

    text: str


@dataclass(frozen=True)
class LineDone:
    """Last event: the whole line, and the generation's milliseconds."""

    text: str
    generate_ms: float


Event = StateKnown | LineSoFar | LineDone


@dataclass
class _Gate:
    """Lets one turn in at a time and at most `limit` wait."""

    limit: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    counter: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        with self.counter:
            if self.waiting >= self.limit:
                raise Busy(f"{self.waiting} turns are waiting already; try again in a moment")
            self.waiting += 1
        try:
            with self.lock:
                yield
        finally:
            with self.counter:
                self.waiting -= 1


class Host(Protocol):
    """Runs jobs on a model: one at a time (`ModelHost`) or many together (`engine.serving.batch`)."""

    model: LanguageModel

    def run(self, job: Job) -> Iterator[Event]:
        """Run `job`; yield its events."""

    @property
    def load(self) -> dict[str, Any]:
        """How much is going on, for `/status`."""

    def close(self, wait_s: float = 0.0) -> None:
        """Take no further jobs; wait so long for those inside."""


class ModelHost:
    """Runs jobs on a model, one at a time.

    Args:
        model: the loaded model.
        queue_limit: turns that may wait or run; a further one is refused with `Busy`.
    """

    def __init__(self, model: LanguageModel, queue_limit: int = 64) -> None:
        self.model = model
        self._gate = _Gate(queue_limit)

        def perform(job: Job) -> Iterator[Event]:
            yield from run_job(model, job)

        # Wrapped anew for every model: a Space's worker keeps what stood when it was forked.
        self._perform = on_accelerator(perform)

    def run(self, job: Job) -> Iterator[Event]:
        """Run `job`; yield the state first, then the growing line, then the whole of it.

        Raises:
            Busy: too many turns are waiting.
            ModelError: the model failed.
        """
        with self._gate.enter():
            yield from self._perform(job)

    @property
    def load(self) -> dict[str, Any]:
        """How much is going on, for `/status`."""
        return {"inside": self._gate.waiting}

    def close(self, wait_s: float = 0.0) -> None:
        """Nothing is held between two jobs."""


def run_job(model: LanguageModel, job: Job) -> Iterator[Event]:
    """Do the work of `ModelHost.run` on `model`, in this thread."""
    started = time.perf_counter()
    prefill = model.prefill(job.ids, job.meaning, job.evidence)
    decision = decide(prefill.reading, job.plan.rules) if job.plan else None
    yield StateKnown(prefill.reading, decision, ms_since(started))
    if not job.write:
        return
    started = time.perf_counter()
    texts = model.generate(prefill, line_start(model.encoder, job, decision), job.sampling)
    line = yield from _grow(texts, Line(job.plan.speaker if job.plan else ""))
    yield LineDone(line, ms_since(started))


def line_start(encoder: PromptEncoder, job: Job, decision: Decision | None) -> tuple[int, ...]:
    """Return the ids between <STATE> and the line: what was decided, in words, and <NPC>."""
    if job.plan and decision:
        plan = job.plan
        actions = [plan.actions[flag] for flag in decision.fired if flag in plan.actions]
        told = act_text(plan.speaker, actions, decision.delta.trust)
        return tuple(encoder.encode_act(told))
    return job.suffix or tuple(encoder.encode_act(""))


class Line:
    """A line in the making: raw text in, events out."""

    def __init__(self, speaker: str) -> None:
        self._speaker = speaker
        self._text = ""

    def grown(self, raw: str) -> LineSoFar | None:
        """Take in all raw text so far; return the event, or None where nothing new is to be seen."""
        text = tidy(raw, self._speaker)
        if text == self._text:
            return None
        self._text = text
        return LineSoFar(text)

    def whole(self, *, ended: bool) -> str:
        """Return the line; one that ran out of tokens is cut back to whole sentences."""
        return self._text if ended else whole_sentences(self._text)


def _grow(texts: Generator[str, None, bool], line: Line) -> Generator[Event, None, str]:
    """Yield the line as it grows; return all of it."""
    while True:
        try:
            event = line.grown(next(texts))
        except StopIteration as end:
            return line.whole(ended=end.value)
        if event:
            yield event


def ms_since(started: float) -> float:
    """Return the milliseconds since `time.perf_counter()` gave `started`."""
    return round((time.perf_counter() - started) * 1000, 1)
