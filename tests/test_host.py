"""One turn's work as one call: its events, the queue before it, and the same in a forked worker."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from engine import gpu
from engine.decision import Rules, Verdict
from engine.decode import Sampling
from engine.errors import Busy, ModelError
from engine.host import Event, Job, LineDone, LineSoFar, ModelHost, Plan, StateKnown, run_job
from engine.model import LanguageModel
from engine.npc import DeltaPolicy
from engine.prompt import PromptParts, act_text
from engine.schema import FLAGS, Delta
from engine.serving.batch import BatchHost
from engine.serving.lean import LeanDecoder
from heads.evidence import Bearing, Evidence, Named, evidence_size
from tests.fakes import tiny_language_model

SAMPLING = Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=20, seed=5)
PARTS = PromptParts("You are Mira.", (), "A yard.", "Carries: rope.", "Stage start.", (), "Hi!")
pytestmark = pytest.mark.usefixtures("one_thread")


def make_job(model: LanguageModel, **values: Any) -> Job:
    return Job(model.encoder.encode(PARTS).ids, **{"sampling": SAMPLING, **values})


def make_plan(permitted: Sequence[str] = ("give_item",)) -> Plan:
    rules = Rules(
        verdicts={flag: Verdict(flag in permitted) for flag in FLAGS},
        overrides={},
        policy=DeltaPolicy(),
        standing=Delta(),
        spent=Delta(),
    )
    return Plan(rules, {"give_item": "Mira hands over the rope."}, "Mira")


class Script(nn.Module):
    """An output layer that writes a given text, one token a call, and then ends the line or not."""

    def __init__(self, ids: Sequence[int], rows: int) -> None:
        super().__init__()
        self.ids, self.rows, self.calls = list(ids), rows, 0

    def forward(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        logits_BV = torch.zeros(hidden_BH.shape[0], self.rows)
        logits_BV[:, self.ids[self.calls % len(self.ids)]] = 100.0
        self.calls += 1
        return logits_BV


def speaking(text: str, *, ends: bool = True) -> LanguageModel:
    model = tiny_language_model()
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = model.model.get_input_embeddings().weight.shape[0]
    script = [*ids, model.tokenizer.eos_token_id] if ends else ids
    model.model.lm_head = Script(script, rows)
    return model


class Noting:
    """Heads that note the evidence they are given, and read what the real ones would."""

    def __init__(self, heads: nn.Module) -> None:
        self.heads, self.evidence = heads, list[list[float]]()

    def __call__(self, hidden_BH: Any, meaning_BM: Any, evidence_BE: Any) -> Any:
        self.evidence.append(evidence_BE[0].tolist())
        return self.heads(hidden_BH, meaning_BM, evidence_BE)


@pytest.mark.parametrize("together", [False, True])
def test_heads_are_told_what_the_state_says_of_what_is_said(together: bool) -> None:
    model = tiny_language_model()
    model._heads = heads = Noting(model._heads)
    host = BatchHost(model, LeanDecoder(model.model, 400)) if together else ModelHost(model)
    told = Evidence({FLAGS[1]: Bearing(facts=False, rule=0.5, value=0.25)}, Named(said_absent=1.0))
    for evidence in (told, Evidence()):
        list(host.run(make_job(model, plan=make_plan(), write=False, evidence=evidence)))
    host.close()
    nothing = [0.0] * evidence_size(len(FLAGS))
    assert heads.evidence == [[*nothing[:4], 1.0, -1.0, 0.5, 0.25, *nothing[8:-1], 1.0], nothing]


def said(model: LanguageModel, tokens: int = 100, **values: Any) -> list[str]:
    """Return the texts of a job's line events."""
    job = make_job(model, sampling=replace(SAMPLING, max_new_tokens=tokens), **values)
    return [event.text for event in run_job(model, job) if not isinstance(event, StateKnown)]


def without_times(events: Sequence[Event]) -> list[Any]:
    blank: dict[type, dict[str, Any]] = {
        StateKnown: {"prefill_ms": 0.0},
        LineDone: {"generate_ms": 0.0},
        LineSoFar: {},
    }
    return [replace(event, **blank[type(event)]) for event in events]


# --- events --------------------------------------------------------------------------------------


