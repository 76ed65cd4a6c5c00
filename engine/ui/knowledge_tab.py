"""The "Flags & lore" tab: what a flag means at a stage, an NPC's documents, what its file leaves out.

Thin handlers over `engine.api`; what is drawn comes from `engine.ui.tables`.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from engine.api import Api
from engine.schema import FLAGS
from engine.ui import render, tables
from engine.ui.chat import ChatTab
from engine.ui.desk import View, error_of
from engine.ui.fields import Updates
from engine.ui.words import label, locale_of, say


class KnowledgeTab:
    """The tab's components; to be made inside a `gr.Tab`.

    Args:
        api: the public calls.
        chat: whose NPC and language the tab speaks of.
    """

    def __init__(self, api: Api, chat: ChatTab) -> None:
        self._api = api
        self._chat = chat
        with gr.Column(elem_id="pc-knowledge"):
            self._who = gr.HTML(padding=False)
            gr.Markdown(label("knowledge_intro"), elem_classes="pc-hint")
            with gr.Row(elem_classes="pc-pair"):
                self._stage = gr.Dropdown([], label=label("quest_stage"), elem_id="pc-kn-stage")
                self._flag = gr.Dropdown(
                    list(FLAGS), value=FLAGS[0], label=label("flag"), elem_id="pc-kn-flag"
                )
            self._said = gr.Textbox(
                label=label("near_words"), max_lines=2, max_length=500, elem_id="pc-kn-said"
            )
            self._ask = gr.Button(label("explain"), variant="primary", elem_id="pc-kn-ask")
            self._found = gr.HTML(elem_id="pc-kn-found", padding=False)
            self._gaps = gr.HTML(elem_id="pc-kn-gaps", padding=False)
            with gr.Row(elem_classes="pc-pair", visible=False) as self._mending:
                self._gap = gr.Dropdown([], label=label("gap"), elem_id="pc-kn-gap")
                self._text = gr.Textbox(
                    label=label("mend_with"), max_lines=6, max_length=4000, elem_id="pc-kn-text"
                )
                self._token = gr.Textbox(
                    label=label("owner_token"), type="password", max_lines=1, elem_id="pc-kn-token"
                )
                self._mend = gr.Button(label("mend"), elem_id="pc-kn-mend")
            self._told = gr.HTML(elem_id="pc-kn-told", padding=False)
            self._documents = gr.HTML(elem_id="pc-kn-documents", padding=False)
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = [self._stage, self._flag, self._said, chat.view]
        gr.on(
            [self._ask.click, self._said.submit, self._flag.input, self._stage.input],
            self.asked,
            asked,
            [self._found],
            **quiet,
        )
        self._mend.click(
            self.mended,
            [self._gap, self._text, self._token, chat.view],
            [*self.outputs, self._text, self._told],
            trigger_mode="once",
            **quiet,
        )

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `drawn` takes."""
        return [self._chat.view]

    @property
    def outputs(self) -> list[Any]:
        """The components that `drawn` speaks of."""
        gaps = [self._gaps, self._mending, self._gap]
        return [self._who, self._stage, *gaps, self._documents, self._found]

    def drawn(self, view: View, request: gr.Request) -> Updates:
        """Show the documents of the Chat tab's NPC."""
        locale = locale_of(request.headers.get("accept-language"))
        told = self._api.documents(view.npc_id, view.language or None)
        error = error_of(told)
        if error:
            return {self._found: render.error_note(error, locale)}
        npc = self._chat.desk.npc(view)
        stage = view.standing.get("quest_stage")
        stages = list(npc.quest_stages)
        return {
            self._who: f"<h2>{render.esc(npc.persona.name)}</h2>",
            self._stage: gr.update(choices=stages, value=stage if stage in stages else stages[0]),
            self._gaps: tables.gaps_view(told["gaps"], locale),
            **self._to_mend(told["gaps"]),
            self._documents: tables.documents_view(told["documents"], locale),
            self._found: "",
        }

    def _to_mend(self, gaps: list[dict[str, str]]) -> Updates:
        fields = [one["field"] for one in gaps]
        return {
            self._mending: gr.update(visible=bool(fields)),
            self._gap: gr.update(choices=fields, value=next(iter(fields), None)),
        }

    def mended(
        self, field: str | None, text: str, token: str, view: View, request: gr.Request
    ) -> Updates:
        """Fill a gap, save the file and serve it."""
        locale = locale_of(request.headers.get("accept-language"))
        told = self._api.npcs_written.npc_mend(
            view.npc_id, field or "", text, view.language or None, token
        )
        error = error_of(told)
        if error:
            return {self._told: render.error_note(error, locale)}
        note = render.note(f"{say('saved', locale)} {told['saved']}", "good")
        return {**self.drawn(view, request), self._text: "", self._told: note}

    def asked(self, stage: str, flag: str, said: str, view: View, request: gr.Request) -> str:
        """Draw what a flag means at a stage."""
        locale = locale_of(request.headers.get("accept-language"))
        found = self._api.explain(
            view.npc_id, stage or "", flag or "", said.strip(), view.language or None
        )
        error = error_of(found)
        return render.error_note(error, locale) if error else tables.meaning_view(found, locale)
