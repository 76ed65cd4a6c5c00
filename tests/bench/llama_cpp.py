"""Contestant: llama.cpp's server with a slot for each player, what a game would use instead.

The line first, then the state as JSON under a grammar, in the same slot, so that prompt and line are
not read again. As kind to it as can be: only whole tokens of the JSON's own wording are allowed, which
halves their number, and a slot always serves the same player.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from engine.schema import FLAGS
from tests.bench.drive import Times, Turn
from tests.bench.workload import Workload

INSTALL = "pip install -r tests/bench/requirements.txt"
_CUE = "\nState: "
_MOST_JSON_TOKENS = 80
# A slot holds prompt, line, cue and JSON; llama.cpp rounds a slot's room up to 256 tokens.
_SLOT = 512


def have_llama_cpp() -> bool:
    """Tell whether xllamacpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


@dataclass(frozen=True)
class Answer:
    """What the server wrote: ids, text, and seconds to the first word and to the end."""

    ids: tuple[int, ...]
    text: str
    first: float
    whole: float


class LlamaCpp:
    """Runs the workload's turns against a server.

    Args:
        server: object that keeps the server alive; its `listening_address` is asked.
        tokenizer: of the same model, for the cue and the grammar.
        workload: the prompts.
        client: asks the server; None: one of its own.
    """

    every_player_starts_cold = True

    def __init__(
        self, server: Any, tokenizer: Any, workload: Workload, client: httpx.Client | None = None
    ) -> None:
        self._server = server
        self._url = f"{server.listening_address}/completion"
        self._workload = workload
        self._cue = encode(tokenizer, _CUE)
        self._grammar = state_grammar(tokenizer)
        self._json_tokens: list[int] = []
        self._client = client or make_client()

    def take(self, turn: Turn) -> Times | None:
        """See `Contestant`."""
        wanted = self._workload
        draw = {
            "id_slot": turn.player,
            "cache_prompt": True,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "seed": 1000 * turn.player + turn.number,
        }
        began = time.perf_counter()
        line = self._ask(
            turn.ids,
            **draw,
            repeat_penalty=wanted.repetition_penalty,
            n_predict=wanted.reply_tokens,
            ignore_eos=True,
        )
        if len(line.ids) != wanted.reply_tokens:
            raise RuntimeError(f"llama.cpp wrote {len(line.ids)} tokens, not {wanted.reply_tokens}")
        asked = (*turn.ids, *line.ids, *self._cue)
        state = self._ask(asked, **draw, n_predict=_MOST_JSON_TOKENS, grammar=self._grammar)
        whole = time.perf_counter() - began
        check_state(state.text)
        self._json_tokens.append(len(state.ids))
        return Times(state=whole, first=line.first, whole=whole)

    def _ask(self, ids: Sequence[int], **options: Any) -> Answer:
        body = {"prompt": list(ids), "stream": True, **options}
        began = time.perf_counter()
        with self._client.stream("POST", self._url, json=body) as response:
            return read_stream(response.iter_lines(), began)

    def notes(self) -> dict[str, object]:
        """See `Contestant`."""
        counts = self._json_tokens or [0]
        return {"json_tokens": round(sum(counts) / len(counts), 1)}

    def close(self) -> None:
        """See `Contestant`."""
        self._client.close()
        self._server = None


def make_client() -> httpx.Client:
    """Return a client that opens a connection for each request, as the server closes idle ones."""
    fresh = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(timeout=None, limits=fresh, trust_env=False)


def read_stream(lines: Iterator[str], began: float) -> Answer:
    """Read a completion's server-sent events.

    Args:
        lines: of the response.
        began: `time.perf_counter()` when it was asked for.

    Raises:
        RuntimeError: the server complains.
    """
    ids: list[int] = []
    text, first = "", 0.0
    for line in lines:
        if not line or line.startswith(":"):  # a comment keeps a waiting connection alive
            continue
        if not line.startswith("data: "):
            raise RuntimeError(f"llama.cpp complains: {line}")
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise RuntimeError(f"llama.cpp complains: {event['error']}")
        ids += event.get("tokens", [])
        text += event.get("content", "")
        if not first and text.strip():
            first = time.perf_counter() - began
    whole = time.perf_counter() - began
    return Answer(tuple(ids), text, first or whole, whole)


def make_llama_cpp(
    gguf: Path, tokenizer: Any, workload: Workload, players: int, *, threads: int
) -> LlamaCpp:
    """Start a server in this process and return the contestant.

    Args:
        gguf: the model.
        tokenizer: of the same model.
        workload: the prompts.
        players: slots.
        threads: for the model.
    """
    import xllamacpp  # for the bench alone

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_gpu_layers = 0
    params.n_parallel = players
    params.n_ctx = _SLOT * players
    params.fit_params = False  # else the context is cut to what it thinks fits the memory
    params.cache_prompt = True
    params.cache_ram_mib = 0  # slots keep their prompts; a second copy would only cost time
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = players + 2
    params.verbosity = 0
    return LlamaCpp(xllamacpp.Server(params), tokenizer, workload)


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the ids of a piece of text."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def state_grammar(tokenizer: Any) -> str:
    """Return a grammar of whole tokens for delta and flags: {"trust":0.05,…,"flags":[false,…]}.

    Source: llama.cpp, grammars/README.md, "Tokens".
    """

    def said(text: str) -> str:
        return " ".join(f"<[{token}]>" for token in encode(tokenizer, text))

    def one_of(texts: Sequence[str]) -> str:
        return " | ".join(said(text) for text in texts)

    opening, between, listing = (
        said(text) for text in ('{"trust":', ',"relationship":', ',"flags":[')
    )
    flags = f" {said(',')} ".join(["flag"] * len(FLAGS))
    return "\n".join(
        (
            f"root ::= {opening} number {between} number {listing} {flags} {said(']}')}",
            f"number ::= ({said('-')})? {said('0.')} digit digit",
            f"digit ::= {one_of([str(digit) for digit in range(10)])}",
            f"flag ::= {one_of(['true', 'false'])}",
            "",
        )
    )


def check_state(text: str) -> None:
    """Raise `RuntimeError` unless `text` is a whole state."""
    try:
        state = json.loads(text)
        sound = len(state["flags"]) == len(FLAGS) and {"trust", "relationship"} <= set(state)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise RuntimeError(f"llama.cpp's state is not what was asked for: {text!r}")