def test_state_comes_first_then_the_growing_line_then_all_of_it(tiny):
    model = tiny()
    state, *growing, done = ModelHost(model).run(make_job(model, plan=make_plan()))
    assert isinstance(state, StateKnown)
    assert state.decision is not None
    assert set(state.decision.flags) == set(FLAGS)
    assert growing
    assert all(isinstance(event, LineSoFar) for event in growing)
    assert isinstance(done, LineDone)


def test_line_grows_by_whole_korean_letters():
    assert said(speaking("안녕 🙂")) == ["안", "안녕", "안녕 🙂", "안녕 🙂"]


def test_state_is_known_before_a_token_is_chosen():
    model = speaking("Hi")
    events = run_job(model, make_job(model))
    assert isinstance(next(events), StateKnown)
    assert model.model.lm_head.calls == 0


def test_job_that_does_not_write_ends_with_the_state(tiny):
    model = tiny()
    events = list(ModelHost(model).run(make_job(model, plan=make_plan(), write=False)))
    assert [type(event) for event in events] == [StateKnown]


def test_job_without_a_plan_decides_nothing(tiny):
    state, *_ = run_job(tiny(), make_job(tiny()))
    assert isinstance(state, StateKnown)
    assert state.decision is None
    assert set(state.reading.probabilities) == set(FLAGS)


def test_line_is_written_to_what_the_decision_grants(monkeypatch):
    model = tiny_language_model(shifts={"give_item": 30.0, "give_hint": 30.0})
    told: list[Any] = []
    generate = model.generate

    def listen(prefill: Any, suffix: Any, sampling: Any) -> Any:
        told.append(suffix)
        return generate(prefill, suffix, sampling)

    monkeypatch.setattr(model, "generate", listen)
    state, *_ = run_job(model, make_job(model, plan=make_plan()))
    assert isinstance(state, StateKnown)
    assert state.decision is not None
    assert state.decision.fired == ("give_item",)
    trust = state.decision.delta.trust
    granted = act_text("Mira", ["Mira hands over the rope."], trust)
    list(run_job(model, make_job(model, plan=make_plan(permitted=()))))
    list(run_job(model, make_job(model, suffix=(5, 6))))
    list(run_job(model, make_job(model)))
    encode = model.encoder.encode_act
    assert told == [encode(granted), encode(act_text("Mira", [], trust)), (5, 6), encode("")]


def test_speaker_and_quotes_are_taken_off_the_line():
    model = speaking('Mira: "Take it."')
    assert said(model, plan=make_plan())[-1] == "Take it."


@pytest.mark.parametrize(
    ("text", "ends", "tokens", "expected"),
    [
        ("Take it. Now go", True, 100, "Take it. Now go"),
        ("Dr. Mira is here", True, 100, "Dr. Mira is here"),
        ("안녕. 어서 와요", True, 100, "안녕. 어서 와요"),
        ("Take it. Now go\nPlayer", True, 100, "Take it. Now go"),
        ("Take it. Now go", False, 12, "Take it."),
        ("Take", False, 3, "Tak"),
        ("", True, 10, ""),
    ],
)
def test_line_is_cut_to_whole_sentences_only_where_tokens_ran_out(text, ends, tokens, expected):
    assert said(speaking(text, ends=ends), tokens)[-1] == expected


# --- the queue -----------------------------------------------------------------------------------


def test_turn_above_the_limit_is_busy_and_may_come_again(tiny):
    model = tiny()
    host = ModelHost(model, queue_limit=1)
    first = host.run(make_job(model))
    next(first)
    with pytest.raises(Busy, match="try again") as caught:
        next(host.run(make_job(model)))
    assert caught.value.retryable
    list(first)
    assert list(host.run(make_job(model)))


@pytest.mark.parametrize("how", ["close", "forget"])
def test_turn_that_nobody_reads_to_its_end_frees_the_model(tiny, how):
    model = tiny()
    host = ModelHost(model, queue_limit=1)
    events = host.run(make_job(model))
    next(events)
    if how == "close":
        events.close()  # type: ignore[attr-defined]
    del events
    gc.collect()
    assert list(host.run(make_job(model)))


def test_turn_that_was_never_begun_holds_nothing(tiny):
    model = tiny()
    host = ModelHost(model, queue_limit=1)
    waiting = host.run(make_job(model))
    assert list(host.run(make_job(model)))
    assert list(waiting)


