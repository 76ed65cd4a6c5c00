"""The public calls as Gradio endpoints: names, type hints, one-line docs, and who waits for whom.

Turns share one limit, so that quick calls find a free thread however many turns are waiting; the
engine's own queue says `busy` before that limit is reached. Knows nothing of what a call does.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse

from engine.errors import InvalidRequest

TURN_CALLS = ("ask", "ask_stream", "predict_main", "npc_try")
TURNS = "turns"
_SPARE = 8
_QUICK_THREADS = 40
_MOST_TURNS = 256


def turn_limit(queue_limit: int) -> int:
    """Return how many turns Gradio lets in at once: more than wait, so that the rest hear `busy`."""
    return min(queue_limit + _SPARE, _MOST_TURNS)


def thread_limit(queue_limit: int) -> int:
    """Return how many threads serve calls: one for every turn let in, and some for the quick ones."""
    return turn_limit(queue_limit) + _QUICK_THREADS


def register(calls: dict[str, Callable[..., Any]], queue_limit: int) -> None:
    """Make an endpoint of every call; to be called inside a `gr.Blocks`."""
    for name, call in calls.items():
        turn = name in TURN_CALLS
        gr.api(
            endpoint(call),
            api_name=name,
            api_description=first_line(call),
            concurrency_limit=turn_limit(queue_limit) if turn else None,
            concurrency_id=TURNS if turn else None,
        )


def endpoint(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` as a function whose signature Gradio can show.

    It reads annotations as they stand, so they are resolved here; an argument that may be left out
    shows its plain type, and a stream shows what it yields.
    """
    hints = typing.get_type_hints(call)
    parameters = [
        one.replace(annotation=_plain(hints[name]) if one.default is None else hints[name])
        for name, one in inspect.signature(call).parameters.items()
    ]
    streams = inspect.isgeneratorfunction(call)
    returns = typing.get_args(hints["return"])[0] if streams else hints["return"]
    if streams:

        @functools.wraps(call)
        def adapter(*args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from call(*args, **kwargs)
    else:

        @functools.wraps(call)
        def adapter(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

    adapter.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": returns}
    adapter.__dict__["__signature__"] = inspect.Signature(parameters, return_annotation=returns)
    return adapter


def _plain(hint: Any) -> Any:
    """Return `X` for `X | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kept = [one for one in typing.get_args(hint) if one is not types.NoneType]
        return kept[0] if len(kept) == 1 else hint
    return hint


def first_line(call: Callable[..., Any]) -> str:
    """Return the first line of a call's docstring."""
    return (inspect.getdoc(call) or "").partition("\n")[0]


def arguments(call: Callable[..., Any]) -> str:
    """Return a call's arguments as they are written: "text, npc_id, context=None"."""
    return ", ".join(
        name if one.default is inspect.Parameter.empty else f"{name}={one.default}"
        for name, one in inspect.signature(call).parameters.items()
    )


def exception_handlers() -> dict[Any, Callable[..., Any]]:
    """Return handlers that answer a misspelt call over HTTP with our error payload.

    Gradio checks names and arguments of such a call before any function of ours sees it.
    """
    return {TypeError: _bad_arguments, KeyError: _unknown_call}


def _bad_arguments(request: Request, exc: Exception) -> JSONResponse:
    if "/call/" not in request.url.path:
        raise exc
    words = str(exc).partition(" Please click")[0]
    name = words.rpartition(": ")[2] if "required argument" in words else words.split("`")[1::2]
    field = name if isinstance(name, str) else (name[0] if name else None)
    return JSONResponse(InvalidRequest(words, field=field).to_payload(), status_code=422)


def _unknown_call(request: Request, exc: Exception) -> JSONResponse:
    if "/call/" not in request.url.path:
        raise exc
    message = f"there is no call {exc.args[0]!r}; /status and the API page list them"
    return JSONResponse(InvalidRequest(message).to_payload(), status_code=404)
