"""Serves the page with the tiny random model, in a process of its own.

    python -m tests.app_process PORT DATA_DIR [--slow SECONDS] [--hold FILE] [--drag FILE]
                                            [--npcs FOLDER]

`--slow` waits that long before every token of a line, so that a test can see it grow; `--hold` keeps
the model back until the file is there, so that it can see the bar; while the `--drag` file is there a
line goes on and on, so that it can be stopped. Every flag fires that the
gate permits. `served` starts one for all tests of a run.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from engine.model import LanguageModel

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120


def start(
    data_dir: Path, *options: str, env: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a process on a free port; return it and its address once the page is there.

    `env` is added to this process's environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "app.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.app_process", str(port), str(data_dir), *options],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(url):
            return process, url
        time.sleep(0.2)
    stop(process)
    raise RuntimeError(f"the app did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask a process to stop as a terminal would; return its exit code."""
    process.terminate()
    try:
        return process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


_DRAGS: dict[str, Path] = {}


@contextmanager
def endless_lines(url: str) -> Iterator[None]:
    """Let every line of the app at `url` go on and on, so that a test can act while one grows."""
    _DRAGS[url].touch()
    try:
        yield
    finally:
        _DRAGS[url].unlink()


@functools.cache
def served() -> str:
    """Return the address of an app with turns ready, the same for all tests of this run."""
    folder = Path(tempfile.mkdtemp(prefix="persona-chat-test-"))
    drag = folder / "drag"
    process, url = start(folder, "--slow", "0.01", "--drag", str(drag))
    _DRAGS[url] = drag
    owner = os.getpid()

    def clean_up() -> None:
        if os.getpid() == owner:  # a forked child that ends must not take the app down with it
            stop(process)
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(clean_up)
    wait_ready(url)
    return url


def wait_ready(url: str) -> None:
    """Wait until turns can be served."""
    deadline = time.monotonic() + START_SECONDS
    while not call(url, "status")["ready"]:
        if time.monotonic() > deadline:
            raise RuntimeError("the engine did not become ready")
        time.sleep(0.2)


def call(url: str, name: str, /, **arguments: Any) -> Any:
    """Call the app over plain HTTP, as a game without a client library would."""
    path = f"{url}/gradio_api/call/v2/{name}"
    event = httpx.post(path, json=arguments, timeout=30).json()["event_id"]
    lines = httpx.get(f"{path}/{event}", timeout=60).text.splitlines()
    data = lines[lines.index("event: complete") + 1]
    return httpx.Response(200, text=data.removeprefix("data: ")).json()[0]


def slowed(model: LanguageModel, seconds: float, drag: Path | None) -> LanguageModel:
    """Return `model`, which then waits before every token, and drags on while a file is there."""
    from torch import Tensor, nn

    inner = model.model.lm_head
    letter = model.tokenizer.convert_tokens_to_ids("o")

    class Slow(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            logits: Tensor = inner(hidden)
            if drag and drag.exists():
                time.sleep(0.4)
                logits = logits.clone()
                logits[..., letter] = 1e4
            else:
                time.sleep(seconds)
            return logits

    model.model.lm_head = Slow()
    return model


def serve(
    port: int,
    data_dir: Path,
    *,
    slow: float,
    hold: Path | None,
    drag: Path | None,
    npcs: Path | None,
) -> None:
    """Serve until told to stop; the imports stand here because they take seconds."""
    import app
    from engine.schema import FLAGS
    from engine.service import EngineService
    from engine.settings import Settings
    from tests.fakes import WordEmbedder, tiny_language_model

    def load(_settings: Settings, progress: Callable[[float, str], None]) -> LanguageModel:
        progress(0.4, "loading the tiny model")
        while hold and not hold.exists():
            time.sleep(0.05)
        return slowed(tiny_language_model(shifts=dict.fromkeys(FLAGS, 30.0)), slow, drag)

    service = EngineService(
        Settings(_env_file=None, data_dir=data_dir, **({"npc_dir": npcs} if npcs else {})),
        model_loader=load,
        embedder_loader=lambda _settings: WordEmbedder(),
    )
    service.start()
    app.serve(service, "127.0.0.1", port)


def main() -> int:
    """Read the command line and serve."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--hold", type=Path)
    parser.add_argument("--drag", type=Path)
    parser.add_argument("--npcs", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    serve(
        given.port,
        given.data_dir,
        slow=given.slow,
        hold=given.hold,
        drag=given.drag,
        npcs=given.npcs,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
