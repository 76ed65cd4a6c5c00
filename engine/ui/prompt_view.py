"""The prompt that a turn would send, with its markers shown: what the model reads, and nothing more.

A thin handler over the call `prompt`; nothing is played or committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape as esc
from typing import Any

import gradio as gr

from engine.api import Api
from engine.errors import EngineError
from engine.ui import render
from engine.ui.desk import View, error_of, plain_error
from engine.ui.words import label, locale_of, say

# Takes the view and the scene fields' values; returns context and sampling.
Sent = Callable[[View, Sequence[Any]], tuple[dict[str, Any], dict[str, Any]]]


class PromptView:
    """A fold-out with a button; to be made inside a column.

    Args:
        api: the public calls.
        sent: tells what a turn would carry now.
    """

    def __init__(self, api: Api, sent: Sent) -> None:
        self._api, self._sent = api, sent
        with gr.Accordion(label("prompt_as_sent"), open=False, elem_id="pc-prompt"):
            self._show = gr.Button(label("prompt_show"), size="sm", elem_id="pc-prompt-show")
            self._text = gr.HTML(elem_id="pc-prompt-text", padding=False)

    def wire(self, box: Any, view: Any, fields: Sequence[Any]) -> None:
        """Connect the button to the box, the browser's view and the scene's fields."""
        self._show.click(
            self.drawn,
            [box, view, *fields],
            [self._text],
            api_visibility="private",
            show_progress="hidden",
        )

    def drawn(self, request: gr.Request, words: str, view: View, *fields: Any) -> str:
        """Draw the prompt for what stands in the box, or else for the last words."""
        locale = locale_of(request.headers.get("accept-language"))
        try:
            context, _ = self._sent(view, fields)
        except EngineError as exc:
            return render.error_note(plain_error(exc), locale)
        told = self._api.prompt(words or view.last_words, view.npc_id, view.player, context)
        error = error_of(told)
        if error:
            return render.error_note(error, locale)
        counted = (
            f"{told['tokens']} {say('tokens', locale)}, "
            f"{told['shared_tokens']} {say('tokens_shared', locale)}"
        )
        return (
            f'<p class="pc-hint" role="status">{esc(counted)}</p>'
            f'<pre class="pc-raw">{esc(told["prompt"])}</pre>'
        )
