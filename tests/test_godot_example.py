"""The Godot example, run without a window: against the app with the tiny model, and a broken server.

Skips where `godot3-server` (Debian's headless Godot 3) is not installed.
"""

from __future__ import annotations

import json
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
from typing import Any

import pytest

from tests.app_process import ROOT, call, served

GODOT = shutil.which("godot3-server")
PROJECT = ROOT / "examples" / "godot"
NPC = "mother_abandoned_factory"
LINE = "조심히 들어오세요. 🙂"

pytestmark = pytest.mark.skipif(GODOT is None, reason="needs godot3-server")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project: what Godot writes beside it, or in a home folder, is thrown away."""
    folder = tmp_path_factory.mktemp("godot") / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(".import", "godot4"))
    return folder


def run(project: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = {"HOME": str(project.parent), "LANG": "en_US.UTF-8"}
    done = subprocess.run(
        [str(GODOT), "--path", str(project), "-s", script, "--", *arguments],
        env={**os.environ, **home},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    # A script that fails in Godot only stops; the exit code alone would not tell.
    assert "SCRIPT ERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


def test_the_parser_the_json_reader_and_the_ledger_pass_their_own_checks(project):
    done = run(project, "tests/test_parser.gd")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    two events, one Korean, split at every byte" in done.stdout


def test_the_headless_run_streams_grants_once_saves_and_loads(project):
    player = f"p-{uuid.uuid4().hex}"
    done = run(project, "run_headless.gd", served(), NPC, player)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert done.stdout.count("granted: Silvia takes off the gold necklace") == 1
    session = call(served(), "session", player_id=player, npc_id=NPC)
    assert len(session["history"]) == 3


def test_the_headless_run_fails_where_nobody_answers(project):
    done = run(project, "run_headless.gd", "http://127.0.0.1:9")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no engine answers at http://127.0.0.1:9" in done.stdout


STATE = {
    "delta": {"trust": 0.1, "relationship": 0.0},
    "flags": {"give_item": True},
    "meta": {"actions": [{"flag": "give_item", "value": "key", "text": "", "effect_id": "e1"}]},
}
RESULT = {"text": LINE, **STATE}
BUSY = {"error": {"code": "busy", "message": "full", "retryable": True, "field": None}}


def event(kind: str, value: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps([value], ensure_ascii=False)}\n\n".encode()


GROWN = event("generating", {"text": LINE})
WHOLE = event("generating", STATE) + b"event: heartbeat\ndata: null\n\n" + GROWN
# The first character of the line is cut in two, and nothing follows.
CUT = event("generating", STATE) + GROWN[: GROWN.index(LINE.encode()) + 1]


class Stub(ThreadingHTTPServer):
    """Answers the n-th turn with the n-th stream, a byte a chunk; None refuses the post itself.

    The last stream is for all turns after it. An empty one never answers the post.
    """

    daemon_threads = True

    def __init__(self, *streams: bytes | None) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.streams = streams
        self.posted: list[dict[str, Any]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stream(self) -> bytes | None:
        return self.streams[min(len(self.posted), len(self.streams)) - 1]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        self.server.posted.append(json.loads(self.rfile.read(size)))
        stream = self.server.stream()
        if stream is None:
            return self._send(503, b"<html>away</html>")
        if not stream:
            self.server.closing.wait(timeout=60)
        return self._send(200, b'{"event_id": "e"}')

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for byte in self.server.stream() or b"":
            self.wfile.write(b"1\r\n%c\r\n" % byte)
        self.close_connection = True  # without the last chunk: as a server does that dies

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_given: Any) -> None:
        pass


@contextmanager
def stub(*streams: bytes | None) -> Iterator[Stub]:
    with Stub(*streams) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def told(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)]


def test_a_turn_is_sent_with_the_same_id_until_it_is_answered_and_told_once(project):
    busy, answered = event("complete", BUSY), WHOLE + event("complete", RESULT)
    with stub(None, CUT, busy, answered) as server:
        done = run(project, "tests/say_once.gd", server.url, "안녕\n하세요\x02 🙂", "5", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.posted) == 4
    assert all(turn == server.posted[0] for turn in server.posted)
    assert len(server.posted[0]["turn_id"]) == 32
    assert server.posted[0]["text"] == "안녕\n하세요\x02 🙂"
    signals = told(done)
    names = [signal["signal"] for signal in signals]
    assert names == ["state_known", "text_grew", "text_grew", "action_granted", "turn_done"]
    assert signals[1]["value"] == signals[-1]["value"]["text"] == LINE


def test_a_turn_that_is_never_answered_stays_pending(project):
    with stub(event("complete", BUSY)) as server:
        done = run(project, "tests/say_once.gd", server.url, "Hello.", "2", "20")
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(server.posted) == 2
    (failed,) = told(done)
    assert failed["value"] == {"code": "busy", "message": "full", "retryable": True}
    assert failed["pending"] == server.posted[0]


def test_a_silent_server_is_given_up_after_the_patience(project):
    with stub(b"") as server:
        done = run(project, "tests/say_once.gd", server.url, "Hello.", "1", "0.5")
    (failed,) = told(done)
    assert failed["value"]["code"] == "unreachable"
    assert failed["value"]["retryable"] is True
