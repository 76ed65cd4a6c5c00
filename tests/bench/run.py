"""The whole bench: which cells are run in which order, and the result that they make."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.model import Precision
from engine.serving.steps import FORMS, Form, Forms
from tests.bench.cells import LIMIT, Cell
from tests.bench.child import run_in_child
from tests.bench.figures import memory, ratios, reached
from tests.bench.gguf import fetch_gguf
from tests.bench.models import prompt_encoder
from tests.bench.workload import Lengths, Workload, check_lengths, make_workload

logger = logging.getLogger("bench")

RunCell = Callable[[Cell, Workload], dict[str, Any]]
_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_BUSY = 0.5  # processes that wait for a processor before we begin


@dataclass(frozen=True)
class Options:
    """What to run.

    Args:
        players: counts of players.
        rounds: warm turns a player.
        limit_s: seconds after which no warm turn is begun in a cell.
        threads: of every model.
        forms: forms of our weights; None: as the app chooses.
        gguf: llama.cpp's file; None: fetched.
        contestants: names.
        work: an empty folder.
    """

    players: tuple[int, ...]
    rounds: int
    limit_s: float
    threads: int
    forms: Forms | None
    gguf: Path | None
    contestants: tuple[str, ...]
    work: Path


def run_bench(options: Options, remarks: list[str]) -> dict[str, Any]:
    """Run everything on the embedded base; return the result as plain values.

    Args:
        options: what to run.
        remarks: what to tell beside the figures.

    Raises:
        WeightsError: the base or its GGUF file cannot be had.
    """
    warn_of_load(remarks)
    lengths = Lengths()
    encoder = prompt_encoder()
    workload = make_workload(encoder, max(options.players), options.rounds + 1, lengths)
    check_lengths(workload, lengths, encoder.state_id)
    gguf = options.gguf
    if gguf is None and "llama_cpp" in options.contestants:
        logger.info("fetching llama.cpp's file")
        folder = options.work / "gguf"
        folder.mkdir()
        gguf = fetch_gguf(folder)
    cell = Cell(
        "",
        rounds=options.rounds,
        limit_s=options.limit_s,
        threads=options.threads,
        forms=options.forms,
        tuning=str(options.work / "tuning.json"),
        gguf=str(gguf or ""),
    )
    return run_cells(options, cell, workload, lengths, remarks, run_in_child)


def warn_of_load(remarks: list[str]) -> None:
    """Add a remark where others use the machine: threads that wait for each other suffer unevenly."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > _BUSY:
        remarks.append(
            f"the machine was busy before the bench began (load {load:.1f}): the figures are not to "
            "be trusted"
        )
        logger.warning("%s", remarks[-1])


def run_cells(
    options: Options,
    cell: Cell,
    workload: Workload,
    lengths: Lengths,
    remarks: list[str],
    run: RunCell,
) -> dict[str, Any]:
    """Run the cells one after the other and join what they found.

    Args:
        options: what to run.
        cell: what all cells have in common.
        workload: the prompts.
        lengths: of the workload, in tokens.
        remarks: what to tell beside the figures.
        run: runs a cell.
    """
    players: dict[str, dict[str, Any]] = {}
    precision: Precision | None = None
    for count in options.players:
        row = players[str(count)] = {}
        for name in options.contestants:
            logger.info("%s, %d players", name, count)
            one = _with(cell, contestant=name, players=count)
            if name == "original" and precision is None:
                row[name], precision = _faster(one, workload, run)
            elif name == "original":
                row[name] = run(_with(one, precision=precision), workload)
            else:
                row[name] = run(one, workload)
            logger.info("    %s", _told(row[name]))
    logger.info("the machine's limit")
    limit = run(_with(cell, contestant=LIMIT), workload)
    found, used = ratios(players), memory(players, lengths.prompt + lengths.reply)
    return {
        "players": players,
        "ratios": found,
        "limit": limit,
        "memory": used,
        "reached": reached(found, players, used),
        "workload": {
            "prompt_tokens": lengths.prompt,
            "prefix_tokens": lengths.prefix,
            "reply_tokens": lengths.reply,
            "rounds": options.rounds,
        },
        "machine": {
            "threads": options.threads,
            "processor": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        },
        "remarks": remarks,
    }


def _faster(cell: Cell, workload: Workload, run: RunCell) -> tuple[dict[str, Any], Precision]:
    """Run a cell in every precision; return the faster one's figures, and which it is."""
    tried: list[tuple[float, dict[str, Any], Precision]] = []
    for precision in _PRECISIONS:
        found = run(_with(cell, precision=precision), workload)
        turn = found["turn_ms"]["p50"] if "turn_ms" in found else float("inf")
        logger.info("    %s: %s", precision, _told(found))
        tried.append((turn, found, precision))
    _, found, precision = min(tried, key=lambda one: one[0])
    return found, precision


def _with(cell: Cell, **changes: Any) -> Cell:
    return Cell.from_json({**cell.to_json(), **changes})


def _told(found: dict[str, Any]) -> str:
    if "turn_ms" not in found:
        return str(found["failed"])
    return f"a turn {found['turn_ms']['p50']:.0f} ms, {found['turns_per_s']:.2f} turns/s"


def parse_forms(text: str) -> Forms | None:
    """Read "8:int8,0:whole"; "auto" is None.

    Raises:
        ValueError: it is not of that form.
    """
    if text == "auto":
        return None
    pairs: list[tuple[int, Form]] = []
    for part in text.split(","):
        most, _, name = part.partition(":")
        form = next((one for one in FORMS if one == name), None)
        if form is None:
            raise ValueError(f"{name!r} is none of {', '.join(FORMS)}")
        pairs.append((int(most), form))
    return tuple(pairs)
