"""Many turns on one model at once: prompts read in slices, lines decoded together, step by step.

    waiting ── reading (one prompt at a time, a slice between two steps) ── writing (all in one batch)
                   │ at <STATE>: heads, decision, first event                  │ a token a step each

A turn joins the batch when its prompt is read: the next step reads its decision in words along with
everyone's last word. It leaves when its line ends, so nobody waits for the longest line. One thread
owns the model and the caches; callers hand in jobs and take events from queues of their own. What else
is to be computed is done there too, between two steps (`engine.compute`). What a turn decides does not
depend on who else is there.

Why not the library's continuous batching: as of transformers 5.24 it gives no hidden states (the heads
need them) and drops the repetition penalty, and its paged attention wants a GPU kernel.

Knows nothing of NPCs, sessions or the vector store.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.compute import disown, own
from engine.decision import Decision, decide
from engine.decode import Sampler, TextStream, choose_tokens, stops_line
from engine.errors import Busy, EngineError, ModelError
from engine.host import Event, Job, Line, LineDone, StateKnown, line_start, ms_since
from engine.model import LanguageModel
from engine.serving.caches import RowCache
from engine.serving.forward import Tap
from engine.serving.lean import LeanDecoder
from engine.serving.prompts import PromptCache
from engine.serving.steps import Entry, Steps, make_steps
from heads.spec import FINAL_NORM

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchLimits:
    """How much is done at once.

    Args:
        queue: turns that may wait or run; a further one is refused with `Busy`.
        batch: lines that are decoded together.
        slice: tokens of a prompt that are read between two steps. Always the same, so that a prompt
            is read by the same operations at any load.
        cache_bytes: of kept prompt beginnings.
    """

    queue: int = 64
    batch: int = 32
    slice: int = 128
    cache_bytes: int = 256 * 2**20


@dataclass
class _Turn:
    """A job on its way through the model."""

    job: Job
    sampler: Sampler
    stream: TextStream
    line: Line
    started: float
    events: queue.SimpleQueue[Event | EngineError | None] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    cache: RowCache | None = None
    decision: Decision | None = None
    suffix: tuple[int, ...] = ()
    generated: list[int] = field(default_factory=list)


class BatchHost:
    """Runs jobs on a model, many at once; see `engine.host.Host`.

    Args:
        model: the loaded model.
        decoder: its lean forward.
        limits: how much is done at once.
        steps: how lines are decoded; None: by the products that prompts are read with in any case.
    """

    def __init__(
        self,
        model: LanguageModel,
        decoder: LeanDecoder,
        limits: BatchLimits | None = None,
        steps: Steps | None = None,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.limits = limits or BatchLimits()
        self.steps = steps or make_steps(decoder)
        self.prompts = PromptCache(self.limits.cache_bytes)
        self._layer = model.bundle.info.spec.layer
        self._state_id = model.encoder.state_id
        self._batch = self.steps.batch()
        self._writing: list[_Turn] = []
        self._waiting: deque[_Turn] = deque()
        self._asked: deque[Callable[[], None]] = deque()
        self._reading: _Turn | None = None
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batch", daemon=True)
        self._thread.start()
        own(self)

    def run(self, job: Job) -> Iterator[Event]:
        """Run `job`; yield the state first, then the growing line, then the whole of it.

        A caller that stops reading frees its place at the next step.

        Raises:
            Busy: too many turns are waiting.
            ModelError: the model failed, or was closed.
        """
        turn = self._enter(job)
        try:
            while True:
                event = turn.events.get()
                if event is None:
                    return
                if isinstance(event, EngineError):
                    raise event
                yield event
        finally:
            with self._changed:
                turn.cancelled = True
                self._inside -= 1
                self._changed.notify()

    def _enter(self, job: Job) -> _Turn:
        turn = _Turn(
            job=job,
            sampler=Sampler(job.sampling, self.model.suppressed),
            stream=TextStream(self.model.tokenizer),
            line=Line(job.plan.speaker if job.plan else ""),
            started=time.perf_counter(),
        )
        with self._changed:
            if self._closed:
                raise ModelError("the model was closed; try again")
            if self._inside >= self.limits.queue:
                raise Busy(f"{self._inside} turns are waiting already; try again in a moment")
            self._inside += 1
            self._waiting.append(turn)
            self._changed.notify()
        return turn

    def close(self, wait_s: float = 0.0) -> None:
        """Take no further jobs; those inside are served to their end.

        Args:
            wait_s: seconds to wait for that end, at most.
        """
        disown(self)
        with self._changed:
            self._closed = True
            self._changed.notify()
        if wait_s:
            self._thread.join(timeout=wait_s)

    def take(self, work: Callable[[], None]) -> bool:
        """Do other work in the model's thread; see `engine.compute.Owner`."""
        if threading.current_thread() is self._thread:
            work()
            return True
        with self._changed:
            if self._closed:
                return False
            self._asked.append(work)
            self._changed.notify()
        return True

    @property
    def load(self) -> dict[str, Any]:
        """Return how much is going on, for `/status`."""
        return {
            "writing": len(self._writing),
            "waiting": len(self._waiting) + (self._reading is not None),
            "cache_mb": round(self._batch.bytes / 2**20, 1),
            "prefix_cache_mb": round(self.prompts.bytes / 2**20, 1),
            "prefix_hits": self.prompts.hits,
            "prefix_misses": self.prompts.misses,
            "weights": {str(most) if most else "more": form for most, form in self.steps.forms},
        }

    # --- the one thread that owns the model ------------------------------------------------------

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait():
                    while self._asked:
                        self._asked.popleft()()
                    self._drop_cancelled()
                    self._write_step(self._read_slice())
        finally:
            with self._changed:
                self._closed = True
                asked, self._asked = self._asked, deque()
            for work in asked:  # somebody waits for each of them
                work()

    def _wait(self) -> bool:
        """Wait for something to do; return False once closed and empty."""
        with self._changed:
            while not (self._asked or self._waiting or self._reading or self._writing):
                if self._closed:
                    return False
                self._changed.wait()
        return True

    def _drop_cancelled(self) -> None:
        for slot in reversed(range(len(self._writing))):
            if self._writing[slot].cancelled:
                self._leave(slot)
        if self._reading and self._reading.cancelled:
            self._reading = None

    def _read_slice(self) -> list[_Turn]:
        """Read one slice of one prompt, if there is room in the batch for its line.

        Returns:
            Turns whose prompt is read and that have a line to write: one at most.
        """
        if self._reading is None:
            with self._changed:
                while self._waiting and self._waiting[0].cancelled:
                    self._waiting.popleft()
                if not self._waiting or len(self._writing) >= self.limits.batch:
                    return []
                self._reading = self._waiting.popleft()
        turn = self._reading
        try:
            cache = turn.cache or self._begin(turn)
            self._read_prompt(turn, cache)
        except EngineError as failure:
            self._fail(turn, failure)
        except (RuntimeError, ValueError, IndexError) as exc:
            self._fail(turn, ModelError(f"the model failed while it read the prompt: {exc}"), exc)
        return [turn] if turn.suffix and turn.cache else []

    def _begin(self, turn: _Turn) -> RowCache:
        """Make a turn's cache: behind what is kept of its prompt, or for the constant part first."""
        job, grain = turn.job, self.limits.slice
        if job.ids.count(self._state_id) != 1:
            raise ModelError(
                "the model failed while it read the prompt: it needs exactly one <STATE>, found "
                f"{job.ids.count(self._state_id)}"
            )
        if not job.prefix:
            turn.cache = self._row(len(job.ids))
            return turn.cache
        shared, rest = job.ids[: job.prefix], job.ids[job.prefix :]
        most = rest.index(self._state_id) if self._state_id in rest else 0
        kept = self.prompts.find(shared, rest, job.session, most=most, grain=grain)
        if kept.shared is None:
            turn.cache = self._row(job.prefix)
        else:
            turn.cache = self._row(len(rest), behind=kept.shared)
            if kept.own is not None:
                turn.cache.take(kept.own)
        return turn.cache

    def _row(self, room: int, behind: torch.Tensor | None = None) -> RowCache:
        decoder = self.decoder
        return RowCache(decoder.shape, room, decoder.dtype, decoder.device, behind=behind)

    def _read_prompt(self, turn: _Turn, cache: RowCache) -> None:
        job, start = turn.job, cache.length
        # A slice ends where the constant part does, so that this can be kept by itself.
        border = job.prefix if start < job.prefix else len(job.ids)
        end = min(start + self.limits.slice, border)
        at = job.ids.index(self._state_id) - start
        holds = 0 <= at < end - start

        def show(read_TH: torch.Tensor) -> None:
            self._tell_state(turn, read_TH[at : at + 1].float().cpu())

        # The state is known where its layer is, before the pass comes to its end.
        tap = Tap(self._layer, show) if holds and self._layer != FINAL_NORM else None
        ends = holds and self._layer == FINAL_NORM
        last_TH = self._feed(job.ids[start:end], cache, tap, ends=ends)
        if last_TH is not None:
            show(last_TH)
        if end == job.prefix:
            self.prompts.keep_shared(job.ids[:end], cache.data)
            turn.cache = cache = self._row(len(job.ids) - end, behind=cache.data)
        if end == len(job.ids):
            self._end_prompt(turn, cache)

    def _tell_state(self, turn: _Turn, hidden_1H: torch.Tensor) -> None:
        job = turn.job
        reading = self.model.read_heads(hidden_1H, job.meaning, job.evidence)
        turn.decision = decide(reading, job.plan.rules) if job.plan else None
        turn.events.put(StateKnown(reading, turn.decision, ms_since(turn.started)))
        turn.started = time.perf_counter()

    def _end_prompt(self, turn: _Turn, cache: RowCache) -> None:
        job = turn.job
        if job.prefix and job.session:
            # The line goes on in a longer cache, so that this one may be kept as it is.
            shared, rest = job.ids[: job.prefix], job.ids[job.prefix :]
            self.prompts.keep_own(shared, rest, job.session, cache.data)
        self._reading = None
        if job.write:
            turn.suffix = line_start(self.model.encoder, job, turn.decision)
            cache.grow(cache.length + len(turn.suffix) + job.sampling.max_new_tokens)
        else:
            turn.events.put(None)
            turn.cache = None

    def _feed(
        self, ids: Sequence[int], cache: RowCache, tap: Tap | None, *, ends: bool
    ) -> torch.Tensor | None:
        positions = cache.begin(len(ids))
        given = torch.tensor(list(ids), device=self.decoder.device)
        outputs = self.decoder.forward(
            given, positions, cache, tap=tap, keeper=None if ends else cache
        )
        cache.finish(len(ids))
        return outputs

    def _write_step(self, entering: Sequence[_Turn]) -> None:
        """Write one token of every line, the first one of those that enter."""
        turns = [*self._writing, *entering]
        if not turns:
            return
        try:
            ids = [turn.generated[-1] for turn in self._writing]
            ids_B = torch.tensor(ids, dtype=torch.long, device=self.decoder.device)
            entries = [Entry(turn.cache, turn.suffix) for turn in entering if turn.cache]
            logits_BV = self.steps.logits(ids_B, self._batch, entries)
            samplers = [turn.sampler for turn in turns]
            written = [turn.generated for turn in turns]
            tokens = choose_tokens(logits_BV, samplers, written, own=True)
        except (RuntimeError, ValueError, IndexError) as exc:
            failure = ModelError(f"the model failed while it wrote the line: {exc}")
            for slot in reversed(range(len(self._writing))):
                self._leave(slot)
            for turn in turns:
                self._fail(turn, failure, exc)
            return
        going = [self._went_on(turn, token) for turn, token in zip(turns, tokens, strict=True)]
        for slot in reversed(range(len(self._writing))):
            if not going[slot]:
                self._leave(slot)
        for turn, goes_on in zip(entering, going[len(turns) - len(entering) :], strict=True):
            if goes_on and turn.cache:
                self._batch.join(turn.cache, turn.cache.length + turn.job.sampling.max_new_tokens)
                self._writing.append(turn)
            turn.cache = None

    def _went_on(self, turn: _Turn, token: int | None) -> bool:
        """Take a token in; return whether the line goes on."""
        if token is None:
            self._fail(turn, ModelError("the model gave logits that are not finite"))
            return False
        return self._take(turn, token)

    def _take(self, turn: _Turn, token: int) -> bool:
        """Add a token to a line; return whether the line goes on."""
        ended = token in self.model.stop_ids
        if not ended:
            turn.generated.append(token)
            raw = turn.stream.push(token)
            if raw is not None:
                event = turn.line.grown(raw)
                if event:
                    turn.events.put(event)
                ended = stops_line(raw)
            if not ended and len(turn.generated) < turn.job.sampling.max_new_tokens:
                return True
        turn.events.put(LineDone(turn.line.whole(ended=ended), ms_since(turn.started)))
        turn.events.put(None)
        return False

    def _leave(self, slot: int) -> None:
        last = self._batch.leave(slot)
        self._writing[slot] = self._writing[last]
        self._writing.pop()

    def _fail(self, turn: _Turn, failure: EngineError, cause: Exception | None = None) -> None:
        if cause is not None:
            logger.error("%s", failure, exc_info=cause)
        if self._reading is turn:
            self._reading = None
        turn.cache = None
        turn.events.put(failure)
