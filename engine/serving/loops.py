"""The inner loops of a decoding step, compiled for this processor by Numba.

A step of a small model is hundreds of tensor operators of a few microseconds' work each, and starting
them takes longer than the work. Here the same arithmetic stands in a handful of loops. Activations are
float32; keys, values and what a matrix product takes and gives may be bfloat16, whose bits are passed
as uint16 for want of such a type in NumPy. `parts` says into how many pieces a parallel loop is cut.

All of it in one file on purpose: Numba keeps what it compiled by file, and does not see that a loop
which was compiled into another has changed elsewhere.

Suffixes name axes, as everywhere: B lines, H hidden, N outputs of query-key-value, Q query heads by
width, J twice the MLP's inner width I, T tokens, D width of a head, V vocabulary. Knows nothing of
models.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import carray, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

Array = npt.NDArray[Any]

# Rows below which starting threads takes longer than they save.
_FEW = 8

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _loop(function: _Function) -> _Function:
    """Compile at the first call; what was compiled is kept on disk."""
    made: Any = njit(fastmath=True, nogil=True, cache=True, error_model="numpy")(function)
    return cast(_Function, made)


def _parallel(function: _Function) -> _Function:
    """The same, with `prange` over threads."""
    options: dict[str, Any] = {"fastmath": True, "nogil": True, "cache": True}
    made: Any = njit(parallel=True, error_model="numpy", **options)(function)
    return cast(_Function, made)


def _instruction(function: Callable[..., Any]) -> Any:
    """Take what `function` builds for a call of it: (signature, a builder of instructions)."""
    return intrinsic(function)


def _form_of(stand_in: Callable[..., Any]) -> Callable[[Any], Any]:
    """Let a function choose, by the types of a call of `stand_in`, what is compiled for it."""
    return cast(Callable[[Any], Any], overload(stand_in, strict=False))


class Matrix(NamedTuple):
    """Rows of int8, each with its scale, (N,); of all L layers one behind the other, (L, N).

    The rows lie as `as_panels` lays them out, (N / 16, K / 2, 32), or for matrix units as `as_tiles`
    does, (N / 16, K / 64, 1024).
    """

    whole: Array
    scale: Array


class Layers(NamedTuple):
    """What L layers multiply by, one behind the other; `bias` is added to query-key-value."""

    attention_norm: Array
    query_key_value: Matrix
    bias: Array
    output: Matrix
    mlp_norm: Array
    gate_up: Matrix
    down: Matrix


class Places(NamedTuple):
    """Where each line's keys and values lie, and where it stands.

    `address` and `room` are (B, 2): of the shared beginning, then of the line's own part, each laid out
    as (L, 2, kv heads, room, D); an address is a number of bytes. `border` and `lengths`, (B,), are the
    tokens of the beginning and of all so far. `cos` and `sin` are the rotary tables, (T, D).
    """

    address: Array
    room: Array
    border: Array
    lengths: Array
    cos: Array
    sin: Array


class Scratch(NamedTuple):
    """What a step writes on its way, B rows each.

    `floats` are normed (H), joined (N), read (Q), gate-up (J), inner (I), added (H) and scores (a row
    each line and head); `wholes` the same as whole numbers for H, Q and I, padded: int16, or for matrix
    units their upper and lower bytes, (2, B, ·); `scale` is theirs, (B,).
    """

    floats: tuple[Array, Array, Array, Array, Array, Array, Array]
    wholes: tuple[Array, Array, Array]
    scale: Array


@_instruction
def _load(_typing: Any, value: Any) -> Any:
    """float32 of a float32, or of bfloat16's bits, which are the upper half of a float32's."""
    if value == types.float32:
        return types.float32(types.float32), lambda _c, _b, _s, args: args[0]

    def widen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(args[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.uint16), widen


@_instruction
def _pack(_typing: Any, value: Any, like: Any) -> Any:
    """The reverse, in the type of `like`: to the nearest, ties to even."""
    if like == types.float32:
        return types.float32(value, like), lambda _c, _b, _s, args: args[0]

    def narrow(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        half = builder.add(odd, ir.Constant(word, 0x7FFF))
        upper = builder.lshr(builder.add(bits, half), ir.Constant(word, 16))
        return builder.trunc(upper, ir.IntType(16))

    return types.uint16(types.float32, types.uint16), narrow


@_instruction
def _power_of_two(_typing: Any, exponent: Any) -> Any:
    """2 to a whole power from -126 to 127, by writing a float32's exponent."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.add(args[0], ir.Constant(word, 127)), ir.Constant(word, 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), build


