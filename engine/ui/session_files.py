"""The session as files: what the NPCs remember of a player, and the talk as a transcript.

The browser makes the files itself, so nothing is left on the server. Knows nothing of turns.
"""

from __future__ import annotations

import json
from typing import Any, cast

import gradio as gr

from engine.ui import journey, render
from engine.ui.desk import Desk, View, error_of
from engine.ui.fields import Updates
from engine.ui.words import label, locale_of

_MOST_BYTES = 2_000_000
# A hidden field holds [file name, type, content]; the browser makes a file of it.
DOWNLOAD = """(told) => {
  if (!told) return;
  const [name, type, content] = JSON.parse(told);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""


class SessionFiles:
    """Buttons that copy, save, load and export a session; to be made where they shall stand.

    `branch` and `load` are wired by the Chat tab, since they change what it shows.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        with gr.Accordion(label("session"), open=False, elem_id="pc-files"):
            self.branch = gr.Button(label("branch"), size="sm", elem_id="pc-branch")
            self._save = gr.Button(label("save_session"), size="sm", elem_id="pc-save")
            self.load = gr.UploadButton(
                cast(str, label("load_session")),
                size="sm",
                file_types=[".json"],
                type="binary",
                elem_id="pc-load",
            )
            self._markdown = gr.Button(label("export_md"), size="sm", elem_id="pc-export-md")
            self._json = gr.Button(label("export_json"), size="sm", elem_id="pc-export-json")
            self._file = gr.Textbox(visible="hidden", elem_id="pc-file")

    def wire(self, view: gr.State, note: gr.HTML) -> None:
        """Connect the buttons that make files."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

        def session_file(view: View, request: gr.Request) -> Updates:
            saved = self._desk.api.save(view.player)
            error = error_of(saved)
            if error:
                locale = locale_of(request.headers.get("accept-language"))
                return {self._file: "", note: render.error_note(error, locale)}
            text = json.dumps(saved, ensure_ascii=False, indent=2)
            return {self._file: file_of(f"{view.player}.json", "application/json", text)}

        def markdown_file(view: View) -> Updates:
            name = self._desk.npc(view).persona.name
            text = journey.transcript_markdown(name, view.talk, view.steps)
            return {self._file: file_of(f"{view.npc_id}.md", "text/markdown", text)}

        def data_file(view: View) -> Updates:
            text = journey.transcript_json(view.player, view.npc_id, view.steps)
            return {self._file: file_of(f"{view.npc_id}.json", "application/json", text)}

        for button, make in (
            (self._save, session_file),
            (self._markdown, markdown_file),
            (self._json, data_file),
        ):
            made = button.click(make, [view], [self._file, note], **quiet)
            made.success(None, [self._file], None, js=DOWNLOAD, **quiet)


def file_of(name: str, kind: str, content: str) -> str:
    """Return what `DOWNLOAD` makes a file of."""
    return json.dumps([name, kind, content], ensure_ascii=False)


def session_data(content: bytes | None) -> dict[str, Any] | None:
    """Return an uploaded session file as data; None where it is none, or too long."""
    if not content or len(content) > _MOST_BYTES:
        return None
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
