"""The Model tab: the card and the figures of the bundle that serves."""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from engine.api import Api
from engine.ui import render, tables
from engine.ui.desk import error_of
from engine.ui.fields import Updates
from engine.ui.words import label, locale_of


class ModelTab:
    """The tab's components; to be made inside a `gr.Tab`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        with gr.Column(elem_id="pc-model"):
            gr.Markdown(label("model_intro"), elem_classes="pc-hint")
            self._figures = gr.HTML(elem_id="pc-figures", padding=False)
            with gr.Accordion(label("card"), open=False):
                self._card = gr.Markdown(elem_id="pc-model-card")

    @property
    def outputs(self) -> list[Any]:
        """The components that `drawn` speaks of."""
        return [self._figures, self._card]

    def drawn(self, request: gr.Request) -> Updates:
        """Show the bundle in force; what hinders it from serving, while there is none."""
        locale = locale_of(request.headers.get("accept-language"))
        card = self._api.model_card()
        error = error_of(card)
        if error:
            return {self._figures: render.error_note(error, locale), self._card: ""}
        return {
            self._figures: tables.figures_view(card, locale),
            self._card: _without_front_matter(card["card"]),
        }


def _without_front_matter(card: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