@_instruction
def _float_of(_typing: Any, bits: Any) -> Any:
    """The float32 that has these bits."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), build


# All bits of a float32 but its sign.
_SIZE = np.int32(0x7FFFFFFF)


@_loop
def _largest_size(x_K: Array) -> Any:
    """Return the largest absolute value.

    As whole numbers, which float32 are ordered like: a maximum of floats is not vectorised, since it
    would have to say what a NaN is, and takes ten times as long.
    """
    bits_K = x_K.view(np.int32)
    largest = np.int32(0)
    for k in range(bits_K.shape[0]):
        largest = max(largest, np.int32(bits_K[k] & _SIZE))
    return _float_of(largest)


@_loop
def _largest(x_K: Array) -> Any:
    """Return the largest value; see `_largest_size`. Negative ones are ordered the other way round."""
    bits_K = x_K.view(np.int32)
    largest = np.int32(-0x7FFFFFFF)
    for k in range(bits_K.shape[0]):
        largest = max(largest, np.int32(bits_K[k] ^ (np.int32(bits_K[k] >> 31) & _SIZE)))
    return _float_of(np.int32(largest ^ (np.int32(largest >> 31) & _SIZE)))


@_loop
def _exp(x: Any) -> Any:
    """E to the x within 2e-7 of it, without a call, so that a loop over it is vectorised."""
    scaled = min(max(x * np.float32(1.4426950408889634), np.float32(-126)), np.float32(126))
    whole = np.floor(scaled)
    # 2**f on 0..1: the series of exp(f · ln 2), its last terms bent for the least greatest error.
    f = (scaled - whole) * np.float32(0.6931471805599453)
    series = np.float32(0.00019841270)
    series = series * f + np.float32(0.0013888889)
    series = series * f + np.float32(0.0083333333)
    series = series * f + np.float32(0.041666668)
    series = series * f + np.float32(0.16666667)
    series = series * f + np.float32(0.5)
    series = series * f + np.float32(1)
    series = series * f + np.float32(1)
    return series * _power_of_two(np.int32(whole))


# --- choosing tokens -----------------------------------------------------------------------------

# Tokens of at most so small a share of the likeliest one's probability are left out of a nucleus first.
# The last one is just above what `_exp` makes of tokens that are never to be chosen.
_LAST_FLOOR = np.float32(1e-37)
_FLOORS = (np.float32(1e-2), np.float32(1e-4), _LAST_FLOOR)
_NOT_FINITE = np.int32(0x7F800000)


@_loop
def _is_finite(x_K: Array) -> bool:
    """Tell whether all numbers are; by their bits, since these loops are compiled as if all were."""
    bits_K = x_K.view(np.int32)
    largest = np.int32(0)
    for k in range(bits_K.shape[0]):
        largest = max(largest, np.int32(bits_K[k] & _SIZE))
    return bool(largest < _NOT_FINITE)


@_loop
def _likely(weight_V: Array, floor: Any, most: int, likely_L: Array) -> int:
    """Write which tokens weigh more than `floor`, the first `most`; return how many there are."""
    found = 0
    for start in range(0, weight_V.shape[0], 64):
        some = weight_V[start : start + 64]
        if _largest_size(some) > floor:
            for k in range(some.shape[0]):
                if some[k] > floor:
                    if found < most:
                        likely_L[found] = start + k
                    found += 1
    return found


@_loop
def _total(weight_V: Array) -> Any:
    """Return the sum: in float32 of a few, of those in float64."""
    total = np.float64(0)
    for start in range(0, weight_V.shape[0], 64):
        some, part = weight_V[start : start + 64], np.float32(0)
        for k in range(some.shape[0]):
            part += some[k]
        total += np.float64(part)
    return total


@_loop
def _draw(scores_V: Array, heat: Any, top_p: Any, chance: Any) -> int:
    """Draw from the nucleus by inverting the distribution; the scores become weights."""
    best = _largest(scores_V)
    heat = np.float32(1) / heat
    for k in range(scores_V.shape[0]):
        scores_V[k] = _exp((scores_V[k] - best) * heat)
    wanted = top_p * _total(scores_V)
    # Sorting the vocabulary takes longer than a small model's step; few nuclei need it.
    likely_L = np.empty(1024, np.int64)
    for floor in _FLOORS:
        count = _likely(scores_V, floor, len(likely_L), likely_L)
        if count > len(likely_L):
            likely_L = np.empty(count, np.int64)
            _likely(scores_V, floor, count, likely_L)
        weights_L = scores_V[likely_L[:count]]
        held = np.float64(0)
        for k in range(count):
            held += np.float64(weights_L[k])
        if held >= wanted or floor == _LAST_FLOOR:
            break
    order_L = np.argsort(-weights_L, kind="mergesort")  # of equals the first one first
    reached, size = np.float64(0), 0
    while size < count:
        reached += np.float64(weights_L[order_L[size]])
        size += 1
        if reached >= wanted:
            break
    mass, passed = reached * chance, np.float64(0)
    for k in range(size):
        passed += np.float64(weights_L[order_L[k]])
        if passed > mass:
            return int(likely_L[order_L[k]])
    return int(likely_L[order_L[size - 1]])


@_loop
def finite_rows(scores_BV: Array, finite_B: Array) -> None:
    """Write which rows hold finite numbers alone."""
    for b in range(len(finite_B)):
        finite_B[b] = _is_finite(scores_BV[b])


@_loop
def draw_some(
    scores_BV: Array,
    heat_B: Array,
    top_p_B: Array,
    chance_B: Array,
    tokens_B: Array,
    first: int,
    last: int,
) -> None:
    """See `draw_tokens`; for some of the rows, in the thread that calls."""
    for b in range(first, last):
        if tokens_B[b] >= 0:
            if heat_B[b] > np.float32(0):
                tokens_B[b] = _draw(scores_BV[b], heat_B[b], top_p_B[b], chance_B[b])
            else:
                tokens_B[b] = np.argmax(scores_BV[b])


@_parallel
def draw_tokens(
    scores_BV: Array,
    heat_B: Array,
    top_p_B: Array,
    chance_B: Array,
    tokens_B: Array,
    parts: int,
) -> None:
    """Write a token for each row of scores: the likeliest one, or one drawn from the nucleus.

    Args:
        scores_BV: float32, finite; overwritten.
        heat_B: temperatures, float32; at 0 the likeliest one is taken.
        top_p_B: what share of the probability a nucleus holds.
        chance_B: a number from 0 to 1 a row, the only thing that is random.
        tokens_B: is written; rows of less than 0 are left out.
        parts: pieces of a parallel loop.
    """
    count = len(tokens_B)
    for part in prange(parts):
        first, last = part * count // parts, (part + 1) * count // parts
        draw_some(scores_BV, heat_B, top_p_B, chance_B, tokens_B, first, last)


# --- one line after the other --------------------------------------------------------------------


@_loop
def _norm(x_H: Array, weight_H: Array, eps: Any, out_H: Array) -> None:
    width = x_H.shape[0]
    total = np.float32(0)
    for k in range(width):
        total += x_H[k] * x_H[k]
    factor = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
    for k in range(width):
        out_H[k] = _pack(x_H[k] * factor * weight_H[k], out_H[k])


@_loop
def _add_and_norm_some(
    hidden_NH: Array,
    added_NH: Array,
    weight_H: Array,
    eps: Any,
    out_NH: Array,
    first: int,
    last: int,
) -> None:
    for n in range(first, last):
        hidden_H, added_H = hidden_NH[n], added_NH[n]
        for k in range(hidden_H.shape[0]):
            hidden_H[k] += _load(added_H[k])
        _norm(hidden_H, weight_H, eps, out_NH[n])


@_parallel
def add_and_norm(
    hidden_NH: Array, added_NH: Array, weight_H: Array, eps: Any, out_NH: Array, parts: int
) -> None:
    """Add a layer's part to the hidden states in place, and write their norm."""
    count = hidden_NH.shape[0]
    if count < _FEW:
        _add_and_norm_some(hidden_NH, added_NH, weight_H, eps, out_NH, 0, count)
    else:
        for part in prange(parts):
            first, last = part * count // parts, (part + 1) * count // parts
            _add_and_norm_some(hidden_NH, added_NH, weight_H, eps, out_NH, first, last)


@_loop
def _turn(x_D: Array, cos_D: Array, sin_D: Array, out_D: Array) -> None:
    """Rotate a head; the sine's first half is negated. `out_D` is another array, to be vectorised."""
    half = x_D.shape[0] // 2
    lows, highs = x_D[:half], x_D[half:]
    out_lows, out_highs = out_D[:half], out_D[half:]
    for d in range(half):
        out_lows[d] = _pack(_load(lows[d]) * cos_D[d] + _load(highs[d]) * sin_D[d], out_lows[d])
    cos_highs, sin_highs = cos_D[half:], sin_D[half:]
    for d in range(half):
        out_highs[d] = _pack(
            _load(highs[d]) * cos_highs[d] + _load(lows[d]) * sin_highs[d], out_highs[d]
        )


@_loop
def _rotate_some(
    joined_NJ: Array,
    positions_N: Array,
    cos_TD: Array,
    sin_TD: Array,
    heads: int,
    first: int,
    last: int,
) -> None:
    width = cos_TD.shape[1]
    turned_D = np.empty(width, joined_NJ.dtype)
    for n in range(first, last):
        cos_D, sin_D = cos_TD[positions_N[n]], sin_TD[positions_N[n]]
        for head in range(heads):
            head_D = joined_NJ[n, head * width : (head + 1) * width]
            _turn(head_D, cos_D, sin_D, turned_D)
            head_D[:] = turned_D


@_parallel
def rotate(
    joined_NJ: Array, positions_N: Array, cos_TD: Array, sin_TD: Array, heads: int, parts: int
) -> None:
    """Rotate the first `heads` heads of each row in place."""
    count = len(positions_N)
    if count < _FEW:
        _rotate_some(joined_NJ, positions_N, cos_TD, sin_TD, heads, 0, count)
    else:
        for part in prange(parts):
            first, last = part * count // parts, (part + 1) * count // parts
            _rotate_some(joined_NJ, positions_N, cos_TD, sin_TD, heads, first, last)


@_instruction
def _pointer(_typing: Any, address: Any) -> Any:
    """The pointer of an address."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), build


@_loop
def _held(
    places: Places, b: int, which: int, layer: int, kv_heads: int, kv_head: int, like: Array
) -> Any:
    """Return the keys and the values of a line's beginning (0) or own part (1), each (room, D).

    `like` is an array of their type.
    """
    width, room = places.cos.shape[1], places.room[b, which]
    size = room * width * like.itemsize
    keys = places.address[b, which] + (2 * layer * kv_heads + kv_head) * size
    values = keys + kv_heads * size
    return (
        carray(_pointer(keys), (room, width), like.dtype),
        carray(_pointer(values), (room, width), like.dtype),
    )


@_loop
def _keep(
    joined_BN: Array, queries: int, kv_heads: int, layer: int, places: Places, like: Array
) -> None:
    """Rotate the new keys, and put them and the new values behind each line's own."""
    width = places.cos.shape[1]
    turned_D = np.empty(width, np.float32)
    for b in range(joined_BN.shape[0]):
        at, own = places.lengths[b], places.lengths[b] - places.border[b]
        for head in range(kv_heads):
            start = (queries + head) * width
            key_D = joined_BN[b, start : start + width]
            _turn(key_D, places.cos[at], places.sin[at], turned_D)
            keys_TD, values_TD = _held(places, b, 1, layer, kv_heads, head, like)
            keys_D, values_D = keys_TD[own], values_TD[own]
            start += kv_heads * width
            for d in range(width):
                keys_D[d] = _pack(turned_D[d], keys_D[d])
                values_D[d] = _pack(_load(joined_BN[b, start + d]), keys_D[d])


