"""The Scenes tab: run the designers' tests, see why one failed, record one from the chat.

Thin handlers over the `scene…` calls.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from engine.api import Api
from engine.ui import render, tables
from engine.ui.chat import ChatTab
from engine.ui.desk import View, error_of
from engine.ui.fields import Updates
from engine.ui.words import label, locale_of, say


class ScenesTab:
    """The tab's components; to be made inside a `gr.Tab`.

    Args:
        api: the public calls.
        chat: whose last turn is recorded, and whose NPC's scenes are run where only those are wanted.
    """

    def __init__(self, api: Api, chat: ChatTab) -> None:
        self._api = api.scenes
        gr.Markdown(label("scenes_intro"), elem_classes="pc-hint")
        with gr.Row(elem_classes="pc-pair"):
            self._only = gr.Checkbox(label=label("only_this_npc"), elem_id="pc-sc-only")
            self._run = gr.Button(label("run_scenes"), variant="primary", elem_id="pc-sc-run")
            self._name = gr.Textbox(
                label=label("scene_name"), max_lines=1, max_length=120, elem_id="pc-sc-name"
            )
            self._record = gr.Button(label("record_scene"), elem_id="pc-sc-record")
            self._token = gr.Textbox(
                label=label("owner_token"), type="password", max_lines=1, elem_id="pc-sc-token"
            )
        self._told = gr.HTML(elem_id="pc-sc-told", padding=False)
        quiet: dict[str, Any] = {"api_visibility": "private"}
        self._run.click(
            self.run,
            [self._only, self._token, chat.view],
            [self._told],
            concurrency_limit=1,
            trigger_mode="once",
            **quiet,
        )
        self._record.click(
            self.recorded, [self._name, self._token, chat.view], [self._told, self._name], **quiet
        )

    def run(
        self,
        only: bool,
        token: str,
        view: View,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it there)
    ) -> str:
        """Run the scenes and draw the table."""
        locale = locale_of(request.headers.get("accept-language"))

        def told(done: int, count: int, what: str) -> None:
            progress((done, count), desc=what)

        found = self._api.played(view.npc_id if only else "", token, told)
        error = error_of(found)
        return render.error_note(error, locale) if error else tables.scenes_view(found, locale)

    def recorded(self, name: str, token: str, view: View, request: gr.Request) -> Updates:
        """Make a scene of the last turn of the chat."""
        locale = locale_of(request.headers.get("accept-language"))
        if not view.steps:
            return {self._told: render.note(say("nothing_to_record", locale))}
        told = self._api.scene_record(
            view.player, view.npc_id, view.steps[-1]["meta"]["turn_id"], name, token
        )
        error = error_of(told)
        if error:
            return {self._told: render.error_note(error, locale)}
        note = f"{say('recorded', locale)} {told['saved']}: {told['scene']['name']}"
        return {self._told: render.note(note, "good"), self._name: ""}
