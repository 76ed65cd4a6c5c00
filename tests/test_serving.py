"""The lean forward, its caches, and many turns in one batch: all equal to one turn alone."""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.decode import Sampler, Sampling, choose_plainly, choose_tokens
from engine.errors import Busy, ModelError
from engine.host import Event, Job, LineDone, LineSoFar, ModelHost, StateKnown, run_job
from engine.model import LanguageModel
from engine.serving.batch import BatchHost, BatchLimits
from engine.serving.caches import BatchCache, RowCache
from engine.serving.forward import Tap
from engine.serving.lean import LeanDecoder, why_not_lean
from engine.serving.products import int16_product, quantise_rows
from engine.serving.prompts import Found, PromptCache, common_length
from engine.serving.start import make_decoder, make_host, warm_up
from engine.serving.steps import (
    FORMS,
    Entry,
    Int8Step,
    TorchStep,
    make_step,
    make_steps,
)
from engine.serving.tuning import choose_steps, joined
from engine.serving.weights import gather_weights
from heads.spec import FINAL_NORM
from tests.fakes import tiny_language_model, tiny_model

BOTH = pytest.mark.parametrize("kind", ["llama", "qwen2"])
SAMPLING = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_new_tokens=12, seed=3)
GREEDY = replace(SAMPLING, temperature=0.0, repetition_penalty=1.0)


def prompt_ids(
    model: LanguageModel, seed: int, *, prefix: int = 0, length: int = 60
) -> tuple[int, ...]:
    """Return random ids with <STATE> last; prompts of one `prefix` length begin alike."""
    markers = set(model.bundle.info.markers.values())
    room = min(markers)
    shared = random.Random(f"prefix {prefix}")
    own = random.Random(seed)
    ids = [shared.randrange(3, room) for _ in range(prefix)]
    ids += [own.randrange(3, room) for _ in range(length - prefix - 1)]
    return (*ids, model.encoder.state_id)


def job_of(model: LanguageModel, seed: int, **values: Any) -> Job:
    prefix, length = values.pop("prefix", 40), values.pop("length", 60)
    ids = prompt_ids(model, seed, prefix=prefix, length=length)
    sampling = values.pop("sampling", replace(SAMPLING, seed=seed))
    return Job(ids, sampling, prefix=prefix, session=values.pop("session", f"s{seed}"), **values)


@pytest.fixture
def host() -> Iterator[Any]:
    """Make hosts that are closed behind the test."""
    made: list[BatchHost] = []

    def make(model: LanguageModel | None = None, **limits: Any) -> BatchHost:
        model = model or tiny_language_model()
        decoder = LeanDecoder(model.model, 2000)
        made.append(BatchHost(model, decoder, BatchLimits(**{"slice": 16, **limits})))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one._thread.join(timeout=10)


def plain(events: list[Event]) -> list[Any]:
    """Return what events say, without times, and readings to within 1e-4."""
    said: list[Any] = []
    for event in events:
        if isinstance(event, StateKnown):
            said.append(pytest.approx(event.reading.probabilities, abs=1e-4))
        else:
            said.append((type(event).__name__, event.text))
    return said


def plain_values(events: list[Event]) -> list[Any]:
    """Return what events say, without times; to hold against `plain`."""
    return [
        event.reading.probabilities
        if isinstance(event, StateKnown)
        else (type(event).__name__, event.text)
        for event in events
    ]


def feed(decoder: LeanDecoder, cache: RowCache, ids: torch.Tensor, **options: Any) -> Any:
    positions = cache.begin(len(ids))
    outputs = decoder.forward(ids, positions, cache, **options)
    cache.finish(len(ids))
    return outputs


# --- the lean forward ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("head_dim", [8, 16])
@torch.inference_mode()
def test_lean_forward_equals_the_librarys_at_every_split(kind, head_dim):
    model, _ = tiny_model(kind, head_dim=head_dim)
    decoder = LeanDecoder(model, 64)
    assert bool(decoder.compiled) == (head_dim == 16)
    ids_T = torch.randint(3, 200, (24,), generator=torch.Generator().manual_seed(1))
    output = model(input_ids=ids_T[None], output_hidden_states=True)
    for split in range(1, 24):
        cache = RowCache(decoder.shape, 24, decoder.dtype)
        shown: list[torch.Tensor] = []
        first = feed(decoder, cache, ids_T[:split])
        tap = Tap(2, lambda seen, shown=shown: shown.append(seen.clone()))
        last = feed(decoder, cache, ids_T[split:], tap=tap)
        logits = torch.cat([decoder.logits(first), decoder.logits(last)])
        assert torch.allclose(logits, output.logits[0], atol=1e-3)
        assert len(shown) == 1
        again = RowCache(decoder.shape, 24, decoder.dtype)
        assert feed(decoder, again, ids_T[:split], keeper=again) is None
        assert torch.allclose(again.data[:, :, :, :split], cache.data[:, :, :, :split], atol=1e-5)
        assert torch.allclose(shown[0], output.hidden_states[2][0, split:], atol=1e-4)