def _pairing() -> tuple[int, str, str]:
    """Return how many products this processor adds in pairs at once, and by which instruction.

    The second one adds them to a total as well, where there is such a one.
    """
    features = binding.get_host_cpu_features()
    if features.get("avx512bw"):
        fused = "llvm.x86.avx512.vpdpwssd.512" if features.get("avx512vnni") else ""
        return 32, "llvm.x86.avx512.pmaddw.d.512", fused
    if features.get("avx2"):
        return 16, "llvm.x86.avx2.pmadd.wd", ""
    return 8, "", ""


_CHUNK, _PAIRING, _FUSED = _pairing()


# How far ahead memory is fetched, in bytes: a processor's own guess ends at a page, and without this
# a product of one line waits for its matrix a third of the time.
_AHEAD = 4608


def _fetch(builder: Any, there: Any) -> None:
    """Bring nearer what lies `_AHEAD` of a place; it may lie behind an array's end: nothing is read."""
    byte, lane = ir.IntType(8), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), lane, lane, lane])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    start = builder.bitcast(there, byte.as_pointer())
    ahead = builder.gep(start, [ir.Constant(ir.IntType(64), _AHEAD)])
    # To be read, into the second cache, as data.
    builder.call(fetch, [ahead, *(ir.Constant(lane, value) for value in (0, 2, 1))])


# A head's width is a multiple of it.
HEAD_STEP = 16
# Numbers of a head that are read at once: as many as a register of this processor holds.
HEAD_LANES = 8 if _CHUNK == 16 else 16
# Keys that are multiplied at once: a query's numbers are loaded once for all of them.
_TOKENS = 4
# Query heads that share what is read of the keys and values.
_HEADS = 4


def _floats(builder: Any, data: Any, at: Any, kind: Any) -> Any:
    """Load float32 from float32, or from bfloat16's bits."""
    bits = ir.VectorType(ir.IntType(16), HEAD_LANES)
    wide = ir.VectorType(ir.IntType(32), HEAD_LANES)
    floats = ir.VectorType(ir.FloatType(), HEAD_LANES)
    there = builder.gep(data, [at])
    if kind.dtype == types.float32:
        return builder.load(builder.bitcast(there, floats.as_pointer()), align=4)
    held = builder.zext(builder.load(builder.bitcast(there, bits.as_pointer()), align=2), wide)
    return builder.bitcast(builder.shl(held, ir.Constant(wide, [16] * HEAD_LANES)), floats)


def _fused(builder: Any, one: Any, other: Any, total: Any) -> Any:
    floats = ir.VectorType(ir.FloatType(), HEAD_LANES)
    kind = ir.FunctionType(floats, [floats] * 3)
    name = f"llvm.fma.v{HEAD_LANES}f32"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, name), [one, other, total]
    )


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector of the sums of as many vectors as it has lanes.

    Neighbouring lanes of two vectors are added into one, until one is left: a third of the work of
    adding up every vector by itself.
    """
    places = ir.VectorType(ir.IntType(32), HEAD_LANES)
    evens, odds = (
        ir.Constant(places, [2 * lane + at for lane in range(HEAD_LANES)]) for at in (0, 1)
    )
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(
                builder.shuffle_vector(one, other, evens), builder.shuffle_vector(one, other, odds)
            )
            for one, other in pairs
        ]
    return vectors[0]


def _arrays(context: Any, builder: Any, signature: Any, args: Any, which: tuple[int, ...]) -> Any:
    return [context.make_array(signature.args[at])(context, builder, args[at]) for at in which]


def _row_of(builder: Any, array: Any) -> Any:
    """Return how many float32 lie between two rows of an array, which may be a part of wider ones."""
    return builder.udiv(builder.extract_value(array.strides, 0), ir.Constant(ir.IntType(64), 4))


def _scores(heads: int) -> Any:
    """Return a function that writes the products of `heads` queries with every key."""

    @_instruction
    def products(_typing: Any, query_GD: Any, keys_TD: Any, count: Any, scores_GT: Any) -> Any:
        """scores[g, t] = query[g] · keys[t] for t below `count`."""
        del count

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            query, keys, scores = _arrays(context, builder, signature, args, (0, 1, 3))
            word, number = ir.IntType(64), ir.FloatType()
            size = kinds[1].dtype.bitwidth // 8
            floats = ir.VectorType(number, HEAD_LANES)
            width = builder.extract_value(query.shape, 1)
            row = _row_of(builder, scores)
            zeros, lanes = ir.Constant(floats, [0.0] * HEAD_LANES), ir.Constant(word, HEAD_LANES)
            reduce = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(number, [number, floats]),
                f"llvm.vector.reduce.fadd.v{HEAD_LANES}f32",
            )
            totals = [
                [cgutils.alloca_once(builder, floats) for _ in range(HEAD_LANES)]
                for _ in range(heads)
            ]

            def multiply(token: Any, at: int, count: int) -> None:
                """Put each query's products with some tokens' keys, by lane, into totals from `at`."""
                starts = [
                    builder.gep(
                        keys.data, [builder.mul(builder.add(token, ir.Constant(word, more)), width)]
                    )
                    for more in range(count)
                ]
                for own in totals:
                    for total in own[at : at + count]:
                        builder.store(zeros, total)
                with cgutils.for_range(builder, builder.udiv(width, lanes)) as chunk:
                    place = builder.mul(chunk.index, lanes)
                    # The keys lie one behind the other, so a round fetches as much as it reads.
                    ahead = builder.gep(starts[0], [builder.mul(place, ir.Constant(word, count))])
                    for line in range(0, count * HEAD_LANES * size, 64):
                        _fetch(builder, builder.gep(ahead, [ir.Constant(word, line // size)]))
                    held = [_floats(builder, key, place, kinds[1]) for key in starts]
                    for head, own in enumerate(totals):
                        there = builder.add(builder.mul(width, ir.Constant(word, head)), place)
                        asked = _floats(builder, query.data, there, kinds[0])
                        for key, total in zip(held, own[at : at + count], strict=True):
                            builder.store(_fused(builder, asked, key, builder.load(total)), total)

            def place_of(head: int, token: Any) -> Any:
                there = builder.add(builder.mul(row, ir.Constant(word, head)), token)
                return builder.gep(scores.data, [there])

            whole = builder.udiv(args[2], lanes)
            with cgutils.for_range(builder, whole) as block:
                first = builder.mul(block.index, lanes)
                for at in range(0, HEAD_LANES, _TOKENS):
                    multiply(builder.add(first, ir.Constant(word, at)), at, _TOKENS)
                for head, own in enumerate(totals):
                    found = _sums(builder, [builder.load(total) for total in own])
                    place = builder.bitcast(place_of(head, first), floats.as_pointer())
                    builder.store(found, place, align=4)
            done = builder.mul(whole, lanes)
            with cgutils.for_range(builder, builder.sub(args[2], done)) as rest:
                token = builder.add(done, rest.index)
                multiply(token, 0, 1)
                for head, own in enumerate(totals):
                    given = [ir.Constant(number, 0.0), builder.load(own[0])]
                    value = builder.call(reduce, given, fastmath=("fast",))
                    builder.store(value, place_of(head, token))
            return context.get_dummy_value()

        return types.void(query_GD, keys_TD, types.int64, scores_GT), build

    return products


# Parts of a head's width that are summed at once: more sums under way hide each one's wait.
_CHUNKS = 4


def _mixture(heads: int) -> Any:
    """Return a function that adds the sums of all values, weighted for each of `heads` queries."""

    @_instruction
    def sums(_typing: Any, shares_GT: Any, values_TD: Any, count: Any, out_GD: Any) -> Any:
        """out[g] += sum over t below `count` of shares[g, t] · values[t]."""
        del count

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            shares, values, out = _arrays(context, builder, signature, args, (0, 1, 3))
            word, number = ir.IntType(64), ir.FloatType()
            floats = ir.VectorType(number, HEAD_LANES)
            first = ir.Constant(ir.IntType(32), 0)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), HEAD_LANES), [0] * HEAD_LANES)
            width = builder.extract_value(out.shape, 1)
            row = _row_of(builder, shares)
            zeros = ir.Constant(floats, [0.0] * HEAD_LANES)
            totals = [
                [cgutils.alloca_once(builder, floats) for _ in range(_CHUNKS)] for _ in range(heads)
            ]

            def mix(start: Any, chunks: int) -> None:
                """Sum `chunks` parts of the values from the number `start` on."""
                places = [
                    builder.add(start, ir.Constant(word, at * HEAD_LANES)) for at in range(chunks)
                ]
                spots = [
                    [
                        builder.bitcast(
                            builder.gep(
                                out.data,
                                [builder.add(builder.mul(width, ir.Constant(word, head)), place)],
                            ),
                            floats.as_pointer(),
                        )
                        for place in places
                    ]
                    for head in range(heads)
                ]
                for own, there in zip(totals, spots, strict=True):
                    for total, spot in zip(own, there, strict=False):
                        builder.store(builder.load(spot, align=4), total)
                with cgutils.for_range(builder, args[2]) as token:
                    there = builder.mul(token.index, width)
                    for place in places[::2]:  # two parts of bfloat16 lie in one line of memory
                        _fetch(builder, builder.gep(values.data, [builder.add(there, place)]))
                    held = [
                        _floats(builder, values.data, builder.add(there, place), kinds[1])
                        for place in places
                    ]
                    for head, own in enumerate(totals):
                        where = builder.add(builder.mul(row, ir.Constant(word, head)), token.index)
                        share = builder.load(builder.gep(shares.data, [where]))
                        share = builder.insert_element(zeros, share, first)
                        share = builder.shuffle_vector(share, zeros, everywhere)
                        for part, total in zip(held, own, strict=False):
                            builder.store(_fused(builder, share, part, builder.load(total)), total)
                for own, there in zip(totals, spots, strict=True):
                    for total, spot in zip(own, there, strict=False):
                        builder.store(builder.load(total), spot, align=4)

            together = ir.Constant(word, _CHUNKS * HEAD_LANES)
            whole = builder.udiv(width, together)
            with cgutils.for_range(builder, whole) as block:
                mix(builder.mul(block.index, together), _CHUNKS)
            done = builder.mul(whole, together)
            left = builder.udiv(builder.sub(width, done), ir.Constant(word, HEAD_LANES))
            with cgutils.for_range(builder, left) as rest:
                mix(
                    builder.add(done, builder.mul(rest.index, ir.Constant(word, HEAD_LANES))),
                    1,
                )
            return context.get_dummy_value()

        return types.void(shares_GT, values_TD, types.int64, out_GD), build

    return sums


_scores_1, _scores_2, _scores_3, _scores_4 = (_scores(heads) for heads in (1, 2, 3, _HEADS))
_mixture_1, _mixture_2, _mixture_3, _mixture_4 = (_mixture(heads) for heads in (1, 2, 3, _HEADS))


@_loop
def _softmax(scores_T: Array, count: int, scale: Any) -> None:
    highest, mass = _largest(scores_T[:count]), np.float32(0)
    for t in range(count):
        scores_T[t] = _exp((scores_T[t] - highest) * scale)
        mass += scores_T[t]
    share = np.float32(1) / mass
    for t in range(count):
        scores_T[t] *= share


@_loop
def _score(query_GD: Array, keys_TD: Array, count: int, scores_GT: Array) -> None:
    """Write up to four queries' products with `count` keys."""
    heads = query_GD.shape[0]
    if heads == 1:
        _scores_1(query_GD, keys_TD, count, scores_GT)
    elif heads == 2:
        _scores_2(query_GD, keys_TD, count, scores_GT)
    elif heads == 3:
        _scores_3(query_GD, keys_TD, count, scores_GT)
    else:
        _scores_4(query_GD, keys_TD, count, scores_GT)


