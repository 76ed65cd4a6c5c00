"""The Chat tab: talk to an NPC, see what each turn decided, change the scene.

Thin handlers over `engine.api`; what is drawn comes from `engine.ui.render`, what the scene fields
mean from `engine.ui.scene`. A handler takes a `View` and returns a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from engine.api import Api
from engine.errors import EngineError
from engine.service import EngineService
from engine.ui import render, scene
from engine.ui.calls import TURNS
from engine.ui.desk import Desk, View, error_of, message, new_player, plain_error
from engine.ui.fields import SceneFields, Updates
from engine.ui.words import I18N, locale_of, say

_STORAGE = "persona-chat-engine"
_PENDING = "…"
_TO_BOX = "() => { if (matchMedia('(pointer: fine)').matches) document.querySelector('#pc-say textarea')?.focus(); }"


class ChatTab:
    """The tab's components and handlers; to be made inside a `gr.Tab`.

    Args:
        service: for the NPC files.
        api: the public calls.
        turn_limit: how many turns Gradio lets in at once, shared with the API's.
    """

    def __init__(self, service: EngineService, api: Api, turn_limit: int) -> None:
        self.desk = Desk(service, api)
        self._api = api
        self._turn_limit = turn_limit
        self._stops: dict[str, threading.Event] = {}
        self.view = gr.State(View())
        # No secret: it only lets a stored id be read again after a restart.
        self._stored = gr.BrowserState("", storage_key=_STORAGE, secret=_STORAGE)
        with gr.Row(elem_id="pc-grid", equal_height=False):
            with gr.Column(elem_id="pc-who", min_width=0):
                self._build_who()
            with gr.Column(elem_id="pc-chat", min_width=0):
                self._build_chat()
            with gr.Column(elem_id="pc-turn", min_width=0):
                self._turn = gr.HTML(elem_id="pc-inspector", padding=False, min_height=420)
            with (
                gr.Column(elem_id="pc-scene", min_width=0),
                gr.Accordion(I18N("scene"), open=True),
            ):
                self.fields = SceneFields()

    def _build_who(self) -> None:
        self._npc = gr.Dropdown([], label=I18N("npc"), elem_id="pc-npc")
        self._card = gr.HTML(elem_id="pc-card", padding=False, min_height=180)
        self._language = gr.Radio(
            [(I18N("auto"), ""), ("English", "en"), ("한국어", "ko")],
            value="",
            label=I18N("language"),
            elem_id="pc-language",
        )
        self._player = gr.Textbox(
            label=I18N("player_id"),
            info=I18N("player_info"),
            max_length=128,
            elem_id="pc-player",
        )

    def _build_chat(self) -> None:
        self._chat = gr.Chatbot(
            label=I18N("conversation"),
            elem_id="pc-talk",
            height=520,
            render_markdown=False,
            group_consecutive_messages=False,
            feedback_options=None,
            buttons=[],
            layout="bubble",
        )
        self._note = gr.HTML(elem_id="pc-note", padding=False)
        with gr.Row(elem_id="pc-input", equal_height=True):
            self.box = gr.Textbox(
                label=I18N("say"),
                placeholder=I18N("say_placeholder"),
                show_label=False,
                container=False,
                lines=1,
                max_lines=4,
                autofocus=True,
                scale=8,
                min_width=0,
                elem_id="pc-say",
                html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
            )
            self._send = gr.Button(
                I18N("send"), variant="primary", elem_id="pc-send", scale=0, min_width=92
            )
            self._stop = gr.Button(
                I18N("stop"), variant="stop", elem_id="pc-stop", scale=0, min_width=92, visible=False
            )
        with gr.Row(elem_id="pc-tools"):
            self._undo = gr.Button(I18N("undo"), size="sm", elem_id="pc-undo", min_width=0)
            self._clear = gr.Button(I18N("clear"), size="sm", elem_id="pc-clear", min_width=0)

    # Wiring

    def wire(self) -> None:
        """Connect the handlers, all of them hidden from the API page."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        seen = self._outputs
        switch = [self._npc, self._language, self._player, self.view]
        gr.on(
            [self._npc.input, self._language.input, self._player.submit, self._player.blur],
            self.switched,
            switch,
            seen,
            **quiet,
        )
        gr.on(
            [self._send.click, self.box.submit],
            self.said,
            [self.box, self.view, *self.fields.inputs],
            seen,
            concurrency_id=TURNS,
            concurrency_limit=self._turn_limit,
            trigger_mode="once",
            **quiet,
        )
        self._send.click(None, js=_TO_BOX, **quiet)
        self._stop.click(self.stopped, None, None, queue=False, js=_TO_BOX, **quiet)
        self._undo.click(self.undone, [self.box, self.view], seen, **quiet)
        self._clear.click(self.forgotten, [self.view], seen, **quiet)
        self.fields.preset.input(
            self.preset_chosen, [self.fields.preset, self.view], seen, **quiet
        ).then(self.changed, [self.view, *self.fields.inputs], self._changed_outputs, **quiet)
        gr.on(
            [_settled(field) for field in self.fields.inputs],
            self.changed,
            [self.view, *self.fields.inputs],
            self._changed_outputs,
            queue=False,
            trigger_mode="always_last",
            **quiet,
        )

    @property
    def _outputs(self) -> list[Any]:
        own = [self.view, self._stored, self._npc, self._card, self._language, self._player]
        own += [self._chat, self._note, self.box, self._send, self._stop, self._undo, self._clear]
        return [*own, self._turn, self.fields.preset, *self.fields.outputs]

    @property
    def _changed_outputs(self) -> list[Any]:
        return [self.fields.game_state_error, self.fields.will_send]

    @property
    def arrival(self) -> tuple[list[Any], list[Any]]:
        """Inputs and outputs of `arrived`."""
        return [self._stored, self.view], self._outputs

    # Handlers

    def arrived(self, stored: str, view: View, request: gr.Request) -> Updates:
        """Fill the page for a browser that came, or when the engine has become ready."""
        player = view.player or (stored if isinstance(stored, str) else "") or new_player()
        return self._open(replace(view, player=player, ready=self.desk.ready), _locale(request))

    def switched(
        self, npc_id: str, language: str, player: str, view: View, request: gr.Request
    ) -> Updates:
        """Show the session of another NPC, language or player."""
        player = (player or "").strip() or new_player()
        wanted = replace(view, npc_id=npc_id or "", language=language or "", player=player)
        if wanted == view:
            return {self.view: view}
        return self._open(wanted, _locale(request))

    def said(self, words: str, view: View, *rest: Any) -> Iterator[Updates]:
        """Play a turn, drawing the state as soon as it is known and the line as it grows."""
        # Gradio hands the request over by its annotation, which it cannot find behind `*rest`.
        raise NotImplementedError

    def stopped(self, request: gr.Request) -> None:
        """Ask the browser's running turn to stop at its next event."""
        running = self._stops.get(request.session_hash or "")
        if running:
            running.set()