@BOTH
@torch.inference_mode()
def test_decoding_in_a_batch_equals_decoding_alone_whatever_the_neighbours(kind):
    model, _ = tiny_model(kind)
    decoder = LeanDecoder(model, 200)
    generator = torch.Generator().manual_seed(2)
    ids_T = torch.randint(3, 200, (30,), generator=generator)
    expected = model(input_ids=ids_T[None]).logits[0]
    for others in (0, 1, 5):
        batch = BatchCache(decoder.shape, decoder.dtype)
        for at in range(others + 1):
            length = 20 if at == others else int(torch.randint(1, 90, (1,), generator=generator))
            row = RowCache(decoder.shape, length, decoder.dtype)
            given_ids = ids_T[:20] if at == others else torch.randint(3, 200, (length,))
            feed(decoder, row, given_ids)
            batch.join(row, length + 10)
        for at in range(20, 30):
            step = torch.cat([torch.randint(3, 200, (others,)), ids_T[at : at + 1]])
            positions = batch.begin()
            hidden = decoder.forward(step, positions, batch)
            batch.finish()
            assert torch.allclose(decoder.logits(hidden)[-1], expected[at], atol=1e-3)


@torch.inference_mode()
def test_sequences_keep_their_own_when_others_leave_and_the_batch_grows():
    model, _ = tiny_model("llama")
    decoder = LeanDecoder(model, 300)
    rows = torch.randint(3, 200, (4, 12), generator=torch.Generator().manual_seed(4))
    expected = model(input_ids=rows).logits
    batch = BatchCache(decoder.shape, decoder.dtype)
    for index in range(4):
        row = RowCache(decoder.shape, 10, decoder.dtype)
        feed(decoder, row, rows[index, :10])
        batch.join(row, 20 + 60 * index)
    assert batch.leave(1) == 3
    order = [0, 3, 2]
    for at in (10, 11):
        positions = batch.begin()
        hidden = decoder.forward(rows[order, at], positions, batch)
        batch.finish()
        assert torch.allclose(decoder.logits(hidden), expected[order, at], atol=1e-3)
    for _ in order:
        batch.leave(0)
    assert batch.bytes == 0


def rounded(model: Any) -> Any:
    """Return a copy of a model whose matrices are exactly what int8 can hold."""
    near = copy.deepcopy(model)
    for module in near.modules():
        if isinstance(module, torch.nn.Linear):
            whole_NK, scale_N = quantise_rows([module.weight])
            module.weight.data = (whole_NK * scale_N[:, None]).to(module.weight.dtype)
    return near


@BOTH
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_compiled_steps_equal_the_librarys_whatever_the_neighbours(kind, form):
    model, _ = tiny_model(kind)
    model = rounded(model) if form == "int8" else model
    decoder = LeanDecoder(model, 200)
    step = make_step(form, decoder)
    assert not isinstance(step, TorchStep)
    generator = torch.Generator().manual_seed(2)
    ids_T = torch.randint(3, 200, (30,), generator=generator)
    expected = model(input_ids=ids_T[None]).logits[0]
    for others in range(7):
        batch = step.batch()
        for at in range(others + 1):
            length = 20 if at == others else int(torch.randint(1, 90, (1,), generator=generator))
            row = RowCache(decoder.shape, length, decoder.dtype)
            feed(decoder, row, ids_T[:20] if at == others else torch.randint(3, 200, (length,)))
            batch.join(row, length + 10)
        for at in range(20, 30):
            ids = torch.cat([torch.randint(3, 200, (others,)), ids_T[at : at + 1]])
            assert torch.allclose(step.logits(ids, batch)[-1].float(), expected[at], atol=2e-3)


@torch.inference_mode()
def test_int8_gives_a_line_the_same_numbers_in_any_company():
    model, _ = tiny_model("llama")
    decoder = LeanDecoder(model.to(torch.bfloat16), 200)
    step, ids_T, found = make_step("int8", decoder), torch.randint(3, 200, (33,)), []
    for lines in range(1, 9):
        batch = step.batch()
        for _ in range(lines):
            row = RowCache(decoder.shape, 40, torch.bfloat16)
            feed(decoder, row, ids_T)
            batch.join(row, 50)
        found.append(step.logits(torch.arange(7, 7 + lines).flip(0), batch)[-1].clone())
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_compiled_steps_in_bfloat16_are_as_near_to_float32_as_the_librarys(form):
    model, _ = tiny_model("qwen2")
    model = rounded(model) if form == "int8" else model
    ids_T = torch.randint(3, 200, (40,), generator=torch.Generator().manual_seed(3))
    exact = model(input_ids=ids_T[None]).logits[0, -1]
    half = model.to(torch.bfloat16)
    library = half(input_ids=ids_T[None]).logits[0, -1].float()
    decoder = LeanDecoder(half, 60)
    row = RowCache(decoder.shape, 39, torch.bfloat16)
    feed(decoder, row, ids_T[:39])
    step = make_step(form, decoder)
    batch = step.batch()
    batch.join(row, 41)
    found = step.logits(ids_T[39:], batch)[0].float()
    assert (found - exact).abs().mean() < 2 * (library - exact).abs().mean() + 1e-3


