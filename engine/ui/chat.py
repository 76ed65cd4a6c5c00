"""The Chat tab: talk to an NPC, see what each turn decided, change the scene.

Thin handlers over `engine.api`; what is drawn comes from `engine.ui.render`, what the scene fields
mean from `engine.ui.scene`. A handler takes a `View` and returns a new one.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import gradio as gr

from engine.api import Api
from engine.errors import EngineError, InvalidRequest
from engine.service import EngineService
from engine.ui import journey, render, scene
from engine.ui.calls import TURNS
from engine.ui.desk import Desk, View, error_of, message, new_player, plain_error
from engine.ui.fields import SceneFields, Updates, talk_box
from engine.ui.prompt_view import PromptView
from engine.ui.session_files import SessionFiles, session_data
from engine.ui.words import label, locale_of, say

_STORAGE = "persona-chat-engine"
_PENDING = "…"
_TO_BOX = """() => {
  if (matchMedia("(pointer: fine)").matches) document.querySelector("#pc-say textarea")?.focus();
}"""


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
            with gr.Column(elem_id="pc-left", min_width=0):
                with gr.Column(elem_id="pc-who", min_width=0):
                    self._build_who()
                with gr.Column(elem_id="pc-session", min_width=0):
                    self._build_session()
            with gr.Column(elem_id="pc-middle", min_width=0):
                with gr.Column(elem_id="pc-chat", min_width=0):
                    self._build_chat()
                with (
                    gr.Column(elem_id="pc-scene", min_width=0),
                    gr.Accordion(label("scene"), open=True),
                ):
                    self.fields = SceneFields()
            with gr.Column(elem_id="pc-turn", min_width=0):
                self._turn = gr.HTML(elem_id="pc-inspector", padding=False)
                self._prompt = PromptView(api, self.sent)

    def _build_who(self) -> None:
        self._npc = gr.Dropdown([], label=label("npc"), elem_id="pc-npc")
        self._card = gr.HTML(elem_id="pc-card", padding=False)

    def _build_session(self) -> None:
        self._language = gr.Radio(
            [(label("auto"), ""), ("English", "en"), ("한국어", "ko")],
            value="",
            label=label("language"),
            elem_id="pc-language",
        )
        self._player = gr.Textbox(
            label=label("player_id"),
            info=label("player_info"),
            max_length=128,
            elem_id="pc-player",
        )
        self._files = SessionFiles(self.desk)

    def _build_chat(self) -> None:
        self._chat = talk_box("pc-talk", height=440)
        with gr.Row(elem_id="pc-input", equal_height=True):
            self.box = gr.Textbox(
                label=label("say"),
                placeholder=label("say_placeholder"),
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
                label("send"), variant="primary", elem_id="pc-send", scale=0, min_width=92
            )
            self._stop = gr.Button(
                label("stop"),
                variant="stop",
                elem_id="pc-stop",
                scale=0,
                min_width=92,
                visible=False,
            )
        with gr.Row(elem_id="pc-tools"):
            self._note = gr.HTML(elem_id="pc-note", padding=False)
            self._retry = gr.Button(label("retry"), size="sm", elem_id="pc-retry", min_width=0)
            self._undo = gr.Button(label("undo"), size="sm", elem_id="pc-undo", min_width=0)
            self._clear = gr.Button(label("clear"), size="sm", elem_id="pc-clear", min_width=0)
        gr.Markdown(label("keys"), elem_classes="pc-hint pc-keys")

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
        self._retry.click(
            self.retried,
            [self.view, *self.fields.inputs],
            seen,
            concurrency_id=TURNS,
            concurrency_limit=self._turn_limit,
            trigger_mode="once",
            **quiet,
        )
        self._prompt.wire(self.box, self.view, self.fields.inputs)
        self._files.branch.click(self.branched, [self.view], seen, **quiet)
        self._files.load.upload(self.loaded, [self._files.load, self.view], seen, **quiet)
        self._files.wire(self.view, self._note)
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
        own += [self._chat, self._note, self.box, self._send, self._stop, self._retry]
        own += [self._undo, self._clear, self._files.branch, self._files.load]
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

    def said(self, request: gr.Request, words: str, view: View, *fields: Any) -> Iterator[Updates]:
        """Play a turn, drawing the state as soon as it is known and the line as it grows."""
        locale, key = _locale(request), request.session_hash or ""
        try:
            context, params = self.sent(view, fields)
        except EngineError as exc:
            yield self._failed(view, words, plain_error(exc), locale)
            return
        stop = self._stops[key] = threading.Event()
        try:
            yield from self._play(words, view, (context, params), locale, stop)
        finally:
            self._stops.pop(key, None)

    def _play(
        self,
        words: str,
        view: View,
        sent: tuple[scene.Values, scene.Values],
        locale: str,
        stop: threading.Event,
    ) -> Iterator[Updates]:
        talk = [*view.talk, message("user", words)]
        if words.strip():
            pending = [*talk, message("assistant", _PENDING)]
            yield {
                self._chat: render.speech(pending),
                self.box: "",
                self._note: "",
                **self._busy(True),
            }
        events = self._api.ask_stream(words, view.npc_id, view.player, *sent)
        with closing(cast(Generator[dict[str, Any], None, None], events)):
            for event in events:
                error = error_of(event)
                whole = "meta" in event and "text" in event
                if error:
                    yield self._failed(view, words, error, locale)
                    return
                if stop.is_set() and not whole:
                    yield self._back(view, words, render.note(say("stopped", locale), "good"))
                    return
                if whole:
                    yield self._done(view.with_turn(words, event), event, locale)
                elif "meta" in event:
                    steps = (*view.steps, journey.step(words, event))
                    seen = replace(view, steps=steps)
                    yield {self._turn: self._decided(seen, event, locale, writing=True)}
                else:
                    line = message("assistant", event["text"] or _PENDING)
                    yield {self._chat: render.speech([*talk, line])}

    def stopped(self, request: gr.Request) -> None:
        """Ask the browser's running turn to stop at its next event."""
        running = self._stops.get(request.session_hash or "")
        if running:
            running.set()

    def undone(self, box: str, view: View, request: gr.Request) -> Updates:
        """Take the last turn back; its words come back to an empty box."""
        locale = _locale(request)
        standing = self._api.undo(view.player, view.npc_id)
        error = error_of(standing)
        if error:
            return {self._note: render.error_note(error, locale)}
        words = box.strip() or view.last_words
        view = view.without_turn()
        if not view.last_words:  # further back than this page shows
            view = self.desk.opened(view)
        drawn = self._drawn(replace(view, standing=standing), locale)
        return {**drawn, self.box: words, self._note: render.note(say("undone", locale), "good")}

    def retried(self, request: gr.Request, view: View, *fields: Any) -> Iterator[Updates]:
        """Take the last turn back and play its words again, with another seed."""
        locale, key = _locale(request), request.session_hash or ""
        words = view.last_words
        try:
            context, params = self.sent(view, fields)
            if not words:
                raise InvalidRequest(say("nothing_to_retry", locale))
        except EngineError as exc:
            yield {self._note: render.error_note(plain_error(exc), locale)}
            return
        standing = self._api.undo(view.player, view.npc_id)
        error = error_of(standing)
        if error:
            yield {self._note: render.error_note(error, locale)}
            return
        again = {**params, "seed": random.randrange(2**31)}
        stop = self._stops[key] = threading.Event()
        try:
            back = replace(view.without_turn(), standing=standing)
            yield from self._play(words, back, (context, again), locale, stop)
        finally:
            self._stops.pop(key, None)

    def branched(self, view: View, request: gr.Request) -> Updates:
        """Copy all that the NPCs remember of the player to a new one, and go on as that one."""
        locale = _locale(request)
        saved = self._api.save(view.player)
        copy = {**saved, "player_id": new_player()}
        error = error_of(saved) or error_of(self._api.load(copy))
        if error:
            return {self._note: render.error_note(error, locale)}
        return {
            **self._open(replace(view, player=copy["player_id"]), locale),
            self._note: render.note(say("branched", locale), "good"),
        }

    def loaded(self, content: bytes | None, view: View, request: gr.Request) -> Updates:
        """Load a session file; the page then shows that player."""
        locale = _locale(request)
        data = session_data(content)
        if data is None:
            return {self._note: render.note(say("bad_session_file", locale))}
        told = self._api.load(data)
        error = error_of(told)
        if error:
            return {self._note: render.error_note(error, locale)}
        return {
            **self._open(replace(view, player=told["player_id"]), locale),
            self._note: render.note(say("loaded_session", locale), "good"),
        }

    def forgotten(self, view: View, request: gr.Request) -> Updates:
        """Make the NPC forget the player."""
        locale = _locale(request)
        error = error_of(self._api.forget(view.player, view.npc_id))
        if error:
            return {self._note: render.error_note(error, locale)}
        note = render.note(say("forgotten", locale), "good")
        return {**self._drawn(self.desk.opened(view), locale), self._note: note}

    def preset_chosen(self, key: str, view: View) -> Updates:
        """Fill scene and words so that the chosen flag is permitted."""
        npc = self.desk.npc(view)
        chosen = next((one for one in scene.presets_of(npc) if one.key == key), None)
        if chosen is None:
            return {self.view: view}
        values = {**view.shown, **chosen.values}
        return {
            **self.fields.filled(values, scene.choices_of(npc)),
            self.box: chosen.words or gr.skip(),
        }

    def changed(self, request: gr.Request, view: View, *fields: Any) -> Updates:
        """Say what the next turn will carry, and what is wrong with the game state."""
        locale = _locale(request)
        try:
            sent = self.sent(view, fields)
        except EngineError as exc:
            return {self.fields.game_state_error: render.note(exc.message)}
        return {
            self.fields.game_state_error: "",
            self.fields.will_send: render.will_send_view(*sent, locale),
        }

    def sent(self, view: View, fields: Sequence[Any]) -> tuple[scene.Values, scene.Values]:
        """Return the context and the sampling that a turn carries now.

        Raises:
            InvalidRequest: the game state cannot be read.
        """
        values, sampling = self.fields.values(fields)
        context = scene.context_of(values, view.shown, view.language)
        return context, scene.gen_params_of(sampling)

    # What is drawn

    def _open(self, view: View, locale: str) -> Updates:
        view = self.desk.opened(view)
        stored = {self._stored: view.player, self._player: view.player}
        if not view.npc_id:
            return {self.view: view, **stored}
        picker = gr.update(choices=self.desk.npc_choices(), value=view.npc_id)
        presets = [one.key for one in scene.presets_of(self.desk.npc(view))]
        return {
            **self._drawn(view, locale),
            **stored,
            self._npc: picker,
            self._note: "",
            self.fields.preset: gr.update(choices=presets, value=None),
        }

    def _drawn(self, view: View, locale: str) -> Updates:
        """Draw a view at rest: talk, standing, card and fields."""
        npc = self.desk.npc(view)
        return {
            **self._filled(view, locale),
            self._chat: render.speech(view.talk),
            self._turn: render.standing_view(npc, view.standing, locale),
        }

    def _filled(self, view: View, locale: str) -> Updates:
        npc = self.desk.npc(view)
        view = replace(view, shown=scene.shown(view.standing))
        context = {"language": view.language} if view.language else {}
        card = render.persona_card(npc, self.desk.languages(view), view.standing, locale)
        return {
            **self.fields.filled(view.shown, scene.choices_of(npc)),
            self.fields.will_send: render.will_send_view(context, {}, locale),
            self.view: view,
            self._card: card,
        }

    def _done(self, view: View, result: dict[str, Any], locale: str) -> Updates:
        view = replace(view, standing=self.desk.standing(view))
        return {
            **self._filled(view, locale),
            **self._busy(False),
            self._chat: render.speech(view.talk),
            self._turn: self._decided(view, result, locale),
        }

    def _decided(
        self, view: View, result: dict[str, Any], locale: str, *, writing: bool = False
    ) -> str:
        flags = self.desk.npc(view).stage(result["meta"]["quest_stage"]).flags
        plot = journey.plot(view.steps, locale)
        return render.turn_view(result, locale, stage_flags=flags, writing=writing, plot=plot)

    def _failed(self, view: View, words: str, error: dict[str, Any], locale: str) -> Updates:
        updates = self._back(view, words, render.error_note(error, locale))
        if error.get("field") == "context.game_state":
            updates[self.fields.game_state_error] = render.note(error["message"])
        return updates

    def _back(self, view: View, words: str, note: str) -> Updates:
        """Draw the page as it was before the turn, with the words back in the box."""
        return {
            self._chat: render.speech(view.talk),
            self.box: words,
            self._note: note,
            **self._busy(False),
        }

    def _busy(self, running: bool) -> Updates:
        """Show Stop for Send, and hold what must not change under a running turn."""
        held: tuple[Any, ...] = (self._npc, self._language, self._player, self._retry, self._undo)
        held += (self._clear, self._files.branch, self._files.load)
        return {
            self._send: gr.update(visible=not running),
            self._stop: gr.update(visible=running),
            **{component: gr.update(interactive=not running) for component in held},
        }


def _settled(field: Any) -> Any:
    """Return the event of a field that somebody has finished changing."""
    if isinstance(field, gr.Slider):
        return field.release
    return field.blur if isinstance(field, gr.Textbox) else field.input


def _locale(request: gr.Request) -> str:
    return locale_of(request.headers.get("accept-language"))
