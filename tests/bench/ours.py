"""Contestant: the engine's own host, as the app makes it, with as many callers as players."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from engine.embed import SentenceEmbedder
from engine.host import Host, Job, LineDone, LineSoFar, StateKnown
from engine.listen import listener_of
from engine.model import LanguageModel
from engine.serving.batch import BatchHost, BatchLimits
from engine.serving.start import make_decoder, make_host
from engine.serving.steps import Forms, make_steps
from engine.weights import resolve_embedder
from tests.bench.drive import Times, Turn
from tests.bench.workload import Workload

# What would end a line or keep a word from being shown: breaks, stage directions, quotes, half letters.
_AWKWARD = frozenset('\n\r\x0b\x0c\x85()[]*"“”‘’\ufffd')
_ROOM = 1024


class Ours:
    """Runs the workload's turns on a host; where the heads listen, the embedder's time counts too."""

    every_player_starts_cold = True

    def __init__(self, host: Host, workload: Workload) -> None:
        self._host = host
        self._workload = workload
        wanted = host.model.bundle.info.embedder_id
        embedder = SentenceEmbedder(resolve_embedder(None)) if wanted else None
        self._embedder = listener_of(wanted, embedder) if embedder else None
        self._hear("Good evening.")  # the first call of a library sets things up

    def _hear(self, words: str) -> tuple[float, ...]:
        if self._embedder is None:
            return ()
        return tuple(self._embedder.encode([words])[0].tolist())

    def take(self, turn: Turn) -> Times | None:
        """See `Contestant`."""
        state = first = whole = 0.0
        began = time.perf_counter()
        # Never the same words twice: the embedder remembers what it was asked.
        words = f"I have come {turn.number} times to ask player {turn.player}'s friend for help."
        job = Job(
            turn.ids,
            self._workload.sampling(seed=1000 * turn.player + turn.number),
            suffix=self._workload.act,
            prefix=len(self._workload.prefix),
            session=f"player-{turn.player}",
            meaning=self._hear(words),
        )
        for event in self._host.run(job):
            since = time.perf_counter() - began
            if isinstance(event, StateKnown):
                state = since
            elif isinstance(event, LineSoFar):
                first = first or since
            elif isinstance(event, LineDone):
                whole = since
        return Times(state, first or whole, whole)

    def notes(self) -> dict[str, object]:
        """See `Contestant`."""
        found: dict[str, object] = {"host": type(self._host).__name__}
        if isinstance(self._host, BatchHost):
            shape = self._host.decoder.shape
            found["weights"] = self._host.load["weights"]
            found["cache_bytes_per_token"] = shape.bytes_per_token
        return found

    def close(self) -> None:
        """See `Contestant`."""
        self._host.close()


def make_ours(
    model: LanguageModel,
    workload: Workload,
    players: int,
    *,
    forms: Forms | None = None,
    tuning: Path | None = None,
) -> Ours:
    """Return the contestant; `model` is changed so that its lines never end early.

    Args:
        model: the loaded model.
        workload: the prompts.
        players: that may be inside at once.
        forms: which form decodes how many lines; None: as the app chooses.
        tuning: file that remembers what was chosen.
    """
    make_endless(model)
    limits = BatchLimits(queue=max(players, BatchLimits.queue))
    if forms is None:
        host = make_host(
            model,
            queue_limit=limits.queue,
            batch=limits.batch,
            prefix_cache_mb=limits.cache_bytes // 2**20,
            tuning=tuning,
        )
        return Ours(host, workload)
    decoder = make_decoder(model, room=_ROOM)
    return Ours(BatchHost(model, decoder, limits, make_steps(decoder, forms)), workload)


def make_endless(model: LanguageModel) -> None:
    """Keep a model from ending a line before its tokens are used up, whatever it would like to say."""
    awkward = awkward_ids(model.tokenizer)
    model.suppressed = sorted({*model.suppressed, *model.stop_ids, *awkward})
    model.stop_ids = frozenset()


def awkward_ids(tokenizer: Any) -> set[int]:
    """Return the ids whose text would end a line, or would not be shown at once."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return {token for token, text in enumerate(texts) if not text or _AWKWARD & set(text)}