@_loop
def _mix(shares_GT: Array, values_TD: Array, count: int, out_GD: Array) -> None:
    """Add `count` values, weighted for up to four queries."""
    heads = out_GD.shape[0]
    if heads == 1:
        _mixture_1(shares_GT, values_TD, count, out_GD)
    elif heads == 2:
        _mixture_2(shares_GT, values_TD, count, out_GD)
    elif heads == 3:
        _mixture_3(shares_GT, values_TD, count, out_GD)
    else:
        _mixture_4(shares_GT, values_TD, count, out_GD)


@_parallel
def attend(
    joined_BN: Array,
    kv_heads: int,
    layer: int,
    places: Places,
    scores_PT: Array,
    out_BQ: Array,
    like: Array,
    parts: int,
) -> None:
    """Keep the new keys and values, and read what every query head of every line attends to.

    Args:
        joined_BN: queries, keys and values of the new tokens, not rotated.
        kv_heads: of the model.
        layer: of the caches.
        places: where each line's cache lies, with room for one token more.
        scores_PT: scratch, a row each line and query head.
        out_BQ: is written.
        like: an array of the caches' type.
        parts: pieces of the parallel loop.
    """
    width = places.cos.shape[1]
    queries = out_BQ.shape[1] // width
    groups = queries // kv_heads
    blocks = -(-groups // _HEADS)  # of query heads that are read for together
    tasks = joined_BN.shape[0] * kv_heads * blocks
    scale = np.float32(1) / np.sqrt(np.float32(width))
    lengths_B, border_B, cos_TD, sin_TD = places.lengths, places.border, places.cos, places.sin
    _keep(joined_BN, queries, kv_heads, layer, places, like)
    for part in prange(parts):
        query_GD, read_GD = (
            np.empty((_HEADS, width), np.float32),
            np.empty((_HEADS, width), np.float32),
        )
        for task in range(part * tasks // parts, (part + 1) * tasks // parts):
            # A head's beginning is read for one line after the other: it stays near.
            kv_head, rest = task // (len(lengths_B) * blocks), task % (len(lengths_B) * blocks)
            b, block = rest // blocks, rest % blocks
            heads = min(_HEADS, groups - block * _HEADS)
            first = kv_head * groups + block * _HEADS
            at, border = lengths_B[b], border_B[b]
            for g in range(heads):
                start = (first + g) * width
                _turn(joined_BN[b, start : start + width], cos_TD[at], sin_TD[at], query_GD[g])
            row = b * queries + first
            scores_GT = scores_PT[row : row + heads]
            asked_GD, found_GD = query_GD[:heads], read_GD[:heads]
            begun_TD, began_TD = _held(places, b, 0, layer, kv_heads, kv_head, like)
            keys_TD, values_TD = _held(places, b, 1, layer, kv_heads, kv_head, like)
            _score(asked_GD, begun_TD, border, scores_GT)
            _score(asked_GD, keys_TD, at + 1 - border, scores_GT[:, border:])
            for g in range(heads):
                _softmax(scores_GT[g], at + 1, scale)
            found_GD[:] = 0
            _mix(scores_GT, began_TD, border, found_GD)
            _mix(scores_GT[:, border:], values_TD, at + 1 - border, found_GD)
            for g in range(heads):
                start = (first + g) * width
                for d in range(width):
                    out_BQ[b, start + d] = _pack(read_GD[g, d], out_BQ[b, start + d])


@_loop
def _gate_some(gate_up_J: Array, first: int, last: int, out_I: Array) -> None:
    inner = out_I.shape[0]
    # Cut out first: an index that might count from the end keeps a loop from being vectorised.
    gates, ups = gate_up_J[first:last], gate_up_J[inner + first : inner + last]
    outs = out_I[first:last]
    for n in range(outs.shape[0]):
        gate, up = _load(gates[n]), _load(ups[n])
        outs[n] = _pack(gate / (np.float32(1) + _exp(-gate)) * up, outs[n])


@_parallel
def gate(gate_up_BJ: Array, out_BI: Array, parts: int) -> None:
    """Write silu(gate) · up, the gate being the first half of each row."""
    count, inner = out_BI.shape
    for part in prange(parts):
        for b in range(count):
            _gate_some(gate_up_BJ[b], part * inner // parts, (part + 1) * inner // parts, out_BI[b])


# --- int8 matrices -------------------------------------------------------------------------------

# Rows and vectors are padded to a multiple of so many numbers.
LANES = 64


def _add_pairs(builder: Any, one: Any, other: Any, total: Any) -> Any:
    """Multiply two vectors of int16, and add neighbouring products to a total in int32."""
    sums = ir.VectorType(ir.IntType(32), _CHUNK // 2)
    if _FUSED:
        kind = ir.FunctionType(sums, [sums] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, _FUSED)
        return builder.call(fused, [total, *(builder.bitcast(v, sums) for v in (one, other))])
    if _PAIRING:
        kind = ir.FunctionType(sums, [one.type, one.type])
        multiply = cgutils.get_or_insert_function(builder.module, kind, _PAIRING)
        return builder.add(builder.call(multiply, [one, other]), total)
    products = builder.mul(
        *(builder.sext(v, ir.VectorType(ir.IntType(32), _CHUNK)) for v in (one, other))
    )
    even, odd = (
        builder.shuffle_vector(
            products, products, ir.Constant(sums, [2 * k + at for k in range(_CHUNK // 2)])
        )
        for at in (0, 1)
    )
    return builder.add(builder.add(even, odd), total)


def pairs_products() -> bool:
    """Tell whether an instruction of this processor adds products of int16 in pairs."""
    return bool(_PAIRING)


# A panel: so many rows of a matrix, two neighbouring numbers of one row beside those of the next.
PANEL_ROWS = 16
_LANES = _CHUNK // 2
_VECTORS = PANEL_ROWS // _LANES


def as_panels(whole_NK: Array) -> Array:
    """Lay a matrix out for vectors, (N / 16, K / 2, 32); rows are padded to a multiple of 16.

    Each lane of a vector adds up one row, so that no sum has to be gathered from many lanes.
    """
    count, width = whole_NK.shape
    padded = np.zeros((-(-count // PANEL_ROWS) * PANEL_ROWS, width), whole_NK.dtype)
    padded[:count] = whole_NK
    laid = padded.reshape(-1, PANEL_ROWS, width // 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(laid).reshape(len(laid), width // 2, 2 * PANEL_ROWS)


def _panel(lines: int) -> Any:
    """Return a function that multiplies `lines` vectors by a panel.

    Neighbouring products are added in pairs, which x86 has an instruction for that no vectoriser finds
    in a plain loop. Sums are whole numbers as long as 32 bits are sure to hold them, then float32.
    """
    # With few lines one sum would wait for the one before it.
    ways = max(1, 4 // lines)

    @_instruction
    def products(_typing: Any, w: Any, panel: Any, x_BK: Any, b: Any, chunk: Any, sums: Any) -> Any:
        """sums[j] = what line b + j makes of a panel's rows.

        `chunk` pairs of numbers fit 32 bits; it is a multiple of 4, as are the matrix' pairs.
        """
        del panel, b, chunk

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            held, x, out = _arrays(context, builder, signature, args, (0, 2, 5))
            word, lane = ir.IntType(64), ir.IntType(32)
            bits = signature.args[0].dtype.bitwidth
            short = ir.VectorType(ir.IntType(16), _CHUNK)
            taken = ir.VectorType(ir.IntType(bits), _CHUNK)
            totals_type = ir.VectorType(lane, _LANES)
            floats = ir.VectorType(ir.FloatType(), _LANES)
            zeros = ir.Constant(totals_type, [0] * _LANES)
            nothing = ir.Constant(floats, [0.0] * _LANES)

            def size(number: int) -> Any:
                return ir.Constant(word, number)

            pairs, width = (builder.extract_value(one.shape, 1) for one in (held, x))
            rows = builder.gep(
                held.data, [builder.mul(args[1], builder.mul(pairs, size(2 * PANEL_ROWS)))]
            )
            starts = []
            for line in range(lines):
                start = builder.mul(builder.add(args[3], size(line)), width)
                starts.append(builder.bitcast(builder.gep(x.data, [start]), lane.as_pointer()))
            shape = (range(_VECTORS), range(lines), range(ways))
            totals = {key: cgutils.alloca_once_value(builder, zeros) for key in product(*shape)}

            def result(line: int, vector: int) -> Any:
                place = size(line * PANEL_ROWS + vector * _LANES)
                return builder.bitcast(builder.gep(out.data, [place]), floats.as_pointer())

            for line, vector in product(range(lines), range(_VECTORS)):
                builder.store(nothing, result(line, vector), align=4)
            chunks = builder.udiv(builder.add(pairs, builder.sub(args[4], size(1))), args[4])
            with cgutils.for_range(builder, chunks) as outer:
                for total in totals.values():
                    builder.store(zeros, total)
                base = builder.mul(outer.index, args[4])
                left = builder.sub(pairs, base)
                fewer = builder.icmp_unsigned("<", left, args[4])
                count = builder.udiv(builder.select(fewer, left, args[4]), size(ways))
                with cgutils.for_range(builder, count) as inner:
                    first = builder.add(base, builder.mul(inner.index, size(ways)))
                    for way in range(ways):
                        at = builder.add(first, size(way))
                        there = builder.gep(rows, [builder.mul(at, size(2 * PANEL_ROWS))])
                        _fetch(builder, there)
                        weights = []
                        for vector in range(_VECTORS):
                            place = builder.gep(there, [size(vector * _CHUNK)])
                            place = builder.bitcast(place, taken.as_pointer())
                            found = builder.load(place, align=1)
                            weights.append(builder.sext(found, short) if bits == 8 else found)
                        for line, start in enumerate(starts):
                            pair = builder.load(builder.gep(start, [at]), align=2)
                            one = builder.insert_element(zeros, pair, ir.Constant(lane, 0))
                            everywhere = builder.shuffle_vector(one, zeros, zeros)
                            given = builder.bitcast(everywhere, short)
                            for vector, weight in enumerate(weights):
                                total = totals[vector, line, way]
                                added = _add_pairs(builder, weight, given, builder.load(total))
                                builder.store(added, total)
                for line, vector in product(range(lines), range(_VECTORS)):
                    whole = builder.load(totals[vector, line, 0])
                    for way in range(1, ways):
                        whole = builder.add(whole, builder.load(totals[vector, line, way]))
                    place = result(line, vector)
                    more = builder.fadd(builder.load(place, align=4), builder.sitofp(whole, floats))
                    builder.store(more, place, align=4)
            return context.get_dummy_value()

        signature = types.void(w, types.int64, x_BK, types.int64, types.int64, sums)
        return signature, build

    return products


# --- int8 matrices by matrix units ---------------------------------------------------------------

# A tile of a matrix: so many rows of so many bytes, in fours, as the unit reads them.
TILE_ROWS, TILE_BYTES = 16, 64
# Neighbouring tiles of rows whose products are added up at once, with the registers that hold them.
_TILES = 2
_SUMS, _UPPER, _LOWER, _WEIGHTS = (0, 1, 2, 3), 4, 5, (6, 7)
# Tiles of rows that all lines are multiplied by before the next: so many stay in the second cache.
_TILE_BLOCK = 8


def as_tiles(whole_NK: Array) -> Array:
    """Lay a matrix out for matrix units, (N / 16, K / 64, 1024); rows are padded to a multiple of 16.

    Source: Intel, "Architecture Instruction Set Extensions", chapter on AMX: four neighbouring numbers
    of one row stand together, then those of the next row.
    """
    count, width = whole_NK.shape
    blocks, chunks = -(-count // TILE_ROWS), width // TILE_BYTES
    padded = np.zeros((blocks * TILE_ROWS, width), np.int8)
    padded[:count] = whole_NK
    split = padded.reshape(blocks, TILE_ROWS, chunks, TILE_BYTES // 4, 4)
    laid = np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4))
    return laid.reshape(blocks, chunks, TILE_ROWS * TILE_BYTES)


@lru_cache(maxsize=1)
def have_tiles() -> bool:
    """Tell whether this processor multiplies int8 by matrix units (AMX), and the system lets us."""
    features = binding.get_host_cpu_features()
    if sys.platform != "linux" or not (features.get("amx-int8") and features.get("amx-tile")):
        return False
    # The system keeps a thread's tiles only for a process that has asked for it; see arch_prctl(2).
    call, ask, tiles = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(call, ask, tiles) == 0
    except (AttributeError, OSError):
        return False


def _tile_call(builder: Any, name: str, args: list[Any]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


@_instruction
def _configure(_typing: Any, config: Any) -> Any:
    """Set the tiles' shapes, from 64 bytes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (held,) = _arrays(context, builder, signature, args, (0,))
        _tile_call(builder, "ldtilecfg", [held.data])
        return context.get_dummy_value()

    return types.void(config), build


@_instruction
def _release(_typing: Any) -> Any:
    """Forget the tiles, so that the system need not keep them."""

    def build(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        _tile_call(builder, "tilerelease", [])
        return context.get_dummy_value()

    return types.void(), build


def _tile_products(tiles: int) -> Any:
    """Return a function that multiplies up to 16 lines by one or two neighbouring tiles of rows."""

    @_instruction
    def products(_typing: Any, x_2BK: Any, b: Any, w: Any, n: Any, sums: Any) -> Any:
        """sums[2 · i + half] = what the lines from `b` on make of the tile n + i, (16, 16) in int32.

        Half 0 is of the lines' upper bytes, which have a sign, half 1 of the lower ones.
        """
        del b, n

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, w, out = _arrays(context, builder, signature, args, (0, 2, 4))
            word, byte = ir.IntType(64), ir.IntType(8)
            pointer = byte.as_pointer()

            def register(number: int) -> Any:
                return ir.Constant(byte, number)

            def size(number: int) -> Any:
                return ir.Constant(word, number)

            width, plane = builder.extract_value(x.shape, 2), builder.extract_value(x.strides, 0)
            chunks = builder.extract_value(w.shape, 1)
            a_tile = TILE_ROWS * TILE_BYTES
            upper = builder.gep(x.data, [builder.mul(args[1], width)])
            lower = builder.gep(upper, [plane])
            rows = [
                builder.gep(
                    w.data,
                    [
                        builder.mul(
                            builder.add(args[3], size(at)), builder.mul(chunks, size(a_tile))
                        )
                    ],
                )
                for at in range(tiles)
            ]
            for at in range(2 * tiles):
                _tile_call(builder, "tilezero", [register(_SUMS[at])])
            with cgutils.for_range(builder, chunks) as loop:
                along = builder.mul(loop.index, size(TILE_BYTES))
                for number, line in ((_UPPER, upper), (_LOWER, lower)):
                    there = builder.bitcast(builder.gep(line, [along]), pointer)
                    _tile_call(builder, "tileloadd64", [register(number), there, width])
                for at, row in enumerate(rows):
                    there = builder.gep(row, [builder.mul(loop.index, size(a_tile))])
                    for part in range(0, a_tile, 64):  # a line of memory each
                        _fetch(builder, builder.gep(there, [size(part)]))
                    given = [register(_WEIGHTS[at]), builder.bitcast(there, pointer)]
                    _tile_call(builder, "tileloadd64", [*given, size(TILE_BYTES)])
                    for half, (name, of) in enumerate((("tdpbssd", _UPPER), ("tdpbusd", _LOWER))):
                        total = _SUMS[2 * at + half]
                        _tile_call(
                            builder, name, [register(one) for one in (total, of, _WEIGHTS[at])]
                        )
            found = builder.bitcast(out.data, pointer)
            for at in range(2 * tiles):
                there = builder.gep(found, [size(at * TILE_ROWS * TILE_BYTES)])
                _tile_call(builder, "tilestored64", [register(_SUMS[at]), there, size(TILE_BYTES)])
            return context.get_dummy_value()

        return types.void(x_2BK, types.int64, w, types.int64, sums), build

    return products


def _few_products(lines: int) -> Any:
    """Return the same for a few lines and one tile of rows, by vectors: filling tiles takes longer."""

    @_instruction
    def products(_typing: Any, x_2BK: Any, b: Any, w: Any, n: Any, sums: Any) -> Any:
        """See `_tile_products`; for the lines from `b` on, and the tile n alone."""
        del b, n

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, w, out = _arrays(context, builder, signature, args, (0, 2, 4))
            word, lane = ir.IntType(64), ir.IntType(32)
            vector = ir.VectorType(lane, TILE_ROWS)
            zeros = ir.Constant(vector, [0] * TILE_ROWS)
            # An unsigned byte by a signed one, four of them added to a sum: upper bytes are moved up by
            # 128 for it, and what this adds is taken away again.
            moved = ir.Constant(lane, 0x80808080)
            kind = ir.FunctionType(vector, [vector] * 3)
            name = "llvm.x86.avx512.vpdpbusd.512"
            fours = cgutils.get_or_insert_function(builder.module, kind, name)

            def everywhere(value: Any) -> Any:
                one = builder.insert_element(zeros, value, ir.Constant(lane, 0))
                return builder.shuffle_vector(one, zeros, zeros)

            def size(number: int) -> Any:
                return ir.Constant(word, number)

            width, plane = builder.extract_value(x.shape, 2), builder.extract_value(x.strides, 0)
            chunks = builder.extract_value(w.shape, 1)
            rows = builder.gep(
                w.data, [builder.mul(args[3], builder.mul(chunks, size(TILE_ROWS * TILE_BYTES)))]
            )
            starts = []
            for line in range(lines):
                upper = builder.gep(x.data, [builder.mul(builder.add(args[1], size(line)), width)])
                starts.append((upper, builder.gep(upper, [plane])))
            totals = [
                [cgutils.alloca_once_value(builder, zeros) for _ in range(2)] for _ in range(lines)
            ]
            surplus = cgutils.alloca_once_value(builder, zeros)
            each = everywhere(moved)

            def add(total: Any, given: Any, weights: Any) -> None:
                builder.store(builder.call(fours, [builder.load(total), given, weights]), total)

            steps = builder.mul(chunks, size(TILE_BYTES // 4))
            with cgutils.for_range(builder, steps) as loop:
                there = builder.gep(rows, [builder.mul(loop.index, size(64))])
                _fetch(builder, there)
                weights = builder.load(builder.bitcast(there, vector.as_pointer()), align=1)
                add(surplus, each, weights)
                along = builder.mul(loop.index, size(4))
                for own, halves in zip(totals, starts, strict=True):
                    for half, (total, start) in enumerate(zip(own, halves, strict=True)):
                        place = builder.bitcast(builder.gep(start, [along]), lane.as_pointer())
                        four = builder.load(place, align=1)
                        if half == 0:
                            four = builder.xor(four, moved)
                        add(total, everywhere(four), weights)
            for line, (upper, lower) in enumerate(totals):
                found = (
                    builder.sub(builder.load(upper), builder.load(surplus)),
                    builder.load(lower),
                )
                for half, value in enumerate(found):
                    at = size((half * TILE_ROWS + line) * TILE_ROWS)
                    place = builder.bitcast(builder.gep(out.data, [at]), vector.as_pointer())
                    builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(x_2BK, types.int64, w, types.int64, sums), build

    return products


_tile_products_1, _tile_products_2 = _tile_products(1), _tile_products(_TILES)
_few_products_1, _few_products_2, _few_products_3, _few_products_4 = (
    _few_products(lines) for lines in (1, 2, 3, 4)
)
# Lines up to which vectors are faster.
_FEW_LINES = 4


@_loop
def _configure_lines(lines: int, config: Array) -> None:
    """Shape the tiles for so many lines."""
    config[:] = 0
    config[0] = 1  # the only palette
    for tile in range(8):
        config[16 + 2 * tile] = TILE_BYTES
        config[48 + tile] = TILE_ROWS if tile in _WEIGHTS else lines
    _configure(config)


@_loop
def _scale_tile(
    sums: Array,
    lines: int,
    scale_N: Array,
    n: int,
    last: int,
    x_scale_B: Array,
    b: int,
    out_BN: Array,
) -> None:
    """Write what the sums of two halves are worth, for the rows from `n` to a tile's end or `last`."""
    rows = min(TILE_ROWS, last - n)
    scales, upper, lower = scale_N[n : n + rows], sums[0], sums[1]
    for j in range(lines):
        found, scale = out_BN[b + j, n : n + rows], x_scale_B[b + j]
        for i in range(rows):
            whole = np.int32(np.int32(upper[j, i] * np.int32(256)) + lower[j, i])  # 32 bits suffice
            found[i] = np.float32(whole) * scales[i] * scale


@_loop
def _multiply_few(
    w: Array,
    scale_N: Array,
    first: int,
    last: int,
    x_2BK: Array,
    x_scale_B: Array,
    out_BN: Array,
) -> None:
    """The same for up to `_FEW_LINES` lines, by vectors."""
    lines = x_2BK.shape[1]
    sums = np.empty((2, TILE_ROWS, TILE_ROWS), np.int32)
    for tile in range(first // TILE_ROWS, -(-last // TILE_ROWS)):
        if lines == 1:
            _few_products_1(x_2BK, 0, w, tile, sums)
        elif lines == 2:
            _few_products_2(x_2BK, 0, w, tile, sums)
        elif lines == 3:
            _few_products_3(x_2BK, 0, w, tile, sums)
        else:
            _few_products_4(x_2BK, 0, w, tile, sums)
        _scale_tile(sums, lines, scale_N, tile * TILE_ROWS, last, x_scale_B, 0, out_BN)


@_loop
def _multiply_tiles(
    w: Array,
    scale_N: Array,
    first: int,
    last: int,
    x_2BK: Array,
    x_scale_B: Array,
    out_BN: Array,
) -> None:
    """All lines' products with the rows from `first`, a multiple of 16, to `last`."""
    count, end = x_2BK.shape[1], -(-last // TILE_ROWS)
    if count <= _FEW_LINES:
        _multiply_few(w, scale_N, first, last, x_2BK, x_scale_B, out_BN)
        return
    sums = np.empty((2 * _TILES, TILE_ROWS, TILE_ROWS), np.int32)
    config = np.empty(64, np.uint8)
    for block in range(first // TILE_ROWS, end, _TILE_BLOCK):
        stop = min(block + _TILE_BLOCK, end)
        for b in range(0, count, TILE_ROWS):
            lines = min(TILE_ROWS, count - b)
            _configure_lines(lines, config)
            for tile in range(block, stop, _TILES):
                tiles = min(_TILES, stop - tile)
                if tiles == _TILES:
                    _tile_products_2(x_2BK, b, w, tile, sums)
                else:
                    _tile_products_1(x_2BK, b, w, tile, sums)
                for at in range(tiles):
                    n = (tile + at) * TILE_ROWS
                    _scale_tile(sums[2 * at :], lines, scale_N, n, last, x_scale_B, b, out_BN)
    _release()


@_loop
def _quantise_tiles(x_BK: Array, whole_2BK: Array, scale_B: Array) -> None:
    """The same as upper and lower bytes, the number being 256 · upper + lower."""
    whole_K = np.empty(whole_2BK.shape[2], np.int16)
    for b in range(x_BK.shape[0]):
        scale_B[b] = _quantise_line(x_BK[b], whole_K, _room(x_BK.shape[1]))
        upper_K, lower_K = whole_2BK[0, b], whole_2BK[1, b]
        for k in range(whole_K.shape[0]):
            upper_K[k] = np.int8(whole_K[k] >> 8)
            lower_K[k] = np.int8(whole_K[k] & 255)


# --- and by vectors ------------------------------------------------------------------------------

# Lines whose sums fit a processor's registers: AVX2 has sixteen, AVX-512 and others thirty-two.
LINES = 8 if _CHUNK == 32 else 4
_panel_1, _panel_2, _panel_4 = (_panel(lines) for lines in (1, 2, 4))
_panel_8 = _panel(8) if LINES == 8 else _panel_4
# Panels that all lines are multiplied by before the next: so many stay in the second cache.
_PANEL_BLOCK = 4


@_loop
def _room(width: int) -> int:
    """Return how large a number may be that int8 are multiplied by, for a sum of `width` products."""
    return min(32767, (2**31 - 1) // (127 * width))


@_loop
def _quantise_line(x_K: Array, whole_K: Array, room: int) -> Any:
    """Write a line as whole numbers up to `room`, and zeros behind it.

    Returns what one of them is worth.
    """
    width = x_K.shape[0]
    most = np.float32(room)
    largest = max(_largest_size(x_K), np.float32(1e-20))
    factor = most / largest
    for k in range(width):
        whole_K[k] = np.int16(np.int32(np.floor(x_K[k] * factor + np.float32(0.5))))
    for k in range(width, whole_K.shape[0]):
        whole_K[k] = 0
    return largest / most


@_loop
def _quantise_rows(x_BK: Array, whole_BK: Array, scale_B: Array) -> None:
    room = _room(x_BK.shape[1])
    for b in range(x_BK.shape[0]):
        scale_B[b] = _quantise_line(x_BK[b], whole_BK[b], room)


@_loop
def _scale(
    sums: Array,
    rows: int,
    lines: int,
    scale_N: Array,
    n: int,
    x_scale_B: Array,
    b: int,
    out_BN: Array,
) -> None:
    scales = scale_N[n : n + rows]
    for j in range(lines):
        found, out, scale = sums[j], out_BN[b + j, n : n + rows], x_scale_B[b + j]
        for i in range(rows):
            out[i] = found[i] * scales[i] * scale


@_loop
def _multiply_panels(
    w: Array,
    scale_N: Array,
    first: int,
    last: int,
    x_BK: Array,
    x_scale_B: Array,
    chunk: int,
    out_BN: Array,
) -> None:
    """All lines' products with the rows from `first`, a multiple of 16, to `last`.

    Behind the lines there must be room for `LINES` more: a few at the end are multiplied by the next
    larger function, and what it finds for lines that are none is left. `chunk`: see `_panel`.
    """
    count = out_BN.shape[0]
    sums = np.empty((LINES, PANEL_ROWS), np.float32)
    end = -(-last // PANEL_ROWS)
    for block in range(first // PANEL_ROWS, end, _PANEL_BLOCK):
        for b in range(0, count, LINES):
            lines = min(LINES, count - b)
            for panel in range(block, min(block + _PANEL_BLOCK, end)):
                if lines == 1:
                    _panel_1(w, panel, x_BK, b, chunk, sums)
                elif lines == 2:
                    _panel_2(w, panel, x_BK, b, chunk, sums)
                elif lines <= 4:
                    _panel_4(w, panel, x_BK, b, chunk, sums)
                else:
                    _panel_8(w, panel, x_BK, b, chunk, sums)
                n = panel * PANEL_ROWS
                rows = min(PANEL_ROWS, last - n)
                _scale(sums, rows, lines, scale_N, n, x_scale_B, b, out_BN)


# --- int16 matrices ------------------------------------------------------------------------------

# How large a matrix' numbers may be and those of a line, and how many pairs' products fit 32 bits then.
MATRIX_MOST, _LINE_MOST, _PAIRS = 2047, 5463, 96


@_loop
def _cut(part: int, parts: int, size: int) -> int:
    """Return where a part of `size` rows begins: at a multiple of a tile's rows, or at the end."""
    return size if part == parts else part * size // parts // TILE_ROWS * TILE_ROWS


@_loop
def _quantise_some(x_BK: Array, whole_BK: Array, scale_B: Array, first: int, last: int) -> None:
    for b in range(first, last):
        scale_B[b] = _quantise_line(x_BK[b], whole_BK[b], _LINE_MOST)


@_parallel
def product_int16(
    x_BK: Array,
    w: Array,
    scale_N: Array,
    bias_N: Array,
    whole_BK: Array,
    scale_B: Array,
    out_BN: Array,
    parts: int,
) -> None:
    """Multiply float32 lines by a matrix in int16, and add a bias.

    A row's largest number is the largest that `_LINE_MOST` and `MATRIX_MOST` allow, which is finer than
    bfloat16 for all numbers that count beside it. On AVX2 and AVX-512 alike it takes half the
    instructions that float32 takes. Larger numbers would have to be turned into float32 more often:
    with one bit more of each, 15 % of the time went there.

    Args:
        x_BK: the lines.
        w: the matrix, whole numbers up to `MATRIX_MOST`, as `as_panels` lays it out.
        scale_N: what its numbers are worth, a row each.
        bias_N: of the same length, or of none.
        whole_BK: scratch in int16, `LINES` rows more than lines, as wide as the matrix.
        scale_B: scratch.
        out_BN: is written.
        parts: pieces of a parallel loop.
    """
    count, size = out_BN.shape
    for part in prange(parts):
        first, last = part * count // parts, (part + 1) * count // parts
        _quantise_some(x_BK, whole_BK, scale_B, first, last)
    for part in prange(parts):
        first, last = _cut(part, parts, size), _cut(part + 1, parts, size)
        _multiply_panels(w, scale_N, first, last, whole_BK, scale_B, _PAIRS, out_BN)
        if len(bias_N):
            for b in range(count):
                for n in range(first, last):
                    out_BN[b, n] += bias_N[n]


# --- a step --------------------------------------------------------------------------------------


def _quantise(x_BK: Array, whole: Array, scale_B: Array) -> None:
    """Write lines as whole numbers, and what one is worth; stands for one of the two below."""


@_form_of(_quantise)
def _choose_quantise(x_BK: Any, whole: Any, scale_B: Any) -> Any:
    del x_BK, scale_B
    if whole.ndim == 3:
        return lambda x_BK, whole, scale_B: _quantise_tiles(x_BK, whole, scale_B)
    return lambda x_BK, whole, scale_B: _quantise_rows(x_BK, whole, scale_B)


def _multiply(
    w: Array, scale_N: Array, first: int, last: int, x: Array, x_scale_B: Array, out_BN: Array
) -> None:
    """Write all lines' products with some rows; stands for one of the two above."""


@_form_of(_multiply)
def _choose_multiply(
    w: Any, scale_N: Any, first: Any, last: Any, x: Any, x_scale_B: Any, out_BN: Any
) -> Any:
    del w, scale_N, first, last, x_scale_B, out_BN
    if x.ndim == 3:
        return lambda w, scale_N, first, last, x, x_scale_B, out_BN: _multiply_tiles(
            w, scale_N, first, last, x, x_scale_B, out_BN
        )
    return lambda w, scale_N, first, last, x, x_scale_B, out_BN: _multiply_panels(
        w, scale_N, first, last, x, x_scale_B, w.shape[1], out_BN
    )


def _first_lines(whole: Array, count: int) -> Array:
    """Return the first lines of what `_quantise` wrote."""
    return whole


@_form_of(_first_lines)
def _choose_first_lines(whole: Any, count: Any) -> Any:
    del count
    if whole.ndim == 3:
        return lambda whole, count: whole[:, :count]
    return lambda whole, count: whole[:count]


@_loop
def _add_some(added_BH: Array, first: int, last: int, hidden_BH: Array) -> None:
    for b in range(hidden_BH.shape[0]):
        for n in range(first, last):
            hidden_BH[b, n] += added_BH[b, n]


@_parallel
def _layer_int8(
    hidden_BH: Array,
    layers: Layers,
    index: int,
    kv_heads: int,
    places: Places,
    scratch: Scratch,
    like: Array,
    eps: Any,
    parts: int,
) -> None:
    count, hidden = hidden_BH.shape
    normed_BH, joined_BN, read_BQ, gate_up_BJ, inner_BI, added_BH, scores_PT = scratch.floats
    # Of what a product reads: by width, hidden, query heads and inner.
    (whole_BH, whole_BQ, whole_BI), scale_B = scratch.wholes, scratch.scale
    joined, inner = joined_BN.shape[1], inner_BI.shape[1]
    # A parallel loop takes arrays, and no tuples of tuples.
    qkv_NH, qkv_scale_N = layers.query_key_value.whole[index], layers.query_key_value.scale[index]
    output_HQ, output_scale_H = layers.output.whole[index], layers.output.scale[index]
    gate_up_JH, gate_up_scale_J = layers.gate_up.whole[index], layers.gate_up.scale[index]
    down_HI, down_scale_H = layers.down.whole[index], layers.down.scale[index]
    bias_N = layers.bias[index]

    for b in range(count):
        _norm(hidden_BH[b], layers.attention_norm[index], eps, normed_BH[b])
    _quantise(normed_BH, whole_BH, scale_B)
    for part in prange(parts):
        first, last = _cut(part, parts, joined), _cut(part + 1, parts, joined)
        _multiply(qkv_NH, qkv_scale_N, first, last, whole_BH, scale_B, joined_BN)
        for b in range(count):
            for n in range(first, last):
                joined_BN[b, n] += bias_N[n]

    attend(joined_BN, kv_heads, index, places, scores_PT, read_BQ, like, parts)

    _quantise(read_BQ, whole_BQ, scale_B)
    for part in prange(parts):
        first, last = _cut(part, parts, hidden), _cut(part + 1, parts, hidden)
        _multiply(output_HQ, output_scale_H, first, last, whole_BQ, scale_B, added_BH)
        _add_some(added_BH, first, last, hidden_BH)

    for b in range(count):
        _norm(hidden_BH[b], layers.mlp_norm[index], eps, normed_BH[b])
    _quantise(normed_BH, whole_BH, scale_B)
    for part in prange(parts):
        first, last = _cut(part, parts, inner), _cut(part + 1, parts, inner)
        for half in (0, inner):
            low, high = half + first, half + last
            _multiply(gate_up_JH, gate_up_scale_J, low, high, whole_BH, scale_B, gate_up_BJ)
        for b in range(count):
            _gate_some(gate_up_BJ[b], first, last, inner_BI[b])

    _quantise(inner_BI, whole_BI, scale_B)
    for part in prange(parts):
        first, last = _cut(part, parts, hidden), _cut(part + 1, parts, hidden)
        _multiply(down_HI, down_scale_H, first, last, whole_BI, scale_B, added_BH)
        _add_some(added_BH, first, last, hidden_BH)


@_parallel
def _head_int8(
    hidden_BH: Array,
    wanted_W: Array,
    norm_H: Array,
    head: Matrix,
    scratch: Scratch,
    out_WV: Array,
    eps: Any,
    parts: int,
) -> None:
    count, size = out_WV.shape
    normed_BH, whole_BH, scale_B = scratch.floats[0], scratch.wholes[0], scratch.scale
    for w in range(count):
        _norm(hidden_BH[wanted_W[w]], norm_H, eps, normed_BH[w])
    _quantise(normed_BH[:count], whole_BH, scale_B)
    head_VH, scale_V = head
    whole_WH = _first_lines(whole_BH, count)
    for part in prange(parts):
        first, last = _cut(part, parts, size), _cut(part + 1, parts, size)
        _multiply(head_VH, scale_V, first, last, whole_WH, scale_B, out_WV)


@_loop
def step_int8(
    hidden_BH: Array,
    layers: Layers,
    wanted_W: Array,
    norm_H: Array,
    head: Matrix,
    kv_heads: int,
    places: Places,
    scratch: Scratch,
    like: Array,
    out_WV: Array,
    eps: Any,
    parts: int,
) -> None:
    """Write the logits after some of the new ids.

    Args:
        hidden_BH: the new ids' rows, float32; overwritten.
        layers: their matrices.
        wanted_W: after which ids.
        norm_H: the last norm.
        head: of the vocabulary.
        kv_heads: of the model.
        places: as for `attend`.
        like: as for `attend`.
        scratch: is overwritten.
        out_WV: is written.
        eps: of the norms, float32.
        parts: pieces of a parallel loop.
    """
    for index in range(len(layers.bias)):
        _layer_int8(hidden_BH, layers, index, kv_heads, places, scratch, like, eps, parts)
    _head_int8(hidden_BH, wanted_W, norm_H, head, scratch, out_WV, eps, parts)