@pytest.mark.parametrize("head_dim", [8, 16])  # tensor operators, and compiled loops
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_lines_behind_a_shared_beginning_are_what_they_are_alone_and_leave_it_as_it_is(
    form, head_dim
):
    model, _ = tiny_model("llama", head_dim=head_dim)
    decoder = LeanDecoder(model, 200)
    step = make_step("whole" if head_dim == 8 else form, decoder)
    generator = torch.Generator().manual_seed(4)
    begun_T = torch.randint(3, 200, (21,), generator=generator)
    first = RowCache(decoder.shape, 21, decoder.dtype)
    feed(decoder, first, begun_T)
    before = first.data.clone()
    sharing, alone = step.batch(), step.batch()
    for length in (30, 1, 17):
        tail_T = torch.randint(3, 200, (length,), generator=generator)
        row = RowCache(decoder.shape, length, decoder.dtype, behind=first.data)
        feed(decoder, row, tail_T)
        sharing.join(row, row.length + 9)
        whole = RowCache(decoder.shape, 21 + length, decoder.dtype)
        feed(decoder, whole, torch.cat([begun_T, tail_T]))
        alone.join(whole, whole.length + 9)
    for _ in range(9):
        ids = torch.randint(3, 200, (3,), generator=generator)
        found, expected = step.logits(ids, sharing).clone(), step.logits(ids, alone)
        assert torch.allclose(found, expected, atol=1e-3)
    assert torch.equal(first.data, before)


@pytest.mark.parametrize(
    ("form", "head_dim"), [("whole", 8), *((form, 16) for form in FORMS)]
)  # a width of 8: tensor operators
@pytest.mark.parametrize("lines", [0, 1, 3])
@torch.inference_mode()
def test_what_enters_is_read_along_with_a_step_as_it_would_be_alone(lines, form, head_dim):
    model, _ = tiny_model("qwen2", head_dim=head_dim)
    model = rounded(model) if form == "int8" else model
    decoder = LeanDecoder(model, 200)
    step = make_step(form, decoder)
    ids_T = torch.randint(3, 200, (40,), generator=torch.Generator().manual_seed(5))
    expected = model(input_ids=ids_T[None]).logits[0]
    begun = RowCache(decoder.shape, 10, decoder.dtype)
    feed(decoder, begun, ids_T[:10])
    batch = step.batch()
    for _ in range(lines):
        row = RowCache(decoder.shape, 20, decoder.dtype, behind=begun.data)
        feed(decoder, row, ids_T[10:30])
        batch.join(row, 40)
    entries = []
    for start, end in ((25, 32), (10, 11)):
        row = RowCache(decoder.shape, end - 10, decoder.dtype, behind=begun.data)
        if start > 10:
            feed(decoder, row, ids_T[10:start])
        entries.append(Entry(row, ids_T[start:end].tolist()))
    found = step.logits(ids_T[30:31].repeat(lines), batch, entries).float()
    assert len(found) == lines + 2
    assert torch.allclose(found[:lines], expected[30].expand(lines, -1), atol=2e-3)
    assert torch.allclose(found[lines], expected[31], atol=2e-3)
    assert torch.allclose(found[lines + 1], expected[10], atol=2e-3)
    assert batch.lengths == [31] * lines
    assert [one.row.length for one in entries] == [32, 11]


@torch.inference_mode()
def test_line_without_room_for_a_token_is_refused_before_anything_is_written():
    model, _ = tiny_model("llama")
    decoder = LeanDecoder(model, 200)
    step, row = make_step("int8", decoder), RowCache(decoder.shape, 5, decoder.dtype)
    feed(decoder, row, torch.randint(3, 200, (5,)))
    batch = step.batch()
    batch.join(row, 6)
    step.logits(torch.tensor([7]), batch)
    with pytest.raises(IndexError, match="no room"):
        step.logits(torch.tensor([7]), batch)
    assert batch.lengths == [6]


@pytest.fixture
def units() -> Any:
    """Return the compiled loops where this processor has matrix units for int8."""
    loops = pytest.importorskip("engine.serving.loops")
    if not loops.have_tiles():
        pytest.skip("this processor has no matrix units for int8")
    return loops


def room_behind(lines: np.ndarray, loops: Any) -> np.ndarray:
    """Return lines with as many behind them as the loops may read."""
    return np.concatenate([lines, np.zeros((loops.LINES, lines.shape[1]), lines.dtype)])


@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5, 6, 7, 8, 16, 33, 300])
@pytest.mark.parametrize(("first", "last"), [(0, 200), (16, 199), (192, 198)])
@pytest.mark.parametrize(("kind", "most"), [(np.int8, 127), (np.int16, 2047)])
def test_vectors_add_up_whole_numbers_for_any_number_of_lines(kind, most, lines, first, last):
    loops = pytest.importorskip("engine.serving.loops")
    draw = np.random.default_rng(lines)
    whole_NK = draw.integers(-most, most + 1, (200, 192)).astype(kind)
    size, chunk = (1300, 96) if kind is np.int8 else (5463, 40)
    int16_BK = draw.integers(-size, size + 1, (lines, 192)).astype(np.int16)
    scale_N, scale_B = draw.random(200).astype(np.float32), draw.random(lines).astype(np.float32)
    found = np.full((lines, 200), np.nan, np.float32)
    held, panels = room_behind(int16_BK, loops), loops.as_panels(whole_NK)
    loops._multiply_panels(panels, scale_N, first, last, held, scale_B, chunk, found)
    exact = int16_BK.astype(np.int64) @ whole_NK.T.astype(np.int64)
    expected = exact * scale_N.astype(np.float64) * scale_B[:, None]
    error = np.abs(found - expected)[:, first:last].max()
    assert error <= 1e-6 * np.abs(expected).max()
    assert np.isnan(found[:, :first]).all()
    assert np.isnan(found[:, last:]).all()


