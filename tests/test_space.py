"""The page as a Space serves it: who has signed in there, and what that allows."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app_process import start, stop, wait_ready

itsdangerous = pytest.importorskip("itsdangerous", reason="needs what gradio[oauth] brings")
pytest.importorskip("authlib", reason="needs what gradio[oauth] brings")

HOST = "ada-npc.example"
SECRET = "client-secret"
SPACE = {
    "SYSTEM": "spaces",
    "SPACE_ID": "ada/npc",
    "SPACE_AUTHOR_NAME": "ada",
    "SPACE_HOST": HOST,
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile",
    "OPENID_PROVIDER_URL": "http://127.0.0.1:9",
    "GRADIO_SERVER_NAME": "127.0.0.1",
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("space")
    process, url = start(folder, env=SPACE)
    try:
        wait_ready(url)
        yield url
    finally:
        stop(process)


def cookie(name: str, secret: str = SECRET) -> str:
    """Return the session cookie that a Space gives to who signed in, as Gradio signs it."""
    info = {"userinfo": {"preferred_username": name}, "expires_at": time.time() + 600}
    key = hashlib.sha256(f"{secret}-v4".encode()).hexdigest()
    held = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    signed: bytes = itsdangerous.TimestampSigner(key).sign(held)
    return signed.decode()


def reload_as(url: str, **headers: str) -> Any:
    path = f"{url}/gradio_api/call/v2/reload"
    event = httpx.post(path, json={}, headers=headers, timeout=30).json()["event_id"]
    lines = httpx.get(f"{path}/{event}", headers=headers, timeout=60).text.splitlines()
    return json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]


def test_who_made_the_space_may_reload_once_signed_in(space):
    told = reload_as(space, cookie=f"session={cookie('ada')}", origin=f"https://{HOST}")
    assert told["reloaded"] is True


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": f"session={cookie('mallory')}", "origin": f"https://{HOST}"},
        {"cookie": f"session={cookie('ada', 'guess')}", "origin": f"https://{HOST}"},
        {"cookie": f"session={cookie('ada')}", "origin": "https://evil.example"},
        {"cookie": f"session={cookie('ada')}"},
    ],
    ids=["nobody", "a visitor", "a forged cookie", "another site", "no page at all"],
)
def test_nobody_else_may(space, headers):
    told = reload_as(space, **headers)
    assert told["error"]["code"] == "not_allowed"
    assert "sign in as its owner" in told["error"]["message"]


def test_the_page_has_a_button_to_sign_in(space):
    config = httpx.get(f"{space}/config", timeout=30).json()
    ids = [one["props"].get("elem_id") for one in config["components"]]
    assert "pc-sign-in" in ids
