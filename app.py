"""The Space's entry: settings, engine, page, launch. No logic.

Run `python app.py`. GRADIO_SERVER_NAME and GRADIO_SERVER_PORT move the address; the other settings
are in `engine.settings`.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    # Starting makes some million objects that stay; looking through them again and again takes a
    # fifth of it. `_tell_when_ready` lets the collector go on.
    gc.disable()

import engine.gpu  # first of ours: a ZeroGPU Space patches torch before anything imports it  # isort: skip

import logging
import os
import signal
import sys
import threading

from engine.api import Api
from engine.errors import EngineError, InvalidRequest
from engine.memory import settle_allocator
from engine.service import EngineService
from engine.settings import load_settings

logger = logging.getLogger("app")

DEFAULT_PORT = 7860
BAD_SETTING = 2


def address() -> tuple[str, int]:
    """Return host and port: on a Space every interface, elsewhere this machine only."""
    host = "0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1"
    port = os.environ.get("GRADIO_SERVER_PORT", str(DEFAULT_PORT))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"setting GRADIO_SERVER_PORT: {port!r} is not a port (1 to 65535)")
    return os.environ.get("GRADIO_SERVER_NAME") or host, int(port)


def serve(service: EngineService, host: str, port: int) -> None:
    """Serve the page until the process is asked to stop.

    Raises:
        OSError: the address cannot be had.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Gradio reads its environment when it is imported, and fails there on a port that is none.
    from engine.ui.page import build_page, launch_arguments, queue_arguments
    from engine.ui.sign_in import signed_in

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    limit = service.settings.queue_limit
    demo = build_page(service, Api(service, signed_in))
    demo.queue(**queue_arguments(limit)).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        **launch_arguments(limit),
    )
    logger.info("the page is served at %s", demo.local_url)
    try:
        while not stop.wait(1.0):
            pass
    finally:
        logger.info("shutting down")
        demo.close(verbose=False)
        service.close()


def main() -> int:
    """Start everything; return the exit code."""
    settle_allocator()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns of an optional kernel that only 4-bit on a CPU would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        settings = load_settings()
        host, port = address()
    except EngineError as exc:
        logger.error("%s", exc)
        return BAD_SETTING
    logger.info("starting; the page will be at http://%s:%d", host, port)
    service = EngineService(settings)
    loading = service.start()
    if engine.gpu.lent_per_call():
        loading.join()
    threading.Thread(target=_tell_when_ready, args=(service, loading), daemon=True).start()
    try:
        serve(service, host, port)
    except OSError:
        logger.error("cannot serve at %s:%d; is it taken? GRADIO_SERVER_PORT moves it", host, port)
        return 1
    return 0


def _tell_when_ready(service: EngineService, loading: threading.Thread) -> None:
    """Log how far starting has come, and that turns can be served."""
    told = ""
    while loading.is_alive():
        loading.join(1.0)
        done = service.progress
        if done.message != told:
            told = done.message
            logger.info("%3.0f %% %s", done.fraction * 100, told)
    gc.freeze()
    gc.enable()
    if service.status()["ready"]:
        logger.info("ready")


if __name__ == "__main__":
    sys.exit(main())