def test_the_largest_whole_numbers_of_a_product_fit_their_sums():
    loops = pytest.importorskip("engine.serving.loops")
    most, size, width = loops.MATRIX_MOST, loops._LINE_MOST, 640
    whole_NK = np.full((16, width), most, np.int16)
    held = np.full((1 + loops.LINES, width), size, np.int16)
    found, one = np.empty((1, 16), np.float32), np.ones(16, np.float32)
    panels = loops.as_panels(whole_NK)
    loops._multiply_panels(panels, one, 0, 16, held, one[:1], loops._PAIRS, found)
    assert np.allclose(found, float(most) * size * width, rtol=1e-6)
    whole_NK, room = np.full((16, width), 127, np.int8), loops._room(width)
    held[:] = room
    loops._multiply_panels(loops.as_panels(whole_NK), one, 0, 16, held, one[:1], 320, found)
    assert np.allclose(found, 127.0 * room * width, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 8, 130])
@pytest.mark.parametrize("biased", [False, True])
def test_int16_product_is_near_the_exact_one_and_a_row_hangs_on_itself_alone(rows, biased):
    pytest.importorskip("engine.serving.loops")
    draw = torch.Generator().manual_seed(rows)
    weight_NK = torch.randn(70, 90, generator=draw)
    bias_N = torch.randn(70, generator=draw) if biased else None
    fed = torch.randn(rows, 90, generator=draw)
    fed[0, 0] = 300.0  # an outlier, as hidden states have them
    multiply = int16_product(weight_NK, bias_N)
    found = multiply(fed)
    exact = F.linear(fed.double(), weight_NK.double(), None if bias_N is None else bias_N.double())
    in_bfloat16 = F.linear(fed.bfloat16(), weight_NK.bfloat16()).double()
    if biased:
        in_bfloat16 += bias_N
    assert found.dtype is torch.float32
    assert (found - exact).square().mean() < 0.3 * (in_bfloat16 - exact).square().mean()
    assert torch.equal(torch.cat([multiply(fed[at : at + 1]) for at in range(rows)]), found)
    assert torch.equal(multiply(fed.t().contiguous().t()), found)  # other strides


def test_what_is_not_finite_stays_so_in_an_int16_product():
    pytest.importorskip("engine.serving.loops")
    fed = torch.ones(2, 32)
    fed[0, 3] = float("nan")
    found = int16_product(torch.eye(32), None)(fed)
    assert not torch.isfinite(found[0]).any()
    assert torch.allclose(found[1], torch.ones(32), atol=1e-3)


