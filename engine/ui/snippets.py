"""Code that calls `ask`, ready to paste: Python, JavaScript, curl, C# and GDScript. Pure.

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
        "csharp": csharp(url, arguments),
        "gdscript": gdscript(url, arguments),
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


def csharp(url: str, arguments: Arguments) -> str:
    """Return a coroutine for Unity: post the arguments, then read the event stream."""
    body = json.dumps(dict(arguments), ensure_ascii=False).replace('"', '""')
    return (
        "using System.Collections;\n"
        "using System.Text;\n"
        "using System.Text.RegularExpressions;\n"
        "using UnityEngine;\n"
        "using UnityEngine.Networking;\n\n"
        "public class AskNpc : MonoBehaviour\n{\n"
        f"    const string Call = {_quoted(f'{url}/gradio_api/call/v2/ask')};\n"
        f'    const string Body = @"{body}";\n\n'
        "    IEnumerator Start()\n    {\n"
        '        using var ask = new UnityWebRequest(Call, "POST");\n'
        "        ask.uploadHandler = new UploadHandlerRaw(Encoding.UTF8.GetBytes(Body));\n"
        "        ask.downloadHandler = new DownloadHandlerBuffer();\n"
        '        ask.SetRequestHeader("Content-Type", "application/json");\n'
        "        yield return ask.SendWebRequest();\n"
        "        var asked = ask.downloadHandler.text;\n"
        '        var id = Regex.Match(asked, @"""event_id"": *""([^""]+)").Groups[1];\n'
        '        using var answer = UnityWebRequest.Get($"{Call}/{id}");\n'
        "        yield return answer.SendWebRequest();\n"
        "        // [result] as JSON: text, delta, flags, meta.actions\n"
        "        var stream = answer.downloadHandler.text;\n"
        '        Debug.Log(Regex.Match(stream, @"event: complete\\ndata: (.*)").Groups[1]);\n'
        "    }\n}\n"
    )


def gdscript(url: str, arguments: Arguments) -> str:
    """Return a node for Godot 4: post the arguments, then read the event stream."""
    body = json.dumps(dict(arguments), ensure_ascii=False, indent="\t")
    return (
        "extends Node\n\n"
        f"const CALL := {_quoted(f'{url}/gradio_api/call/v2/ask')}\n"
        f"var body := {body}\n\n"
        "func _ready() -> void:\n"
        "\tvar http := HTTPRequest.new()\n"
        "\tadd_child(http)\n"
        '\tvar json := ["Content-Type: application/json"]\n'
        "\thttp.request(CALL, json, HTTPClient.METHOD_POST, JSON.stringify(body))\n"
        "\tvar asked: Array = await http.request_completed\n"
        "\tvar id: String = JSON.parse_string(asked[3].get_string_from_utf8()).event_id\n"
        '\thttp.request(CALL + "/" + id)\n'
        "\tvar answered: Array = await http.request_completed\n"
        "\tvar stream: String = answered[3].get_string_from_utf8()\n"
        '\tstream = stream.get_slice("event: complete\\ndata: ", 1)\n'
        '\tvar result: Dictionary = JSON.parse_string(stream.get_slice("\\n", 0))[0]\n'
        "\tprint(result.text, result.flags, result.meta.actions)\n"
    )


def protocol(url: str) -> str:
    """Return the HTTP protocol of every call, in six lines."""
    call = f"{url}/gradio_api/call/v2"
    return (
        f"POST {call}/ask         body: the arguments as a JSON object\n"
        '→ {"event_id": "…"}\n'
        f"GET  {call}/ask/EVENT   server-sent events:\n"
        "event: generating, data: [state or text so far]   (only /ask_stream)\n"
        'event: complete,   data: [result]                 (result or {"error": …})\n'
        f"Health: POST {call}/status, then GET …/EVENT: data[0].ready\n"
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _js(value: Any) -> str:
    """Return `value` as JavaScript; JSON is, but for two line breaks that old engines refuse."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _indented(text: str, by: int = 4) -> str:
    return text.replace("\n", "\n" + " " * by)
