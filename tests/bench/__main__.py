"""`python -m tests.bench`: our speed beside the original's way, llama.cpp and the machine's limit."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

from engine.errors import EngineError
from tests.bench.cells import CONTESTANTS
from tests.bench.llama_cpp import INSTALL, have_llama_cpp
from tests.bench.plot import draw, have_matplotlib
from tests.bench.report import render
from tests.bench.run import Options, parse_forms, run_bench

logger = logging.getLogger("bench")


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    if options.plot and not have_matplotlib():
        logger.error("--plot needs matplotlib: %s", INSTALL)
        return 1
    contestants = list(options.only)
    remarks = []
    if "llama_cpp" in contestants and not have_llama_cpp():
        contestants.remove("llama_cpp")
        remarks.append(f"llama.cpp is left out, since xllamacpp is not installed: {INSTALL}")
        logger.warning("%s", remarks[-1])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asked = Options(
            players=tuple(options.players or ((1, 4) if options.quick else (1, 4, 16, 64))),
            rounds=options.rounds or (1 if options.quick else 3),
            limit_s=options.seconds,
            threads=options.threads,
            forms=options.forms,
            gguf=options.gguf,
            contestants=tuple(contestants),
            work=Path(folder),
        )
        try:
            result = run_bench(asked, remarks)
        except EngineError as exc:
            logger.error("%s", exc)
            return 1
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if options.json else render(result))
    if options.plot:
        draw(result, options.plot)
        logger.info("drawn into %s", options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="1 and 4 players, a warm turn each")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file")
    parser.add_argument("--players", type=int, nargs="+", help="default: 1 4 16 64")
    parser.add_argument("--rounds", type=int, default=0, help="warm turns a player; default: 3")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="after so many no warm turn is begun in a cell"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every model")
    parser.add_argument(
        "--forms",
        type=parse_forms,
        help="forms of our weights, as 8:int8,0:whole; default: as the app chooses",
    )
    parser.add_argument("--gguf", type=Path, help="llama.cpp's file; default: fetched")
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, help="contestants"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
