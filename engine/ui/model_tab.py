"""The Model tab: the bundle's card and figures, and what another threshold of a flag would change.

Thin handlers over `model_card` and the `threshold…` calls.
"""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from engine.api import Api
from engine.ui import render, tables
from engine.ui.chat import ChatTab
from engine.ui.desk import View, error_of
from engine.ui.fields import Updates
from engine.ui.words import label, locale_of, say

Json = dict[str, Any]


class ModelTab:
    """The tab's components; to be made inside a `gr.Tab`.

    Args:
        api: the public calls.
        chat: whose NPC's thresholds are tried.
    """

    def __init__(self, api: Api, chat: ChatTab) -> None:
        self._api = api
        self._chat = chat
        with gr.Column(elem_id="pc-model"):
            gr.Markdown(label("model_intro"), elem_classes="pc-hint")
            gr.Markdown(label("threshold_intro"), elem_classes="pc-hint")
            with gr.Row(elem_classes="pc-pair"):
                self._stage = gr.Dropdown(label=label("stage"), elem_id="pc-th-stage")
                self._flag = gr.Dropdown(label=label("flag"), elem_id="pc-th-flag")
                self._slider = gr.Slider(
                    0, 1, step=0.01, label=label("threshold"), elem_id="pc-th-slider"
                )
            self._cost = gr.HTML(elem_id="pc-th-cost", padding=False)
            with gr.Row(elem_classes="pc-pair"):
                self._try = gr.Button(label("threshold_try"), elem_id="pc-th-try")
                self._save = gr.Button(
                    label("threshold_save"), variant="primary", elem_id="pc-th-save"
                )
                self._drop = gr.Button(label("threshold_drop"), elem_id="pc-th-drop")
                self._token = gr.Textbox(
                    label=label("owner_token"), type="password", max_lines=1, elem_id="pc-th-token"
                )
            self._told = gr.HTML(elem_id="pc-th-told", padding=False)
            self._figures = gr.HTML(elem_id="pc-figures", padding=False)
            with gr.Accordion(label("card"), open=False):
                self._card = gr.Markdown(elem_id="pc-model-card")
        self._wire()

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        chosen = [self._stage, self._flag, self._chat.view]
        shown = [self._slider, self._cost, self._told]
        self._stage.input(self.staged, chosen, [self._flag, *shown], **quiet)
        self._flag.input(self.flagged, chosen, shown, **quiet)
        self._slider.input(self.moved, [self._slider, *chosen], [self._cost], **quiet)
        asked = [self._slider, *chosen, self._token]
        loud: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "once"}
        self._try.click(self.tried, asked, [self._told], concurrency_limit=1, **loud)
        self._save.click(self.saved, asked, [self._told, self._slider, self._cost], **loud)
        self._drop.click(self.dropped, asked, [self._told, self._slider, self._cost], **loud)

    @property
    def inputs(self) -> list[Any]:
        """The components that `drawn` reads."""
        return [self._stage, self._flag, self._chat.view]

    @property
    def outputs(self) -> list[Any]:
        """The components that `drawn` speaks of."""
        return [
            self._figures,
            self._card,
            self._stage,
            self._flag,
            self._slider,
            self._cost,
            self._told,
        ]

    def drawn(
        self, stage: str | None, flag: str | None, view: View, request: gr.Request
    ) -> Updates:
        """Show the bundle in force; what hinders it from serving, while there is none."""
        locale = locale_of(request.headers.get("accept-language"))
        card = self._api.model_card()
        error = error_of(card)
        if error:
            return {self._figures: render.error_note(error, locale), self._card: ""}
        return {
            self._figures: tables.figures_view(card, locale),
            self._card: _without_front_matter(card["card"]),
            **self._choices(stage, flag, view, locale),
        }

    def staged(self, stage: str, flag: str | None, view: View, request: gr.Request) -> Updates:
        """Show the flags of another stage."""
        updates = self._choices(
            stage, flag, view, locale_of(request.headers.get("accept-language"))
        )
        updates.pop(self._stage, None)
        return updates

    def flagged(self, stage: str, flag: str, view: View, request: gr.Request) -> Updates:
        """Show another flag's threshold, and what others would cost."""
        return self._shown(stage, flag, view, locale_of(request.headers.get("accept-language")))

    def moved(
        self, value: float, stage: str, flag: str, view: View, request: gr.Request
    ) -> Updates:
        """Say what the slider's threshold costs."""
        locale = locale_of(request.headers.get("accept-language"))
        found = self._asked(stage, flag, view)
        return {self._cost: "" if error_of(found) else tables.cost_view(found, value, locale)}

    def tried(
        self,
        value: float,
        stage: str,
        flag: str,
        view: View,
        token: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it there)
    ) -> str:
        """Play the NPC's scenes under both thresholds; show which flip."""
        locale = locale_of(request.headers.get("accept-language"))

        def told(done: int, count: int, what: str) -> None:
            progress((done, count), desc=what)

        found = self._api.thresholds.tried(
            view.npc_id, stage, flag, value, view.language or None, token, told
        )
        error = error_of(found)
        return render.error_note(error, locale) if error else tables.flips_view(found, locale)

    def saved(
        self, value: float, stage: str, flag: str, view: View, token: str, request: gr.Request
    ) -> Updates:
        """Write the slider's threshold into the NPC file."""
        return self._written(value, stage, flag, view, token, request)

    def dropped(
        self, value: float, stage: str, flag: str, view: View, token: str, request: gr.Request
    ) -> Updates:
        """Let the bundle's threshold hold again."""
        del value
        return self._written(None, stage, flag, view, token, request)

    def _written(
        self,
        value: float | None,
        stage: str,
        flag: str,
        view: View,
        token: str,
        request: gr.Request,
    ) -> Updates:
        locale = locale_of(request.headers.get("accept-language"))
        told = self._api.thresholds.threshold_save(
            view.npc_id, stage, flag, value, view.language or None, token
        )
        error = error_of(told)
        if error:
            return {self._told: render.error_note(error, locale)}
        shown = self._shown(stage, flag, view, locale)
        note = render.note(f"{say('saved', locale)} {told['saved']}", "good")
        return {
            self._told: note,
            self._slider: shown[self._slider],
            self._cost: shown[self._cost],
        }

    def _choices(self, stage: str | None, flag: str | None, view: View, locale: str) -> Updates:
        listed = {one["npc_id"]: one for one in self._api.npcs().get("npcs", [])}
        npc = listed.get(view.npc_id)
        if npc is None:
            return {}
        stages: list[str] = list(npc["quest_stages"])
        there = str(view.standing.get("quest_stage"))
        now: str = next(one for one in (stage, there, stages[0]) if one in stages)
        flags: list[str] = list(npc["flags"][now])
        chosen = flag if flag in flags else next(iter(flags), None)
        updates: Updates = {
            self._stage: gr.Dropdown(choices=stages, value=now),
            self._flag: gr.Dropdown(choices=flags, value=chosen),
        }
        return {**updates, **self._shown(now, chosen, view, locale)}

    def _shown(self, stage: str, flag: str | None, view: View, locale: str) -> Updates:
        found = self._asked(stage, flag, view)
        if error_of(found):
            return {self._cost: "", self._told: ""}
        return {
            self._slider: found["threshold"],
            self._cost: tables.cost_view(found, found["threshold"], locale),
            self._told: "",
        }

    def _asked(self, stage: str, flag: str | None, view: View) -> Json:
        return self._api.thresholds.threshold(view.npc_id, stage, flag or "", view.language or None)


def _without_front_matter(card: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
