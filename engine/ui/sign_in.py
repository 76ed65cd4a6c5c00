"""Who has signed in with Hugging Face, as Gradio's signed session cookie says.

A Space with `hf_oauth: true` in its README's head gets a button; anywhere else nobody signs in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.context import LocalContext


def can_sign_in() -> bool:
    """Whether this is a Space whose visitors can sign in."""
    return bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID"))


def sign_in_button() -> gr.LoginButton | None:
    """Make the button where it works; to be called inside a `gr.Blocks`."""
    if not can_sign_in():
        return None
    return gr.LoginButton(size="sm", elem_id="pc-sign-in", min_width=0, scale=0)


def signed_in() -> str:
    """Return the name of who makes the present call; "" where nobody signed in."""
    found: Any = LocalContext.request.get(None)
    return name_of(getattr(found, "request", None) or found)


def name_of(request: Any) -> str:
    """Return who made a Starlette request.

    The cookie travels with requests that other sites make in the visitor's browser, so a request
    counts only where the page itself made it.
    """
    scope = getattr(request, "scope", None)
    session = scope.get("session") if isinstance(scope, Mapping) else None
    info = session.get("oauth_info") if isinstance(session, Mapping) else None
    if not isinstance(info, Mapping) or not _from_the_page(request.headers):
        return ""
    expires = info.get("expires_at")
    if not isinstance(expires, (int, float)) or expires <= time.time():
        return ""
    user = info.get("userinfo")
    name = user.get("preferred_username") if isinstance(user, Mapping) else None
    return name if isinstance(name, str) else ""


def _from_the_page(headers: Mapping[str, str]) -> bool:
    origin = urlsplit(headers.get("origin") or "").netloc
    hosts = [headers.get("host", ""), *os.environ.get("SPACE_HOST", "").split(",")]
    return bool(origin) and origin in {host.strip() for host in hosts}