@pytest.mark.parametrize("where", ["prefill", "generate"])
def test_turn_that_fails_frees_the_model(monkeypatch, where):
    model = tiny_language_model()
    host = ModelHost(model, queue_limit=1)

    def fail(*_: Any, **__: Any) -> Any:
        raise ModelError("the model failed")

    with monkeypatch.context() as patch:
        patch.setattr(model, where, fail)
        with pytest.raises(ModelError):
            list(host.run(make_job(model)))
    assert list(host.run(make_job(model)))


def test_turns_run_one_at_a_time_and_the_next_waits(tiny):
    model = tiny()
    host = ModelHost(model, queue_limit=2)
    expected = without_times(list(run_job(model, make_job(model))))
    first = host.run(make_job(model))
    next(first)
    second: list[Event] = []
    thread = threading.Thread(target=lambda: second.extend(host.run(make_job(model))))
    thread.start()
    while host._gate.waiting < 2 and thread.is_alive():
        time.sleep(0.001)
    assert thread.is_alive()
    assert second == []
    list(first)
    thread.join()
    assert without_times(second) == expected


def test_many_threads_get_what_one_gets(tiny):
    model = tiny()
    host = ModelHost(model)
    jobs = [make_job(model, sampling=replace(SAMPLING, seed=seed)) for seed in range(4)]
    expected = [without_times(list(run_job(model, job))) for job in jobs]
    found: dict[int, list[Any]] = {}

    def work(index: int) -> None:
        found[index] = without_times(list(host.run(jobs[index])))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == expected


# --- a forked worker, as on a ZeroGPU Space ------------------------------------------------------


def fork_gpu(**_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Stand in for `spaces.GPU`: run the call in a forked process, with everything pickled."""

    def decorate(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def borrowed(*args: Any) -> Iterator[Any]:
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(call, theirs))
            worker.start()
            theirs.close()
            try:
                ours.send_bytes(pickle.dumps(args))
                while (answer := pickle.loads(ours.recv_bytes())) is not None:
                    if isinstance(answer, Exception):
                        raise answer
                    yield answer
            finally:
                ours.close()
                worker.join()

        return borrowed

    return decorate


def _work(call: Callable[..., Any], pipe: Any) -> None:
    torch.set_num_threads(1)  # a pool of threads does not come along into a fork
    try:
        for value in call(*pickle.loads(pipe.recv_bytes())):
            pipe.send_bytes(pickle.dumps(value))
        pipe.send_bytes(pickle.dumps(None))
    except BrokenPipeError:
        pass  # nobody listens any more
    except Exception as exc:
        pipe.send_bytes(pickle.dumps(exc))


forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    # Python 3.12 and later warn where a process that has threads forks, as a Space's does.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def with_marks(test: Any) -> Any:
    return functools.reduce(lambda marked, mark: mark(marked), forks, test)


@pytest.fixture
def borrowed_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # as in the worker: sums are the same only by as many threads
    monkeypatch.setattr(gpu, "spaces", SimpleNamespace(GPU=fork_gpu))


@with_marks
def test_forked_worker_gives_the_events_of_this_process(borrowed_gpu):
    model = tiny_language_model(shifts={"give_item": 30.0})
    job = make_job(model, plan=make_plan())
    expected = without_times(list(run_job(model, job)))
    calls: list[int] = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert without_times(list(ModelHost(model).run(job))) == expected
    assert calls == []  # the work was done elsewhere
    assert len(expected) > 2


@with_marks
def test_error_in_a_forked_worker_arrives_and_frees_the_model(borrowed_gpu):
    model = tiny_language_model()
    host = ModelHost(model, queue_limit=1)
    with pytest.raises(ModelError, match="read the prompt") as caught:
        list(host.run(Job((1, 2), SAMPLING)))
    assert caught.value.to_payload()["error"]["retryable"]
    assert list(host.run(make_job(model)))


@with_marks
def test_forked_turn_that_is_dropped_frees_the_model(borrowed_gpu):
    model = tiny_language_model()
    host = ModelHost(model, queue_limit=1)
    events = host.run(make_job(model))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert list(host.run(make_job(model)))


def test_without_a_space_the_call_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(gpu, "spaces", None)
    assert gpu.on_accelerator(run_job) is run_job


def test_without_a_lent_gpu_nothing_is_decorated_and_nothing_waits() -> None:
    def call() -> int:
        return 1

    assert gpu.on_accelerator(call) is call
    assert not gpu.lent_per_call()
