"""The NPCs tab: write an NPC in a form and as JSON side by side, checked as you type.

Thin handlers over the `npc_…` calls; what an NPC file may say is `engine.npc`'s to tell.
"""

from __future__ import annotations

import json
from typing import Any, cast

import gradio as gr

from engine.api import Api
from engine.errors import EngineError
from engine.ui import render, tables
from engine.ui.chat import ChatTab
from engine.ui.desk import View, error_of, plain_error
from engine.ui.fields import Updates
from engine.ui.npc_form import FIELDS, form_values, parsed, with_form
from engine.ui.rehearsal import Rehearsal
from engine.ui.rule_editor import RuleEditor
from engine.ui.session_files import DOWNLOAD, file_of
from engine.ui.words import label, locale_of, say

_FORMS = [("NPC (JSON)", "json"), ("Character Card V2", "card"), ("Ink", "ink"), ("Yarn", "yarn")]


class NPCTab:
    """The tab's components; to be made inside a `gr.Tab`.

    Args:
        api: the public calls.
        chat: whose NPC is opened when the tab is.
    """

    def __init__(self, api: Api, chat: ChatTab) -> None:
        self._api = api.npcs_written
        self._chat = chat
        gr.Markdown(label("npcs_intro"), elem_classes="pc-hint")
        with gr.Row(elem_classes="pc-pair"):
            self._pick = gr.Dropdown([], label=label("npc"), elem_id="pc-ed-pick")
            self._name = gr.Textbox(label=label("new_name"), max_lines=1, elem_id="pc-ed-name")
            self._new = gr.Button(label("new_npc"), elem_id="pc-ed-new")
            self._upload = gr.UploadButton(
                cast(str, label("import_npc")),
                file_types=[".json", ".png", ".charx"],
                type="binary",
                elem_id="pc-ed-import",
            )
        self._told = gr.HTML(elem_id="pc-ed-told", padding=False)
        with gr.Row(elem_id="pc-ed-sides", equal_height=False):
            with gr.Column(min_width=0):
                self._fields = {name: field.component() for name, field in FIELDS.items()}
                with gr.Accordion(label("rules_of_flags"), open=False, elem_id="pc-ed-rules"):
                    self._rules = RuleEditor(chat.desk.npc_files)
                self._gaps = gr.HTML(elem_id="pc-ed-gaps", padding=False)
            with gr.Column(min_width=0):
                self._code = gr.Code(
                    "",
                    language="json",
                    label=cast(str, label("npc_file")),
                    interactive=True,
                    wrap_lines=True,
                    lines=24,
                    max_lines=40,
                    elem_id="pc-ed-code",
                )
        self._rehearsal = Rehearsal(self._api)
        with gr.Row(elem_classes="pc-pair"):
            self._token = gr.Textbox(
                label=label("owner_token"), type="password", max_lines=1, elem_id="pc-ed-token"
            )
            self._save = gr.Button(label("save"), variant="primary", elem_id="pc-ed-save")
            self._back = gr.Button(label("last_version"), elem_id="pc-ed-back")
        with gr.Row(elem_classes="pc-pair"):
            self._form = gr.Dropdown(
                _FORMS, value="json", label=label("export_as"), elem_id="pc-ed-form"
            )
            self._export = gr.Button(label("export_npc"), elem_id="pc-ed-export")
            self._sure = gr.Checkbox(label=label("sure"), elem_id="pc-ed-sure")
            self._delete = gr.Button(label("delete"), variant="stop", elem_id="pc-ed-delete")
        self._file = gr.Textbox(visible="hidden")
        self._wire()

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        fields = list(self._fields.values())
        opened = self.outputs
        self._pick.input(self.opened, [self._pick], opened, **quiet)
        self._new.click(self.started, [self._name], opened, **quiet)
        self._upload.upload(self.imported, [self._upload], opened, **quiet)
        self._back.click(self.restored, [self._pick], opened, **quiet)
        # A browser may swallow the first input after an update: what is left is looked at as well.
        left = [field.blur for field in fields if isinstance(field, gr.Textbox)]
        gr.on(
            [*(field.input for field in fields), *left],
            self.form_changed,
            [self._code, *fields],
            [self._code, self._told, self._gaps],
            trigger_mode="always_last",
            **quiet,
        )
        self._code.input(
            self.code_changed,
            [self._code, *self._rules.place],
            [*fields, *self._rules.all, self._told, self._gaps],
            trigger_mode="always_last",
            **quiet,
        )
        self._wire_rules(quiet)
        self._rehearsal.wire(self._code, self._rules.place)
        seen = self._chat.arrival[1]
        self._save.click(
            self.saved, [self._code, self._token], [self._pick, self._told], **quiet
        ).success(self._chat.arrived, self._chat.arrival[0], seen, **quiet)
        self._delete.click(
            self.deleted,
            [self._pick, self._sure, self._token],
            [*opened, self._sure],
            **quiet,
        ).success(self._chat.arrived, self._chat.arrival[0], seen, **quiet)
        self._export.click(
            self.exported, [self._pick, self._form], [self._file, self._told], **quiet
        ).success(None, [self._file], None, js=DOWNLOAD, **quiet)

    def _wire_rules(self, quiet: dict[str, Any]) -> None:
        rules, place = self._rules, [self._code, *self._rules.place]
        rules.stage.input(self.staged, place, rules.all, **quiet)
        rules.flag.input(self.flagged, place, list(rules.by_name.values()), **quiet)
        # A list that takes new words tells of some of them only when it is left.
        left = [field.blur for field in rules.said if hasattr(field, "blur")]
        gr.on(
            [*(field.input for field in rules.said), *left],
            self.rule_changed,
            [*place, *rules.said],
            [self._code, self._told, self._gaps, *rules.place],
            trigger_mode="always_last",
            **quiet,
        )
        rules.remove.click(
            self.rule_removed, place, [self._code, self._told, self._gaps, *rules.all], **quiet
        )

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `drawn` takes."""
        return [self._chat.view, self._code]

    @property
    def outputs(self) -> list[Any]:
        """The components that `drawn` speaks of."""
        fields = [*self._fields.values(), *self._rules.all]
        return [self._pick, self._code, *fields, self._told, self._gaps]

    def drawn(self, view: View, code: str, request: gr.Request) -> Updates:
        """Open the Chat tab's NPC, unless something is being written already."""
        return {} if code.strip() else self.opened(view.npc_id, request)

    def opened(self, npc_id: str, request: gr.Request) -> Updates:
        """Open an NPC's file."""
        return self._shown(self._api.npc_file(npc_id or ""), _locale(request), npc_id)

    def started(self, name: str, request: gr.Request) -> Updates:
        """Begin a new NPC."""
        locale = _locale(request)
        return self._shown(self._api.npc_new(name or say("new_npc", locale), locale), locale)

    def restored(self, npc_id: str, request: gr.Request) -> Updates:
        """Show the version before the one in force."""
        return self._shown(self._api.npc_backup(npc_id or ""), _locale(request), npc_id)

    def imported(self, content: bytes | None, request: gr.Request) -> Updates:
        """Show the first NPC of an uploaded file; nothing is saved yet."""
        locale = _locale(request)
        try:
            found = self._api.brought_over(content or b"")
        except EngineError as exc:
            return {self._told: render.error_note(plain_error(exc), locale)}
        shown = self._shown({"npc": found["npcs"][0]}, locale)
        lost = "; ".join(found["warnings"][:5])
        note = say("imported", locale) + (f" {lost}" if lost else "")
        return {**shown, self._told: render.note(note, "good")}

    def form_changed(self, request: gr.Request, code: str, *given: Any) -> Updates:
        """Write the form into the JSON."""
        locale = _locale(request)
        data = parsed(code)
        if data is None:
            return {self._told: render.note(say("bad_json", locale))}
        data = with_form(data, dict(zip(FIELDS, given, strict=True)))
        return {self._code: _text(data), **self._checked(data, locale)}

    def code_changed(self, code: str, stage: str, flag: str, request: gr.Request) -> Updates:
        """Show in the form what the JSON says."""
        locale = _locale(request)
        data = parsed(code)
        if data is None:
            return {self._told: render.note(say("bad_json", locale))}
        return {**self._filled(data, stage, flag), **self._checked(data, locale)}

    def staged(self, code: str, stage: str, flag: str) -> Updates:
        """Show another stage; one that is not there yet begins empty."""
        return self._rules.stage_filled(parsed(code) or {}, stage, flag)

    def flagged(self, code: str, stage: str, flag: str) -> Updates:
        """Show another flag of the stage."""
        return self._rules.rule_filled(parsed(code) or {}, stage, flag)

    def rule_changed(
        self, request: gr.Request, code: str, stage: str, flag: str, *given: Any
    ) -> Updates:
        """Write the rule that is looked at into the JSON."""
        locale = _locale(request)
        data = parsed(code)
        if data is None:
            return {self._told: render.note(say("bad_json", locale))}
        try:
            data = self._rules.written(data, stage, flag, given)
        except EngineError as exc:
            return {self._told: render.error_note(plain_error(exc), locale)}
        return {
            self._code: _text(data),
            **self._rules.marked(data, stage),
            **self._checked(data, locale),
        }

    def rule_removed(self, code: str, stage: str, flag: str, request: gr.Request) -> Updates:
        """Take the flag that is looked at off its stage."""
        locale = _locale(request)
        data = parsed(code)
        if data is None:
            return {self._told: render.note(say("bad_json", locale))}
        data = self._rules.without(data, stage, flag)
        checked = self._checked(data, locale)
        return {
            self._code: _text(data),
            **self._rules.filled(data, stage, flag),
            **checked,
        }

    def saved(self, code: str, token: str, request: gr.Request) -> Updates:
        """Save what is written, and serve it."""
        locale = _locale(request)
        data = parsed(code)
        told = self._api.npc_save(data or {}, token)
        error = error_of(told)
        if data is None or error:
            why = error or {"message": say("bad_json", locale)}
            return {self._told: render.error_note(why, locale)}
        choices = told["npcs"]
        return {
            self._pick: gr.update(choices=choices, value=data.get("id")),
            self._told: render.note(f"{say('saved', locale)} {told['saved']}", "good"),
        }

    def deleted(self, npc_id: str, sure: bool, token: str, request: gr.Request) -> Updates:
        """Delete an NPC, if the box is ticked."""
        locale = _locale(request)
        if not sure:
            return {self._told: render.note(say("tick_first", locale))}
        told = self._api.npc_delete(npc_id or "", None, token)
        error = error_of(told)
        if error:
            return {self._told: render.error_note(error, locale)}
        note = render.note(f"{say('deleted', locale)} {told['deleted']}", "good")
        shown = self._shown(self._api.npc_file(told["npcs"][0]), locale, told["npcs"][0])
        return {**shown, self._sure: False, self._told: note}

    def exported(self, npc_id: str, form: str, request: gr.Request) -> Updates:
        """Hand out an NPC as a file."""
        told = self._api.npc_export(npc_id or "", form or "json")
        error = error_of(told)
        if error:
            return {self._file: "", self._told: render.error_note(error, _locale(request))}
        return {self._file: file_of(told["file"], "text/plain", told["content"])}

    def _shown(self, told: dict[str, Any], locale: str, npc_id: str = "") -> Updates:
        error = error_of(told)
        if error:
            return {self._told: render.error_note(error, locale)}
        data = told["npc"]
        choices = [choice[1] for choice in self._chat.desk.npc_choices()]
        picked = npc_id if npc_id in choices else None
        return {
            self._pick: gr.update(choices=choices, value=picked),
            self._code: _text(data),
            **self._filled(data),
            **self._checked(data, locale),
        }

    def _filled(
        self, data: dict[str, Any], stage: str | None = None, flag: str | None = None
    ) -> Updates:
        values = form_values(data)
        return {
            **{self._fields[name]: gr.update(value=value) for name, value in values.items()},
            **self._rules.filled(data, stage, flag),
        }

    def _checked(self, data: dict[str, Any], locale: str) -> Updates:
        told = self._api.npc_check(data)
        error = error_of(told)
        if error:
            return {self._told: render.error_note(error, locale), self._gaps: ""}
        return {
            self._told: render.note(say("valid", locale), "good"),
            self._gaps: tables.gaps_view(told["gaps"], locale),
        }


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2)


def _locale(request: gr.Request) -> str:
    return locale_of(request.headers.get("accept-language"))
