"""The API tab: code for what the Chat tab shows right now, and a table of all calls.

What the code says comes from `engine.ui.snippets`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.route_utils import get_root_url

from engine.errors import EngineError, UnknownNPC
from engine.ui import render
from engine.ui.calls import arguments, first_line
from engine.ui.chat import ChatTab
from engine.ui.desk import View
from engine.ui.snippets import all_snippets, protocol
from engine.ui.words import label, locale_of

_FORMS = (
    ("python", "Python", "python"),
    ("javascript", "JavaScript", "javascript"),
    ("fetch", "fetch", "javascript"),
    ("curl", "curl", "shell"),
    ("csharp", "C# (Unity)", "c"),
    ("gdscript", "GDScript", "python"),
    ("protocol", "HTTP", "shell"),
)
_GREETING = {"en": "Hello. Who are you?", "ko": "안녕하세요. 누구세요?"}

EXAMPLE: dict[str, Any] = {
    "text": "You found my photo… Take the necklace. It was hers, and now it is yours.",
    "delta": {"trust": 0.1, "relationship": 0.08},
    "flags": {"give_item": True, "npc_main_story": False},
    "meta": {
        "npc_id": "mother_abandoned_factory",
        "player_id": "p1",
        "turn_id": "4f0c…",
        "version": 7,
        "route": "main",
        "route_reason": None,
        "language": "en",
        "line": "generated",
        "quest_stage": "in_progress",
        "next_quest_stage": "in_progress",
        "state_before": {"trust": 0.35, "relationship": 0.35},
        "state": {"trust": 0.45, "relationship": 0.43},
        "actions": [
            {
                "flag": "give_item",
                "value": "gold_necklace",
                "text": "Silvia hands over the gold necklace.",
                "source": "exact",
                "effect_id": "9b1d…",
            }
        ],
        "flags_detail": {
            "give_item": {
                "probability": 0.92,
                "threshold": 0.55,
                "permitted": True,
                "fired": True,
                "reason": None,
            },
            "npc_main_story": {
                "probability": 0.31,
                "threshold": 0.5,
                "permitted": False,
                "fired": False,
                "reason": "…",
            },
        },
        "reaction": None,
        "model": {"base": "…", "bundle": "…"},
        "seed": 7,
        "timings_ms": {"prefill": 210.0, "state": 260.5, "generate": 1480.2, "total": 1745.1},
    },
}


class ApiTab:
    """The tab's components; to be made inside a `gr.Tab`.

    Args:
        calls: the public calls by name.
        chat: whose NPC, words and scene the snippets carry.
    """

    def __init__(self, calls: dict[str, Callable[..., Any]], chat: ChatTab) -> None:
        self._calls = calls
        self._chat = chat
        with gr.Column(elem_id="pc-api"):
            gr.Markdown(label("api_intro"), elem_classes="pc-hint")
            self._codes: dict[str, gr.Code] = {}
            with gr.Tabs():
                for name, title, language in _FORMS:
                    with gr.Tab(title):
                        self._codes[name] = self._code(name, title, language)
            self._table = gr.HTML(padding=False)
            with gr.Accordion(label("errors"), open=True):
                gr.Markdown(label("errors_text"))
                payload = UnknownNPC(
                    "there is no NPC 'nobody'; known: …", field="npc_id"
                ).to_payload()
                self._code("errors", "JSON", "json", payload)
            with gr.Accordion(label("answer"), open=False):
                self._code("answer", "JSON", "json", EXAMPLE)

    @staticmethod
    def _code(name: str, title: str, language: Any, value: Any = None) -> gr.Code:
        return gr.Code(
            json.dumps(value, ensure_ascii=False, indent=2) if value else "",
            language=language,
            label=title,
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            buttons=["copy"],
            elem_id=f"pc-code-{name}",
        )

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `drawn` takes."""
        return [self._chat.box, self._chat.view, *self._chat.fields.inputs]

    @property
    def outputs(self) -> list[Any]:
        """The components that `drawn` speaks of."""
        return [self._table, *self._codes.values()]

    def drawn(self, request: gr.Request, words: str, view: View, *fields: Any) -> dict[Any, Any]:
        """Draw snippets for the Chat tab's present state, and the table of calls."""
        locale = locale_of(request.headers.get("accept-language"))
        given = self.arguments(words or view.last_words or _GREETING[locale], view, fields)
        url = page_url(request)
        snippets = {**all_snippets(url, given), "protocol": protocol(url)}
        table = render.calls_table(
            [
                (f"/{name}({arguments(call)})", first_line(call))
                for name, call in self._calls.items()
            ],
            locale,
        )
        return {self._table: table, **{self._codes[name]: code for name, code in snippets.items()}}

    def arguments(self, words: str, view: View, fields: tuple[Any, ...]) -> dict[str, Any]:
        """Return what a call of `ask` would carry now."""
        given: dict[str, Any] = {"text": words, "npc_id": view.npc_id, "player_id": view.player}
        try:
            context, params = self._chat.sent(view, fields)
        except EngineError:  # the Chat tab says what is wrong with the game state
            return given
        return {
            **given,
            **({"context": context} if context else {}),
            **({"gen_params": params} if params else {}),
        }


def page_url(request: gr.Request) -> str:
    """Return the address under which the browser sees the page, behind proxies too."""
    inner = request.request
    if inner is None:
        return "http://127.0.0.1:7860"
    return get_root_url(
        request=inner, route_path=inner.url.path, root_path=inner.scope.get("root_path") or None
    )
