"""Which form of a step decodes how many lines fastest here: measured once, then remembered.

One line reads all weights for one product each, so int8 wins by moving fewer bytes; many lines share
what is read, and bfloat16 wins where matrix units know it and not int8. Where the lines cross depends
on the machine. Prompts are never read in int8, so what a turn decides does not depend on
this. Knows nothing of turns.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.serving.caches import RowCache
from engine.serving.lean import LeanDecoder
from engine.serving.steps import FORMS, Form, Forms, Step, Steps, make_step, make_steps

logger = logging.getLogger(__name__)

# Tokens of a line's cache: of the beginning that it shares, and of its own.
_SHARED, _OWN = 256, 128
_ROUNDS = 6
# A form must be so much faster to be worth a copy of the weights, and a change between two sizes.
_WORTH = 0.9
# A form that is so much slower than the best will not be the best for more lines.
_HOPELESS = 1.6
# What a processor, a build or a kind of weights that does not suit may answer with.
_NOT_HERE = (ImportError, RuntimeError, ValueError)


def choose_steps(
    decoder: LeanDecoder, wanted: str = "auto", *, most: int = 32, remembered: Path | None = None
) -> Steps:
    """Return the steps that serve fastest, or the form that is asked for.

    Args:
        decoder: whose steps are measured.
        wanted: a form for all sizes, or "auto".
        most: lines that are ever decoded together.
        remembered: file of earlier choices on this machine, read and written.

    Raises:
        ValueError: the form that is wanted cannot be had here.
    """
    if wanted != "auto":
        form = next((one for one in FORMS if one == wanted), None)
        if form is None:
            raise ValueError(f"weights must be auto, {' or '.join(FORMS)}, not {wanted!r}")
        try:
            return make_steps(decoder, ((0, form),))
        except ImportError as exc:
            raise ValueError(f"{form} weights cannot be had here: {exc}") from exc
    if decoder.device.type != "cpu":
        return make_steps(decoder)
    key = _key(decoder, most)
    recalled = _recall(remembered, key)
    if recalled:
        try:
            return make_steps(decoder, recalled)
        except _NOT_HERE as exc:
            logger.info("what was chosen before cannot be had now: %s", exc)
    chosen = _measured(decoder, most)
    _remember(remembered, key, chosen.forms)
    return chosen


def _measured(decoder: LeanDecoder, most: int) -> Steps:
    steps: dict[Form, Step] = {}
    for form in FORMS:
        try:
            steps[form] = make_step(form, decoder)
            step_seconds(decoder, steps[form], 1)  # the first call compiles
        except _NOT_HERE as exc:
            if form == "whole":
                raise
            steps.pop(form, None)
            logger.info("%s weights are not to be had here: %s", form, exc)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < most] + [most]
    left, pairs = list(steps), list[tuple[int, Form]]()
    for size in sizes:
        times = {form: step_seconds(decoder, steps[form], size) for form in left}
        fastest = min(times, key=lambda form: times[form])
        former = pairs[-1][1] if pairs else "whole"
        if former in times and times[fastest] > _WORTH * times[former]:
            fastest = former
        shown = ", ".join(f"{form} {1e3 * value:.0f} ms" for form, value in times.items())
        logger.info("%d lines a step: %s", size, shown)
        pairs.append((size, fastest))
        # Whole weights gain on the others with every line more.
        left = [
            form for form in left if form == "whole" or times[form] < _HOPELESS * times[fastest]
        ]
    forms = joined(pairs)
    return Steps(forms, {form: steps[form] for _, form in forms})


def joined(pairs: Sequence[tuple[int, Form]]) -> Forms:
    """Return pairs with neighbours of one form made one, the last one for any size (0)."""
    found: list[tuple[int, Form]] = []
    for size, form in pairs:
        if found and found[-1][1] == form:
            found.pop()
        found.append((size, form))
    return (*found[:-1], (0, found[-1][1]))


@torch.inference_mode()
def step_seconds(decoder: LeanDecoder, step: Step, lines: int) -> float:
    """Return how long a step of so many lines takes at best, in seconds."""
    shared = RowCache(decoder.shape, _SHARED, decoder.dtype, decoder.device).data.zero_()
    batch = step.batch()
    for _ in range(lines):
        row = RowCache(decoder.shape, _OWN, decoder.dtype, decoder.device, behind=shared)
        row.take(torch.zeros_like(row.data))
        batch.join(row, row.length + _ROUNDS)
    ids = torch.zeros(lines, dtype=torch.long, device=decoder.device)
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        step.logits(ids, batch)
        best = min(best, time.perf_counter() - began)
    return best


def _key(decoder: LeanDecoder, most: int) -> str:
    shape = decoder.shape
    return "/".join(
        str(part)
        for part in (
            torch.__version__,
            platform.machine(),
            torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(),
            shape.layers,
            decoder.hidden_size,
            decoder.vocabulary,
            most,
            "+".join(FORMS),
            "int16" if decoder.int16 else str(decoder.dtype),
        )
    )


def _recall(path: Path | None, key: str) -> Forms | None:
    if path is None or not path.is_file():
        return None
    try:
        held = json.loads(path.read_text())[key]
        pairs = [(int(size), next(form for form in FORMS if form == name)) for size, name in held]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None  # damaged, or of another machine: measure again
    return tuple(pairs) or None


def _remember(path: Path | None, key: str, chosen: Forms) -> None:
    if path is None:
        return
    try:
        held = json.loads(path.read_text()) if path.is_file() else {}
        held = {**held, key: chosen} if isinstance(held, dict) else {key: chosen}
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".part")
        fresh.write_text(json.dumps(held, indent=1))
        fresh.replace(path)
    except (OSError, ValueError) as exc:
        logger.info("the choice is not remembered: %s", exc)
