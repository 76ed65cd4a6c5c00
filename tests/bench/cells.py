"""A cell: one contestant with so many players. What to run, and running it in this process.

Knows nothing of the other cells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.compute import in_passing
from engine.model import Precision
from engine.serving.steps import Forms
from tests.bench.drive import Contestant, play
from tests.bench.figures import played_figures
from tests.bench.memory import forget_peak, held_bytes, peak_bytes
from tests.bench.workload import Workload

LIMIT = "limit"
CONTESTANTS = ("ours", "original", "llama_cpp")


@dataclass(frozen=True)
class Cell:
    """What a child process is told; plain values.

    Args:
        contestant: of `CONTESTANTS`, or "limit".
        players, rounds: how many, and warm turns of each.
        limit_s: seconds after which no turn is begun.
        threads: of the model.
        precision: of the original.
        forms: forms of our weights; None: as the app chooses.
        tuning: file that remembers what it chose.
        gguf: llama.cpp's model.
    """

    contestant: str
    players: int = 1
    rounds: int = 1
    limit_s: float = 90.0
    threads: int = 2
    precision: Precision = "bf16"
    forms: Forms | None = None
    tuning: str = ""
    gguf: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Cell:
        """Return the cell of `to_json`."""
        pairs = held["forms"]
        forms = None if pairs is None else tuple((most, form) for most, form in pairs)
        return cls(**{**held, "forms": forms})


def run_cell(cell: Cell, workload: Workload) -> dict[str, Any]:
    """Load what the cell needs, run it, and return its figures."""
    if cell.contestant == LIMIT:
        return run_limit(cell, workload)
    # All contestants alike: what loading leaves running would slow down whoever computes later.
    contestant = in_passing(lambda: make_contestant(cell, workload))
    try:
        return measure(contestant, cell, workload)
    finally:
        contestant.close()


def measure(contestant: Contestant, cell: Cell, workload: Workload) -> dict[str, Any]:
    """Run a contestant that is ready; return its figures and notes."""
    forget_peak()
    held = held_bytes()
    played = play(contestant, workload, cell.players, cell.rounds, limit_s=cell.limit_s)
    return {**played_figures(played, peak_bytes(), held), **contestant.notes()}


def make_contestant(cell: Cell, workload: Workload) -> Contestant:
    """Load the cell's contestant. Each is imported only where it runs."""
    if cell.contestant == "ours":
        from tests.bench.models import load_served
        from tests.bench.ours import make_ours

        return make_ours(
            load_served(cell.threads),
            workload,
            cell.players,
            forms=cell.forms,
            tuning=Path(cell.tuning) if cell.tuning else None,
        )
    if cell.contestant == "original":
        from tests.bench.models import load_in
        from tests.bench.original import Original

        return Original(load_in(cell.precision, cell.threads), workload)
    if cell.contestant == "llama_cpp":
        from tests.bench.llama_cpp import make_llama_cpp
        from tests.bench.models import load_tokenizer

        return make_llama_cpp(
            Path(cell.gguf), load_tokenizer(), workload, cell.players, threads=cell.threads
        )
    raise ValueError(f"there is no contestant {cell.contestant!r}")


def run_limit(cell: Cell, workload: Workload) -> dict[str, Any]:
    """Measure the machine and hold the decoder against it."""
    from engine.serving.start import make_decoder
    from engine.serving.steps import make_steps
    from engine.serving.tuning import choose_steps
    from tests.bench.limit import measure_limit, measure_machine
    from tests.bench.models import load_served
    from tests.bench.ours import make_endless

    model = load_served(cell.threads)
    make_endless(model)
    config = model.model.config
    decoder = make_decoder(model, room=0)
    prompt = len(workload.ids(0, 0))
    machine = measure_machine(
        prompt - len(workload.prefix),
        config.hidden_size,
        2 * config.intermediate_size,
        config.num_hidden_layers,
        decoder.dtype,
    )
    tuning = Path(cell.tuning) if cell.tuning else None
    steps = (
        make_steps(decoder, cell.forms) if cell.forms else choose_steps(decoder, remembered=tuning)
    )
    return measure_limit(decoder, steps, workload, model.suppressed, machine)
