"""What the machine would allow: bytes over memory bandwidth, operations over matrix speed.

A decoding step must read the weights, the beginning that the lines share and every line's own keys
and values once; a prefill must do its products. Both are held against the speed of one large product on
this machine, and what the lean forward takes is told as a fraction of that (1: nothing left to gain;
int16 products beat the float32 one that they are held against).
Everything is the best of some rounds, since machines are shared. Source: Williams et al.,
"Roofline", 2009.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.decode import Sampler, choose_tokens
from engine.serving.caches import RowCache
from engine.serving.lean import LeanDecoder
from engine.serving.steps import Step, Steps
from tests.bench.workload import Workload

_ROUNDS = 8
_PROBE_BYTES = 256 * 2**20  # far more than any cache holds
_WIDTH = 4096


@dataclass(frozen=True)
class Machine:
    """Measured speeds: bytes a second read, operations a second in a product of prefill's shape."""

    fp32_bandwidth: float
    int8_bandwidth: float
    matrix_speed: float

    @property
    def bandwidth(self) -> float:
        """The better one."""
        return max(self.fp32_bandwidth, self.int8_bandwidth)


@torch.inference_mode()
def measure_machine(
    rows: int, width: int, wide: int, layers: int, dtype: torch.dtype, probe: int = _PROBE_BYTES
) -> Machine:
    """Measure this machine.

    Args:
        rows: tokens of a prefill.
        width, wide: of the model's widest projection.
        layers: so many different matrices, so that they come from memory as they do in a prefill.
        dtype: of the model.
        probe: bytes of the matrix that bandwidth is measured with.
    """
    weights = [torch.randn(wide, width, dtype=dtype) for _ in range(layers)]
    given = torch.randn(rows, width, dtype=dtype)

    def multiply() -> None:
        for weight in weights:
            nn.functional.linear(given, weight)

    operations = 2.0 * rows * width * wide * layers
    return Machine(
        fp32_bandwidth=_fp32_bandwidth(probe),
        int8_bandwidth=_int8_bandwidth(probe),
        matrix_speed=operations / best_seconds(multiply),
    )


def _fp32_bandwidth(probe: int) -> float:
    matrix = torch.ones(probe // (4 * _WIDTH), _WIDTH)
    vector = torch.ones(_WIDTH)
    return matrix.numel() * 4 / best_seconds(lambda: torch.mv(matrix, vector))


def _int8_bandwidth(probe: int) -> float:
    matrix = torch.ones(probe // _WIDTH, _WIDTH, dtype=torch.int8)
    scales = torch.ones(matrix.shape[0], dtype=torch.bfloat16)
    vector = torch.ones(1, _WIDTH, dtype=torch.bfloat16)
    try:
        seconds = best_seconds(lambda: torch._weight_int8pack_mm(vector, matrix, scales))
    except RuntimeError:  # a processor or build without this kernel
        return 0.0
    return matrix.numel() / seconds


def best_seconds(work: Callable[[], Any], rounds: int = _ROUNDS) -> float:
    """Return how long `work` takes at best; once is not counted."""
    work()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def measure_limit(
    decoder: LeanDecoder,
    steps: Steps,
    workload: Workload,
    suppressed: list[int],
    machine: Machine,
) -> dict[str, Any]:
    """Hold the decoder against the machine; return the fractions and what they come from.

    Args:
        decoder: whose limit it is.
        steps: how lines are decoded.
        workload: gives the lengths.
        suppressed: ids that are never chosen.
        machine: what it can do.
    """
    found: dict[str, Any] = {}
    prompt = len(workload.ids(0, 0))
    context = prompt + workload.reply_tokens // 2
    for lines in (1, 16):
        form = steps.form(lines)
        step = steps.by_form[form]
        measured = step_seconds(decoder, step, lines, context, workload, suppressed)
        own = context - len(workload.prefix)
        ideal = step_bytes(decoder, step, lines, len(workload.prefix), own) / machine.bandwidth
        found[f"decode_fraction_{lines}"] = ideal / measured
        found[f"step_ms_{lines}"] = 1e3 * measured
        found[f"step_weights_{lines}"] = form
    kept = len(workload.prefix)
    measured = prefill_seconds(decoder, workload.ids(0, 0)[kept:], kept)
    ideal = prefill_operations(decoder, kept, prompt - kept) / machine.matrix_speed
    found["prefill_fraction"] = ideal / measured
    found["prefill_ms"] = 1e3 * measured
    found["fp32_bandwidth_gb_s"] = machine.fp32_bandwidth / 1e9
    found["int8_bandwidth_gb_s"] = machine.int8_bandwidth / 1e9
    found["matrix_gflop_s"] = machine.matrix_speed / 1e9
    return found


def cache_bytes(decoder: LeanDecoder, tokens: int) -> int:
    """Return the bytes of keys and values of so many tokens, in the decoder's type."""
    return decoder.shape.bytes_per_token * tokens * decoder.dtype.itemsize // 2


def step_bytes(decoder: LeanDecoder, step: Step, lines: int, shared: int, own: int) -> int:
    """Return what a step must read: weights and `shared` tokens once, `own` ones for every line."""
    return step.bytes + cache_bytes(decoder, shared + lines * own)


def prefill_operations(decoder: LeanDecoder, kept: int, count: int) -> float:
    """Return the operations of reading `count` tokens behind `kept` ones; no logits are asked for."""
    shape, hidden = decoder.shape, decoder.hidden_size
    itemsize = decoder.dtype.itemsize
    # Whole weights are the layers' matrices and the vocabulary's, which a prefill leaves out.
    matrices = decoder.weights.bytes // itemsize - decoder.vocabulary * hidden
    seen = sum(range(kept + 1, kept + count + 1))
    heads = shape.kv_heads * shape.groups
    return 2.0 * matrices * count + 4.0 * shape.layers * heads * shape.head_dim * seen


@torch.inference_mode()
def step_seconds(
    decoder: LeanDecoder,
    step: Step,
    lines: int,
    context: int,
    workload: Workload,
    suppressed: list[int],
) -> float:
    """Return how long a step of so many lines takes at best, the choice of tokens included."""
    shared, batch = _filled(decoder, len(workload.prefix)).data, step.batch()
    for _ in range(lines):
        row = _filled(decoder, context - shared.shape[3], behind=shared)
        batch.join(row, context + _ROUNDS + 1)
    samplers = [Sampler(workload.sampling(seed), suppressed) for seed in range(lines)]
    ids = torch.zeros(lines, dtype=torch.long, device=decoder.device)
    written = [list(workload.act)] * lines

    return best_seconds(lambda: choose_tokens(step.logits(ids, batch), samplers, written))


@torch.inference_mode()
def prefill_seconds(decoder: LeanDecoder, ids: tuple[int, ...], kept: int) -> float:
    """Return how long reading `ids` behind `kept` tokens takes at best."""
    cache = _row(decoder, len(ids), _filled(decoder, kept).data)
    given = torch.tensor(ids, device=decoder.device)

    def read() -> None:
        positions = cache.begin(len(ids))
        decoder.forward(given, positions, cache, keeper=cache)  # as a prompt is read

    return best_seconds(read)


def _filled(decoder: LeanDecoder, tokens: int, behind: torch.Tensor | None = None) -> RowCache:
    row = _row(decoder, tokens, behind)
    row.take(torch.zeros_like(row.data))
    return row


def _row(decoder: LeanDecoder, tokens: int, behind: torch.Tensor | None) -> RowCache:
    return RowCache(decoder.shape, tokens, decoder.dtype, decoder.device, behind=behind)
