"""Code that calls `ask`, ready to paste: Python, JavaScript and curl. Pure.

Knows nothing of the page; the address and the arguments are given.
"""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import Any

Arguments = Mapping[str, Any]


def all_snippets(url: str, arguments: Arguments) -> dict[str, str]:
    """Return every snippet by its name."""
    return {
        "python": python(url, arguments),
        "javascript": javascript(url, arguments),
        "fetch": fetch(url, arguments),
        "curl": curl(url, arguments),
    }


def python(url: str, arguments: Arguments) -> str:
    """Return a call through `gradio_client`."""
    given = "\n".join(
        f"    {name}={_indented(pprint.pformat(value, width=88, sort_dicts=False))},"
        for name, value in arguments.items()
    )
    return (
        "from gradio_client import Client  # pip install gradio_client\n\n"
        f"client = Client({url!r})\n"
        f'result = client.predict(\n{given}\n    api_name="/ask",\n)\n'
        'print(result["text"] if "text" in result else result["error"]["message"])\n'
    )


def javascript(url: str, arguments: Arguments) -> str:
    """Return a streamed call through `@gradio/client`: the state first, then the growing line."""
    return (
        'import { Client } from "@gradio/client"; // npm install @gradio/client\n\n'
        f"const client = await Client.connect({_js(url)});\n"
        f'const turn = client.submit("/ask_stream", {_js(arguments)});\n'
        "for await (const message of turn) {\n"
        '  if (message.type === "data") console.log(message.data[0]);\n'
        "}\n"
        "client.close();\n"
    )


def fetch(url: str, arguments: Arguments) -> str:
    """Return a call with nothing but `fetch`, for browsers and Node 18 or newer."""
    return (
        f"const call = {_js(f'{url}/gradio_api/call/v2/ask')};\n"
        "const asked = await fetch(call, {\n"
        '  method: "POST",\n'
        '  headers: { "Content-Type": "application/json" },\n'
        f"  body: JSON.stringify({_indented(_js(arguments), 2)}),\n"
        "});\n"
        "const { event_id } = await asked.json();\n"
        "const stream = await (await fetch(`${call}/${event_id}`)).text();\n"
        "const done = /^event: complete\\ndata: (.*)$/m.exec(stream);\n"
        "const [result] = JSON.parse(done[1]);\n"
        "console.log(result.text ?? result.error.message);\n"
    )


def curl(url: str, arguments: Arguments) -> str:
    """Return a call in two steps: post the arguments, then read the event stream."""
    call = shlex.quote(f"{url}/gradio_api/call/v2/ask")
    body = shlex.quote(json.dumps(dict(arguments), ensure_ascii=False))
    return (
        f"EVENT=$(curl -s -X POST {call} \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -d {body} | sed \'s/.*"event_id": *"\\([^"]*\\)".*/\\1/\')\n'
        f"curl -sN {call}/$EVENT\n"
    )


def _js(value: Any) -> str:
    """Return `value` as JavaScript; JSON is, but for two line breaks that old engines refuse."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _indented(text: str, by: int = 4) -> str:
    return text.replace("\n", "\n" + " " * by)
