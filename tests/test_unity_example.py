"""The Unity example without Unity: compiled and run with Mono, against the app with the tiny model.

Skips where `mcs` and `mono` (Debian: mono-mcs, mono-runtime) are not installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.app_process import ROOT, call, served

PROJECT = ROOT / "examples" / "unity"
NPC = "mother_abandoned_factory"

pytestmark = pytest.mark.skipif(
    not (shutil.which("mcs") and shutil.which("mono")), reason="needs mcs and mono"
)


def compiled(out: Path, *sources: str, uses: tuple[Path, ...] = ()) -> Path:
    """Compile C# 7 into `out`; a library's public members must all be documented, but for stubs."""
    library = out.suffix == ".dll"
    documented = library and "Runtime" in sources[0]
    files = [str(file) for pattern in sources for file in sorted(PROJECT.glob(pattern))]
    assert files, sources
    done = subprocess.run(
        [
            "mcs",
            "-langversion:7",
            "-warnaserror",
            f"-target:{'library' if library else 'exe'}",
            *([f"-doc:{out.with_suffix('.xml')}"] if documented else []),
            *(f"-r:{used}" for used in uses),
            f"-out:{out}",
            *files,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mono", "--debug", str(program), *arguments],
        env={**os.environ, "LANG": "C"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unity")
    return compiled(folder / "PersonaChat.Core.dll", "Runtime/Core/*.cs")


@pytest.fixture(scope="module")
def console(core: Path) -> Path:
    return compiled(core.with_name("Console.exe"), "ConsoleHost/*.cs", uses=(core,))


def test_the_core_passes_its_own_checks(core):
    tests = compiled(core.with_name("CoreTests.exe"), "Tests/Core/*.cs", uses=(core,))
    done = run(tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    two events, split in two at every byte" in done.stdout
    assert done.stdout.endswith("\n0 failed\n")


def test_the_unity_part_compiles_against_stubs_and_its_events_come_in_order(core):
    stubs = compiled(core.with_name("UnityStubs.dll"), "Tests/UnityStubs.cs")
    uses = (core, stubs)
    part = compiled(core.with_name("PersonaChat.Unity.dll"), "Runtime/Unity/*.cs", uses=uses)
    helpers = [f"Tests/Core/{name}.cs" for name in ("Check", "FakeTransport", "Answers")]
    sources = ("Tests/Unity/*.cs", *helpers)
    done = run(compiled(core.with_name("NpcTests.exe"), *sources, uses=(*uses, part)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    a turn's events come in order" in done.stdout


def test_only_the_runtime_is_left_when_unity_compiles_the_folder():
    outside = [*PROJECT.glob("Tests/**/*.cs"), *PROJECT.glob("ConsoleHost/*.cs")]
    assert len(outside) > 5
    for file in outside:
        text = file.read_text(encoding="utf-8")
        code = [line for line in text.splitlines() if line and not line.startswith("//")]
        assert (code[0], code[-1]) == ("#if !UNITY_5_3_OR_NEWER", "#endif"), file


def test_the_console_talks_three_turns_and_grants_once(console):
    player = f"p-{uuid.uuid4().hex}"
    done = run(console, served(), NPC, player)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("granted: give_item Silvia takes off the gold necklace") == 1
    assert "Refused: there is no NPC 'nobody'" in done.stdout
    session = call(served(), "session", player_id=player, npc_id=NPC)
    said = [turn["player"] for turn in session["history"]]
    assert len(said) == 3
    assert said[-1].startswith("조심히 갈게요. 🙂")


class Proxy(ThreadingHTTPServer):
    """Hands on to the app; refuses the first post, cuts the first stream, gives bytes one by one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hops)
        self.posts: list[bytes] = []
        self.streams = 0


class Hops(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.posts.append(body)
        status, answer = 503, b"<html>away</html>"
        if len(self.server.posts) > 1:
            kind = {"content-type": self.headers["content-type"]}
            reply = httpx.post(served() + self.path, content=body, headers=kind, timeout=60)
            status, answer = reply.status_code, reply.content
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        stream = httpx.get(served() + self.path, timeout=60).content
        self.server.streams += 1
        cut = self.server.streams == 1
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for byte in stream[: len(stream) // 2] if cut else stream:
            self.wfile.write(b"1\r\n%c\r\n" % byte)
        if cut:
            self.close_connection = True  # without the last chunk: as a server does that dies
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_given: object) -> None:
        pass


@contextmanager
def proxy() -> Iterator[Proxy]:
    with Proxy() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_turn_is_sent_with_the_same_id_over_a_line_that_breaks(console):
    player = f"p-{uuid.uuid4().hex}"
    with proxy() as server:
        done = run(console, f"http://127.0.0.1:{server.server_port}", NPC, player)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.posts[0] == server.posts[1] == server.posts[2] != server.posts[3]
    assert re.search(rb'"turn_id":"[0-9a-f]{32}"', server.posts[0])
    assert len(call(served(), "session", player_id=player, npc_id=NPC)["history"]) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["http://127.0.0.1:9"], "unreachable: no engine answers at http://127.0.0.1:9"),
        (["nowhere"], "invalid_request: nowhere"),
    ],
)
def test_the_console_fails_in_plain_words_where_nobody_answers(console, arguments, told):
    done = run(console, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1