@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5, 16, 17, 33])
@pytest.mark.parametrize("first", [0, 16])
def test_matrix_units_and_vectors_add_up_the_same_whole_numbers(units, lines, first):
    draw = np.random.default_rng(lines)
    rows, width = 200, 192
    whole_NK = draw.integers(-127, 128, (rows, width)).astype(np.int8)
    x_BK = draw.normal(size=(lines, width - 13)).astype(np.float32)
    x_BK[0, 0] = 40.0  # an outlier, as hidden states have them
    scale_N, scale_B = draw.random(rows).astype(np.float32), np.empty((2, lines), np.float32)
    int16_BK = np.zeros((lines, width), np.int16)
    bytes_2BK = np.empty((2, lines, width), np.int8)
    units._quantise_rows(x_BK, int16_BK, scale_B[0])
    units._quantise_tiles(x_BK, bytes_2BK, scale_B[1])
    again_BK = bytes_2BK[0].astype(np.int32) * 256 + bytes_2BK[1].view(np.uint8)
    assert np.array_equal(again_BK, int16_BK)
    assert np.array_equal(scale_B[0], scale_B[1])
    found = np.full((2, lines, rows), np.nan, np.float32)
    held, panels = room_behind(int16_BK, units), units.as_panels(whole_NK)
    units._multiply_panels(panels, scale_N, first, rows, held, scale_B[0], width // 2, found[0])
    tiles = units.as_tiles(whole_NK)
    units._multiply_tiles(tiles, scale_N, first, rows, bytes_2BK, scale_B[1], found[1])
    exact = int16_BK.astype(np.int64) @ whole_NK.T.astype(np.int64)
    expected = exact * scale_N.astype(np.float64) * scale_B[0][:, None]
    for one in found:
        assert np.isnan(one[:, :first]).all()
        assert np.allclose(one[:, first:], expected[:, first:], rtol=1e-6)


@BOTH
@pytest.mark.parametrize("tiles", [False, True])
@torch.inference_mode()
def test_int8_by_either_means_equals_the_librarys_for_any_number_of_lines(kind, tiles, units):
    model = rounded(tiny_model(kind)[0])
    decoder = LeanDecoder(model, 200)
    assert decoder.compiled is not None
    step = Int8Step(decoder, decoder.compiled, tiles=tiles)
    ids_T = torch.randint(3, 200, (19,), generator=torch.Generator().manual_seed(6))
    expected = model(input_ids=ids_T[None]).logits[0]
    for lines in (1, 4, 5, 16, 33):
        batch = step.batch()
        for at in range(lines):
            row = RowCache(decoder.shape, 30, decoder.dtype)
            feed(decoder, row, ids_T[: 1 + at % 18])
            batch.join(row, 30)
        ends = [1 + at % 18 for at in range(lines)]
        found = step.logits(ids_T[ends], batch)
        assert torch.allclose(found, expected[ends], atol=2e-3)


def test_int8_matrices_are_near_and_their_scales_are_a_row_each():
    weight = torch.randn(96, 64)
    whole_NK, scale_N = quantise_rows([weight[:32], weight[32:]])
    assert whole_NK.dtype is torch.int8
    near = whole_NK * scale_N[:, None]
    assert (near - weight).abs().max() <= scale_N.max() / 2 + 1e-6


def test_heads_of_an_odd_width_are_served_by_tensor_operators():
    model, _ = tiny_model("llama", head_dim=8)
    decoder = LeanDecoder(model, 60)
    assert decoder.compiled is None
    assert isinstance(make_step("whole", decoder), TorchStep)
    with pytest.raises(ValueError, match="int8 needs"):
        make_step("int8", decoder)


def test_joined_matrices_hold_no_weight_twice():
    model, _ = tiny_model("qwen2")
    before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    gather_weights(model)
    attention = model.model.layers[0].self_attn
    stores = {
        module.weight.untyped_storage().data_ptr()
        for module in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    assert len(stores) == 1
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


def test_models_that_it_cannot_stand_in_for_are_told_apart():
    model, _ = tiny_model("qwen2")
    assert why_not_lean(model) is None
    model.config.use_sliding_window = True
    assert why_not_lean(model) == "a sliding window"


# --- kept prompt beginnings ----------------------------------------------------------------------


def stored(tokens: int, fill: float = 1.0) -> torch.Tensor:
    return torch.full((1, 2, 1, tokens, 4), fill)


def kept_tokens(found: Found) -> int:
    return sum(int(part.shape[3]) for part in (found.shared, found.own) if part is not None)


def test_least_recently_used_beginning_goes_first_and_the_limit_holds():
    each = stored(10).numel() * 4
    cache = PromptCache(2 * each)
    cache.keep_shared((1, 2), stored(10))
    cache.keep_shared((3, 4), stored(10))
    assert kept_tokens(cache.find((1, 2), (9,), "", most=0)) == 10
    cache.keep_shared((5, 6), stored(10))
    assert cache.bytes <= cache.limit_bytes
    assert kept_tokens(cache.find((3, 4), (9,), "", most=0)) == 0
    assert kept_tokens(cache.find((1, 2), (9,), "", most=0)) == 10


def test_limit_of_nothing_keeps_nothing():
    cache = PromptCache(0)
    cache.keep_shared((1, 2), stored(2))
    assert len(cache) == 0


def test_sessions_find_their_own_last_turn_and_no_other():
    cache = PromptCache(10**6)
    cache.keep_shared((1, 2), stored(2))
    cache.keep_own((1, 2), (7, 8, 9), "a", stored(3, 5.0))
    found = cache.find((1, 2), (7, 8, 4, 0), "a", most=3)
    assert kept_tokens(found) == 4
    assert found.shared is not None
    assert found.own is not None
    assert (found.shared.shape[3], found.own.shape[3]) == (2, 2)
    assert kept_tokens(cache.find((1, 2), (7, 8, 9, 0), "a", most=1)) == 3
    assert kept_tokens(cache.find((1, 2), (7, 8, 9, 0), "a", most=3, grain=2)) == 4
    assert kept_tokens(cache.find((1, 2), (7, 8, 9, 0), "b", most=3)) == 2
    assert kept_tokens(cache.find((1, 3), (7, 8, 9, 0), "a", most=3)) == 0


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_length_is_the_longest_common_beginning(a, b):
    length = common_length(a, b)
    assert a[:length] == b[:length]
    assert length in (len(a), len(b)) or a[length] != b[length]


@BOTH
@pytest.mark.parametrize("layer", [2, FINAL_NORM])
def test_kept_beginnings_change_neither_heads_nor_line_at_any_split(kind, layer, host):
    model = tiny_language_model(kind, layer=layer)
    expected_job = job_of(model, 1, prefix=0, sampling=GREEDY)
    expected = model.prefill(expected_job.ids)
    line = plain(list(run_job(model, expected_job)))
    for prefix in (1, 15, 16, 17, 40, len(expected_job.ids) - 1):
        one = host(model)
        for _ in range(2):  # the second time from what was kept
            job = replace(expected_job, prefix=prefix, session="same")
            events = list(one.run(job))
            state = events[0]
            assert isinstance(state, StateKnown)
            for flag, value in state.reading.probabilities.items():
                assert value == pytest.approx(expected.reading.probabilities[flag], abs=1e-4)
            assert plain(events)[1:] == line[1:]
        assert one.prompts.hits == 1


def test_turns_never_change_a_shared_beginning(host):
    one = host()
    list(one.run(job_of(one.model, 1)))

    def digest() -> list[str]:
        return [
            hashlib.sha256(entry.stored.numpy().tobytes()).hexdigest()
            for key, entry in one.prompts._entries.items()
            if key[0] == "shared"
        ]

    before = digest()
    assert len(before) == 1
    for seed in range(2, 8):
        list(one.run(job_of(one.model, seed)))
    assert digest() == before


def test_kept_beginning_is_not_read_again(host, monkeypatch):
    one = host(slice=8)
    fed: list[int] = []
    forward = one.decoder.forward

    def count(ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        fed.append(len(ids))
        return forward(ids, *rest, **options)

    monkeypatch.setattr(one.decoder, "forward", count)
    list(one.run(job_of(one.model, 1, write=False)))
    list(one.run(job_of(one.model, 2, write=False)))
    list(one.run(job_of(one.model, 2, write=False)))
    assert fed == [8, 8, 8, 8, 8, 8, 8, 4, 8, 8, 4, 4]


# --- many turns at once --------------------------------------------------------------------------


def together(one: BatchHost, jobs: list[Job]) -> list[list[Event]]:
    """Run jobs at once, one thread each; return their events."""
    found: dict[int, list[Event]] = {}

    def work(index: int) -> None:
        found[index] = list(one.run(jobs[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return [found[index] for index in range(len(jobs))]


@BOTH
def test_turns_together_are_what_each_is_alone(kind, host):
    model = tiny_language_model(kind)
    jobs = [
        job_of(model, seed, length=45 + 7 * (seed % 5), prefix=40 if seed % 3 else 0)
        for seed in range(12)
    ]
    jobs[3] = replace(jobs[3], sampling=replace(GREEDY, max_new_tokens=40))
    jobs[5] = replace(jobs[5], write=False)
    expected = [plain(list(run_job(model, job))) for job in jobs]
    assert [plain_values(events) for events in together(host(model), jobs)] == expected


def test_prompts_are_read_between_the_steps_of_others(host, monkeypatch):
    one = host(slice=8)
    model, sizes = one.model, list[int]()
    model.stop_ids = frozenset()  # type: ignore[assignment]
    forward = one.decoder.forward

    def note(ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(len(ids))
        return forward(ids, *rest, **options)

    def note_step(*given: Any) -> Any:
        sizes.append(0)
        return step(*given)

    step = one.steps.by_form["whole"].logits
    monkeypatch.setattr(one.decoder, "forward", note)
    monkeypatch.setattr(one.steps.by_form["whole"], "logits", note_step)
    first = one.run(job_of(model, 1, sampling=replace(GREEDY, max_new_tokens=300)))
    next(first)
    next(first)
    list(one.run(job_of(model, 2, prefix=0, length=80, write=False)))
    first.close()  # type: ignore[attr-defined]
    slices = [at for at, size in enumerate(sizes) if size == 8][-9:]
    assert all(later - former >= 2 for former, later in itertools.pairwise(slices))


def test_turn_above_the_limit_is_busy_and_may_come_again(host):
    one = host(queue=1)
    first = one.run(job_of(one.model, 1))
    next(first)
    with pytest.raises(Busy, match="try again") as caught:
        next(one.run(job_of(one.model, 2)))
    assert caught.value.retryable
    list(first)
    assert list(one.run(job_of(one.model, 2)))


@pytest.mark.parametrize("after", [1, 3])
def test_caller_that_goes_away_frees_its_place(host, after):
    one = host()
    one.model.stop_ids = frozenset()
    events = one.run(job_of(one.model, 1, sampling=replace(GREEDY, max_new_tokens=256)))
    for _ in range(after):
        next(events)
    events.close()
    deadline = time.monotonic() + 20
    while (one._writing or one._reading) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert one.load["writing"] == one.load["waiting"] == 0
    assert one._batch.bytes == 0


def test_failing_pass_fails_its_turns_and_no_later_one(host, monkeypatch):
    one = host()
    forward, broken = one.decoder.forward, threading.Event()

    def fail(ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return forward(ids, *rest, **options)

    def fail_step(*given: Any) -> Any:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return step(*given)

    step = one.steps.by_form["whole"].logits
    monkeypatch.setattr(one.decoder, "forward", fail)
    monkeypatch.setattr(one.steps.by_form["whole"], "logits", fail_step)
    one.model.stop_ids = frozenset()
    broken.set()
    with pytest.raises(ModelError, match="read the prompt"):
        list(one.run(job_of(one.model, 1)))
    broken.clear()
    events = one.run(job_of(one.model, 1, sampling=replace(GREEDY, max_new_tokens=200)))
    next(events)
    broken.set()
    with pytest.raises(ModelError):
        list(events)
    broken.clear()
    assert list(one.run(job_of(one.model, 2)))


def test_line_that_is_not_finite_fails_alone(host, monkeypatch):
    one = host()
    logits, count = one.decoder.logits, [0]

    def spoil(hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        values = logits(hidden, **options)
        if len(values) == 2:
            count[0] += 1
            values[0] = float("nan")
        return values

    monkeypatch.setattr(one.decoder, "logits", spoil)
    one.model.stop_ids = frozenset()
    sampling = replace(GREEDY, max_new_tokens=200)
    found: list[Any] = []

    def work(seed: int) -> None:
        try:
            found.append(list(one.run(job_of(one.model, seed, sampling=sampling))))
        except ModelError as exc:
            found.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert count[0] == 1
    assert sorted(isinstance(one, ModelError) for one in found) == [False, True]


def test_prompt_without_a_state_is_refused(host):
    one = host()
    with pytest.raises(ModelError, match="exactly one <STATE>"):
        list(one.run(Job((5, 6), SAMPLING)))


def test_closed_host_ends_what_it_has_and_takes_nothing_more(host):
    one = host()
    events = one.run(job_of(one.model, 1))
    next(events)
    one.close()
    assert isinstance(list(events)[-1], LineDone)
    with pytest.raises(ModelError, match="closed"):
        next(one.run(job_of(one.model, 2)))


def test_thousand_turns_by_32_players_mix_no_lines_and_hold_no_memory(host):
    model = tiny_language_model()
    one = host(model, cache_bytes=2**18)
    rng = random.Random(5)
    jobs = [
        job_of(
            model,
            seed,
            prefix=rng.choice((0, 16, 24)),
            length=rng.randrange(30, 50),
            sampling=replace(SAMPLING, seed=seed, max_new_tokens=rng.randrange(1, 6)),
            session=f"player {seed % 32}",
        )
        for seed in range(40)
    ]
    expected = [plain(list(run_job(model, job))) for job in jobs]
    wrong: list[int] = []

    def play(player: int) -> None:
        order = random.Random(player)
        for _ in range(32):
            index = order.randrange(len(jobs))
            if expected[index] != plain_values(list(one.run(jobs[index]))):
                wrong.append(index)

    threads = [threading.Thread(target=play, args=(player,)) for player in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    assert wrong == []
    assert one.prompts.bytes <= 2**18
    deadline = time.monotonic() + 20
    while one._batch.bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one._batch.bytes == 0
    gc.collect()
    assert sum(type(thing) is RowCache for thing in gc.get_objects()) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 3.0), st.floats(0.05, 1.0), st.integers(1, 6))
def test_a_rows_choice_is_the_same_alone_and_among_others(seed, heat, top_p, others):
    generator = torch.Generator().manual_seed(seed)
    logits_BV = torch.randn(others + 1, 600, generator=generator) * 3
    chosen = replace(SAMPLING, temperature=heat, top_p=top_p, seed=seed)

    def samplers() -> list[Sampler]:
        return [Sampler(replace(chosen, seed=seed + row), [7, 8]) for row in range(others + 1)]

    held = [[1, 2, row] for row in range(others + 1)]
    alone = [
        choose_tokens(logits_BV[row : row + 1], [sampler], [held[row]])[0]
        for row, sampler in enumerate(samplers())
    ]
    assert choose_tokens(logits_BV, samplers(), held) == alone


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
@pytest.mark.parametrize(("heat", "top_p"), [(0.0, 0.9), (0.7, 0.9), (1.5, 1.0), (0.3, 0.01)])
def test_compiled_loops_choose_the_tokens_that_plain_operators_choose(spread, heat, top_p):
    pytest.importorskip("engine.serving.loops")
    draw = torch.Generator().manual_seed(4)
    logits_BV = torch.randn(40, 3001, generator=draw) * spread
    logits_BV[7, 100], logits_BV[9, 5], logits_BV[11, 8] = float("nan"), -torch.inf, torch.inf
    sampling = replace(SAMPLING, temperature=heat, top_p=top_p)
    suppressed = [*range(3), *logits_BV[20].topk(5).indices.tolist()]
    held = [list(range(row, row + 9)) for row in range(40)]

    def samplers() -> list[Sampler]:
        return [Sampler(replace(sampling, seed=row), suppressed) for row in range(40)]

    found = choose_tokens(logits_BV, samplers(), held)
    assert found == choose_plainly(logits_BV.clone(), samplers(), held)
    assert [row for row, token in enumerate(found) if token is None] == [7, 9, 11]
    assert not set(suppressed) & set(found)


# --- which weights decode ------------------------------------------------------------------------


def test_neighbouring_sizes_of_one_form_are_one():
    pairs = [(1, "int8"), (2, "int8"), (4, "int8"), (8, "whole"), (16, "whole")]
    assert joined(pairs) == ((4, "int8"), (0, "whole"))
    assert joined([(1, "whole")]) == ((0, "whole"),)


def test_the_number_of_lines_says_which_form_decodes():
    steps = make_steps(LeanDecoder(tiny_model("llama")[0], 60), ((2, "int8"), (0, "whole")))
    assert [steps.form(lines) for lines in (1, 2, 3, 16)] == ["int8", "int8", "whole", "whole"]


def test_choice_is_measured_once_and_then_remembered(tmp_path, monkeypatch):
    model, _ = tiny_model("llama")
    decoder = LeanDecoder(model.to(torch.bfloat16), 600)
    file = tmp_path / "deep" / "tuning.json"
    first = choose_steps(decoder, most=4, remembered=file)
    assert first.forms[-1][0] == 0
    assert set(first.by_form) == {form for _, form in first.forms}
    monkeypatch.setattr("engine.serving.tuning._measured", lambda *_: pytest.fail("measured"))
    assert choose_steps(decoder, most=4, remembered=file).forms == first.forms


@pytest.mark.parametrize("damage", ["", "[]", '{"x": 1', "null"])
def test_damaged_memory_of_the_choice_is_measured_anew(tmp_path, damage):
    model, _ = tiny_model("llama")
    decoder = LeanDecoder(model.to(torch.bfloat16), 600)
    file = tmp_path / "tuning.json"
    file.write_text(damage)
    assert choose_steps(decoder, most=2, remembered=file).forms


def test_form_can_be_asked_for_and_an_unknown_one_is_refused():
    model, _ = tiny_model("llama")
    decoder = LeanDecoder(model.to(torch.bfloat16), 600)
    assert choose_steps(decoder, "int8").forms == ((0, "int8"),)
    with pytest.raises(ValueError, match="auto, whole"):
        choose_steps(decoder, "int3")


def test_without_compiled_loops_whole_weights_serve(monkeypatch):
    model, _ = tiny_model("llama", head_dim=8)
    assert choose_steps(LeanDecoder(model, 600), most=2).forms == ((0, "whole"),)


def test_words_arrive_as_they_are_written_and_end_whole(host):
    one = host()
    events = list(one.run(job_of(one.model, 5, sampling=replace(SAMPLING, max_new_tokens=30))))
    assert isinstance(events[0], StateKnown)
    grown = [event.text for event in events if isinstance(event, LineSoFar)]
    assert "�" not in "".join(grown)
    assert isinstance(events[-1], LineDone)


# --- which host serves ---------------------------------------------------------------------------


def made(model: LanguageModel, **values: Any) -> Any:
    usual = {"queue_limit": 4, "batch": 8, "prefix_cache_mb": 1, "weights": "whole"}
    return make_host(model, **{**usual, **values})


def test_turns_are_batched_where_the_lean_forward_can_stand_in():
    one = made(tiny_language_model())
    assert isinstance(one, BatchHost)
    assert one.limits == BatchLimits(queue=4, batch=8, cache_bytes=2**20)
    one.close()


def pairing(monkeypatch, there=True):
    loops = pytest.importorskip("engine.serving.loops")
    monkeypatch.setattr(loops, "pairs_products", lambda: there)


@BOTH
@torch.inference_mode()
def test_a_prompt_in_int16_is_nearer_to_exact_than_in_bf16_however_it_is_cut(monkeypatch, kind):
    pairing(monkeypatch)
    model = tiny_language_model(kind)
    exact, decoder = make_decoder(model, "float", room=8), make_decoder(model, "int16", room=8)
    ids_T = torch.randint(3, 200, (50,), generator=torch.Generator().manual_seed(2))
    caches = [RowCache(decoder.shape, 50, decoder.dtype) for _ in range(3)]
    expected = feed(exact, caches[0], ids_T)
    whole = feed(decoder, caches[1], ids_T)
    parts = [feed(decoder, caches[2], some) for some in (ids_T[:7], ids_T[7:8], ids_T[8:])]
    half = LeanDecoder(copy.deepcopy(model.model).bfloat16(), 60)
    rough = feed(half, RowCache(half.shape, 50, half.dtype), ids_T)
    *errors, usual = (
        (one - expected).square().mean().sqrt() for one in (whole, torch.cat(parts), rough.float())
    )
    assert 0 < max(errors) < usual / 2


@pytest.mark.usefixtures("one_thread")
def test_a_choice_of_forms_is_remembered_for_the_products_that_it_was_measured_with(
    monkeypatch, tmp_path
):
    pairing(monkeypatch)
    model, kept = tiny_language_model(), tmp_path / "tuning.json"
    for products in ("float", "int16"):
        choose_steps(make_decoder(model, products, room=600), most=1, remembered=kept)
    floats, wholes = json.loads(kept.read_text())
    assert floats != wholes
    exact, whole = (gather_weights(model.model, int16=int16) for int16 in (False, True))
    assert whole.bytes * 2 == exact.bytes


def test_products_are_whole_numbers_where_they_pay(monkeypatch):
    pairing(monkeypatch)
    model = tiny_language_model()
    taken = []
    monkeypatch.setattr("engine.serving.start.LeanDecoder", lambda *_, int16: taken.append(int16))
    for products in ("auto", "float", "int16"):
        make_decoder(model, products)
    assert taken == [True, False, True]
    monkeypatch.setattr("engine.serving.start._SMALL", 10)
    make_decoder(model)
    assert taken[-1] is False
    with pytest.raises(ValueError, match="auto, float or int16"):
        make_decoder(model, "int4")
    pairing(monkeypatch, there=False)
    make_decoder(model)
    assert taken[-1] is False
    with pytest.raises(ValueError, match="AVX2"):
        make_decoder(model, "int16")


@pytest.mark.parametrize(
    ("form", "head_dim"), [("whole", 8), *((form, 16) for form in FORMS)]
)  # a width of 8: tensor operators
def test_what_a_first_turn_calls_is_called_at_the_start(monkeypatch, form, head_dim):
    chosen = []

    def choose(logits_BV, samplers, generated):
        chosen.append(len(logits_BV))
        return choose_tokens(logits_BV, samplers, generated)

    monkeypatch.setattr("engine.serving.start.choose_tokens", choose)
    decoder = LeanDecoder(tiny_model("qwen2", head_dim=head_dim)[0], 60)
    warm_up(decoder, make_steps(decoder, ((0, form),)))
    assert chosen == [1, 2]
    made(tiny_language_model(), weights=form).close()
    assert chosen == [1, 2] * 2


def test_a_lent_gpu_takes_one_turn_a_call_by_the_same_path(monkeypatch):
    monkeypatch.setattr("engine.serving.start.lent_per_call", lambda: True)
    model = tiny_language_model()
    one = made(model)
    assert isinstance(one, ModelHost)
    job = job_of(model, 1)
    assert plain(list(run_job(model, job))) == plain_values(list(one.run(job)))


def test_one_turn_at_a_time_can_be_asked_for():
    assert isinstance(made(tiny_language_model(), batch=1), ModelHost)


def test_other_architectures_are_served_by_the_librarys_forward():
    model = tiny_language_model()
    model.model.config.use_sliding_window = True
    assert isinstance(made(model), ModelHost)
