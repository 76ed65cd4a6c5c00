"""Puts the page together: head, tabs, endpoints, and the progress of starting.

Knows nothing of what happens in a tab.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from engine.api import Api
from engine.service import EngineService
from engine.ui import render
from engine.ui.api_tab import ApiTab
from engine.ui.calls import exception_handlers, register, thread_limit, turn_limit
from engine.ui.chat import ChatTab
from engine.ui.desk import View
from engine.ui.fields import Updates
from engine.ui.knowledge_tab import KnowledgeTab
from engine.ui.model_tab import ModelTab
from engine.ui.npc_tab import NPCTab
from engine.ui.scenes_tab import ScenesTab
from engine.ui.sign_in import sign_in_button
from engine.ui.theme import CSS, HEAD, THEME
from engine.ui.words import I18N, label, locale_of

TITLE = "Persona Chat Engine"
_POLL_SECONDS = 1.0


def build_page(service: EngineService, api: Api) -> gr.Blocks:
    """Return the page with every public call registered; `launch_arguments` go with it."""
    limit = service.settings.queue_limit
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as demo:
        with gr.Row(elem_id="pc-top"):
            header = gr.HTML(render.header("en"), elem_id="pc-header", padding=False)
            status = gr.HTML(elem_id="pc-status", padding=False)
            sign_in_button()
        with gr.Tabs():
            with gr.Tab(label("tab_chat"), id="chat"):
                chat = ChatTab(service, api, turn_limit(limit))
            with gr.Tab(label("tab_npcs"), id="npcs") as npcs_head:
                npcs = NPCTab(api, chat)
            with gr.Tab(label("tab_knowledge"), id="knowledge") as knowledge_head:
                knowledge = KnowledgeTab(api, chat)
            with gr.Tab(label("tab_scenes"), id="scenes"):
                ScenesTab(api, chat)
            with gr.Tab(label("tab_model"), id="model") as model_head:
                model = ModelTab(api, chat)
            with gr.Tab(label("tab_api"), id="api") as api_tab_head:
                api_tab = ApiTab(api.calls(), chat)
        chat.wire()
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        api_tab_head.select(api_tab.drawn, api_tab.inputs, api_tab.outputs, **quiet)
        npcs_head.select(npcs.drawn, npcs.inputs, npcs.outputs, **quiet)
        knowledge_head.select(knowledge.drawn, knowledge.inputs, knowledge.outputs, **quiet)
        model_head.select(model.drawn, model.inputs, model.outputs, **quiet)
        _wire_progress(demo, api, chat, header, status)
        register(api.calls(), limit)
    return demo


def _wire_progress(
    demo: gr.Blocks, api: Api, chat: ChatTab, header: gr.HTML, status: gr.HTML
) -> None:
    """Fill the page when a browser comes, and poll until turns can be served."""
    timer = gr.Timer(_POLL_SECONDS)
    inputs, outputs = chat.arrival

    def arrive(stored: str, view: View, request: gr.Request) -> Updates:
        locale = locale_of(request.headers.get("accept-language"))
        now = api.status()
        return {
            **chat.arrived(stored, view, request),
            header: render.header(locale),
            status: render.status_view(now, locale),
            timer: gr.Timer(active=not now.get("ready")),
        }

    def poll(stored: str, view: View, request: gr.Request) -> Updates:
        now = api.status()
        if now.get("ready") or (not view.npc_id and now.get("npcs")):
            return arrive(stored, view, request)
        locale = locale_of(request.headers.get("accept-language"))
        return {status: render.status_view(now, locale)}

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    seen = [*outputs, header, status, timer]
    demo.load(arrive, inputs, seen, **quiet)
    timer.tick(poll, inputs, seen, **quiet)


def queue_arguments(queue_limit: int) -> dict[str, Any]:
    """Return what `Blocks.queue` is to be called with."""
    return {"max_size": queue_limit, "default_concurrency_limit": None}


def launch_arguments(queue_limit: int) -> dict[str, Any]:
    """Return what `Blocks.launch` is to be called with, but for address and port."""
    return {
        "theme": THEME,
        "css": CSS,
        "head": HEAD,
        "i18n": I18N,
        "ssr_mode": False,
        "show_error": True,
        "run_history": False,
        "footer_links": ["api", "settings"],
        "max_threads": thread_limit(queue_limit),
        "app_kwargs": {"exception_handlers": exception_handlers()},
    }
