"""Contestant: the original project's way of a turn, with the plain library model.

`generate` on the full prompt, then a second forward pass over it that keeps all hidden states, one
request at a time and nothing kept between two. The heads themselves cost nothing beside that.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from engine.model import LanguageModel
from tests.bench.drive import Times, Turn
from tests.bench.workload import Workload


class Original:
    """Runs the workload's turns one after the other, in the order in which they come."""

    every_player_starts_cold = False

    def __init__(self, model: LanguageModel, workload: Workload) -> None:
        self._precision = model.precision
        self._model: Any = model.model
        self._padding = model.tokenizer.eos_token_id
        self._workload = workload
        self._queue = ThreadPoolExecutor(1)  # first come, first served; a bare lock is not

    def take(self, turn: Turn) -> Times | None:
        """See `Contestant`."""
        return self._queue.submit(self._answer, turn, time.perf_counter()).result()

    def _answer(self, turn: Turn, began: float) -> Times | None:
        if time.perf_counter() >= turn.give_up_at:
            return None
        ids_1T = torch.tensor([list(turn.ids)])
        with torch.inference_mode():
            self._generate(ids_1T, seed=1000 * turn.player + turn.number)
            written = time.perf_counter() - began
            self._model(ids_1T, output_hidden_states=True)
        whole = time.perf_counter() - began
        return Times(state=whole, first=written, whole=whole)

    def _generate(self, ids_1T: torch.Tensor, seed: int) -> None:
        wanted = self._workload
        torch.manual_seed(seed)
        written_1T = self._model.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            do_sample=True,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            repetition_penalty=wanted.repetition_penalty,
            max_new_tokens=wanted.reply_tokens,
            min_new_tokens=wanted.reply_tokens,
            pad_token_id=self._padding,
        )
        count = written_1T.shape[1] - ids_1T.shape[1]
        if count != wanted.reply_tokens:
            raise RuntimeError(f"generate wrote {count} tokens, not {wanted.reply_tokens}")

    def notes(self) -> dict[str, object]:
        """See `Contestant`."""
        return {"precision": self._precision}

    def close(self) -> None:
        """See `Contestant`."""
        self._queue.shutdown()
