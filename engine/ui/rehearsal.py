"""The NPCs tab's rehearsal: a talk with the NPC as it is being written.

Thin handlers over `npc_try`; what a rehearsal is, `engine.rehearsal` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from engine.errors import EngineError
from engine.npc import parse_npc
from engine.npc_calls import NPCCalls
from engine.ui import render, scene
from engine.ui.desk import Message, error_of, message
from engine.ui.fields import Updates, talk_box
from engine.ui.npc_form import parsed
from engine.ui.words import label, locale_of, say

Json = dict[str, Any]


@dataclass(frozen=True)
class Rehearsed:
    """What was said so far, and the stage that it was said on."""

    stage: str = ""
    talk: tuple[Message, ...] = ()


class Rehearsal:
    """The components; to be made where they shall stand, inside a `gr.Blocks`.

    Args:
        calls: the calls on NPC files.
    """

    def __init__(self, calls: NPCCalls) -> None:
        self._calls = calls
        self._held = gr.State(Rehearsed())
        with gr.Accordion(label("try_npc"), open=False, elem_id="pc-try"):
            gr.Markdown(label("try_intro"), elem_classes="pc-hint")
            self._talk = talk_box("pc-try-talk", height=300)
            with gr.Row(elem_classes="pc-pair"):
                self._say = gr.Textbox(label=label("try_say"), lines=1, elem_id="pc-try-say")
                self._send = gr.Button(label("send"), variant="primary", elem_id="pc-try-send")
            with gr.Row(elem_classes="pc-pair"):
                self._met = gr.Checkbox(label=label("try_met"), elem_id="pc-try-met")
                self._again = gr.Button(label("try_again"), elem_id="pc-try-again")
            self._told = gr.HTML(elem_id="pc-try-told", padding=False)

    def wire(self, code: Any, place: list[Any]) -> None:
        """Connect the handlers.

        Args:
            code: the component that holds the NPC's JSON.
            place: the components that say which stage and flag the rule editor shows.
        """
        asked = [self._say, self._met, self._held, code, *place]
        shown = [self._talk, self._told, self._held, self._say]
        once: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "once"}
        gr.on([self._say.submit, self._send.click], self.said, asked, shown, **once)
        self._again.click(self.begun, None, shown, api_visibility="private")

    def begun(self) -> Updates:
        """Forget what was said."""
        return {self._talk: [], self._told: "", self._held: Rehearsed(), self._say: ""}

    def said(
        self,
        words: str,
        met: bool,
        held: Rehearsed,
        code: str,
        stage: str | None,
        flag: str | None,
        request: gr.Request,
    ) -> Updates:
        """Say something to the NPC as it is written."""
        locale = locale_of(request.headers.get("accept-language"))
        data = parsed(code)
        if data is None:
            return {self._told: render.note(say("bad_json", locale))}
        context = _meeting(data, stage or "", flag or "") if met and not held.stage else None
        found = self._calls.npc_try(data, words, held.stage, context)
        error = error_of(found)
        if error:
            lost = error["field"] == "stage"  # a new one is begun with the next words
            return {
                self._told: render.error_note(error, locale),
                self._held: replace(held, stage="") if lost else held,
            }
        result = found["result"]
        talk = (*held.talk, message("user", words), message("assistant", result["text"]))
        return {
            self._talk: list(talk),
            self._told: render.turn_view(result, locale),
            self._held: Rehearsed(found["stage"], talk),
            self._say: "",
        }


def _meeting(data: Mapping[str, Any], stage: str, flag: str) -> Json | None:
    """Return a context that meets a flag's conditions; None where there is no such flag."""
    try:
        npc = parse_npc(data, path="NPC")
    except EngineError:
        return None  # the call says what is wrong
    presets = {(one.stage, one.flag): one for one in scene.presets_of(npc)}
    # A rule of the stage "any" is met at whichever stage has it.
    preset = presets.get((stage, flag)) or next(
        (one for (_, known), one in presets.items() if known == flag), None
    )
    if preset is None:
        return None
    values = preset.values
    return {**values, "game_state": scene.parse_game_state(values["game_state"])}
