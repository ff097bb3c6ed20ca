# mypy: disable-error-code="no-untyped-def, call-arg, import-untyped"
"""Compiled causal attention over fp32 for ``fused_attention``, rotary embedding included. Imported on first use, as ``cpu_native``.

One key/value head of one sequence at a time, and of its queries a strip at a time, so that a strip of the score matrix stays in cache
and what lies in the future is never computed. All products are made of register tiles (Goto & van de Geijn, 2008, ACM TOMS 34(3)).
Scores come multiplied by log2(e), so that softmax is made of powers of two. What loops would not be compiled well from is written as
LLVM vectors; addresses and distances there are in bytes.

Shapes: B sequences, T tokens, H query heads, K key/value heads (H = K * G), D features of a query or key, D_v of a value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu_native import COMPILE, LOG2_E, ROUND, F

LANES, ROWS = (16, 8) if binding.get_host_cpu_features().get("avx512f", False) else (8, 4)  # so that a tile's sums fill the registers
STRIP = 64  # queries at a time, a multiple of ROWS
PANEL = 192  # keys at a time, a multiple of LANES: so many columns or rows of a factor stay in the first cache
AHEAD = 16  # rows of a head to fetch in advance: they are too far apart for the processor's own guess
FLOAT, INT = ir.FloatType(), ir.IntType(64)


def _pointer(builder, kind, base, *steps):
    """Where a ``kind`` stands at ``base`` plus distance times number for each of the steps; numbers may be of Python's."""
    for distance, number in steps:
        base = builder.add(base, builder.mul(*(INT(x) if isinstance(x, int) else x for x in (distance, number))))
    return builder.inttoptr(base, kind.as_pointer())


def _load(builder, kind, base, *steps):
    return builder.load(_pointer(builder, kind, base, *steps), align=4)


def _spread(builder, number, lanes):
    nothing = ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def _tile(vectors: int) -> Callable[..., None]:
    vector = ir.VectorType(FLOAT, LANES)

    @intrinsic
    def tile(context, c, c_row, a, a_row, a_step, b, b_row, count, fresh):
        """C (ROWS, vectors * LANES) = or, unless ``fresh``, += A (ROWS, count) B (count, vectors * LANES), with the sums in registers."""

        def generate(context, builder, signature, arguments):
            c, c_row, a, a_row, a_step, b, b_row, count, fresh = arguments
            cells = [(r, v) for r in range(ROWS) for v in range(vectors)]
            places = {(r, v): _pointer(builder, vector, c, (c_row, r), (4 * LANES, v)) for r, v in cells}
            sums = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
            for cell in cells:
                before = builder.load(places[cell], align=4)
                builder.store(builder.select(fresh, ir.Constant(vector, [0.0] * LANES), before), sums[cell])
            with cgutils.for_range(builder, count) as loop:
                factors = [_load(builder, vector, b, (b_row, loop.index), (4 * LANES, v)) for v in range(vectors)]
                numbers = [_spread(builder, _load(builder, FLOAT, a, (a_step, loop.index), (a_row, r)), LANES) for r in range(ROWS)]
                for r, v in cells:
                    builder.store(_multiply_add(builder, numbers[r], factors[v], builder.load(sums[r, v])), sums[r, v])
            for cell in cells:
                builder.store(builder.load(sums[cell]), places[cell], align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8, types.boolean), generate

    return tile


def _turn_row(lanes: int) -> Callable[..., None]:
    vector = ir.VectorType(FLOAT, lanes)

    @intrinsic
    def turn(context, x, cos, sin, half, scale, out):
        """``half`` pairs of features (a multiple of ``lanes``), turned and times ``scale``."""

        def generate(context, builder, signature, arguments):
            x, cos, sin, half, scale, out = arguments
            scale = _spread(builder, scale, lanes)
            with cgutils.for_range(builder, builder.sdiv(half, INT(lanes))) as loop:
                at = (4 * lanes, loop.index)
                left, right = _load(builder, vector, x, at), _load(builder, vector, x, at, (4, half))
                c, s = (builder.fmul(scale, _load(builder, vector, base, at)) for base in (cos, sin))
                back = builder.fneg(builder.fmul(right, s))
                builder.store(_multiply_add(builder, left, c, back), _pointer(builder, vector, out, at), align=4)
                forth = _multiply_add(builder, right, c, builder.fmul(left, s))
                builder.store(forth, _pointer(builder, vector, out, at, (4, half)), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4, types.float32, types.intp), generate

    return turn


def _scale_row(lanes: int) -> Callable[..., None]:
    vector = ir.VectorType(FLOAT, lanes)

    @intrinsic
    def scale_row(context, x, count, scale, out):
        """``count`` numbers (a multiple of ``lanes``) times ``scale``."""

        def generate(context, builder, signature, arguments):
            x, count, scale, out = arguments
            with cgutils.for_range(builder, builder.sdiv(count, INT(lanes))) as loop:
                at = (4 * lanes, loop.index)
                scaled = builder.fmul(_load(builder, vector, x, at), _spread(builder, scale, lanes))
                builder.store(scaled, _pointer(builder, vector, out, at), align=4)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.float32, types.intp), generate

    return scale_row


_tile_1, _tile_2, _tile_3 = _tile(1), _tile(2), _tile(3)
_turn_8, _turn_4, _turn_1 = _turn_row(8), _turn_row(4), _turn_row(1)
_scale_8, _scale_4, _scale_1 = _scale_row(8), _scale_row(4), _scale_row(1)


@intrinsic
def _transpose(context, x, x_row, out, out_row):
    """LANES x LANES numbers, by exchanging halves, quarters, ... between rows."""

    def generate(context, builder, signature, arguments):
        x, x_row, out, out_row = arguments
        vector, indices = ir.VectorType(FLOAT, LANES), ir.VectorType(ir.IntType(32), LANES)
        rows = [_load(builder, vector, x, (x_row, r)) for r in range(LANES)]
        step = 1
        while step < LANES:
            low = ir.Constant(indices, [n + LANES - step if n & step else n for n in range(LANES)])
            high = ir.Constant(indices, [n + LANES if n & step else n + step for n in range(LANES)])
            for r in range(LANES):
                if not r & step:
                    a, b = rows[r], rows[r + step]
                    rows[r], rows[r + step] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
            step *= 2
        for r, row in enumerate(rows):
            builder.store(row, _pointer(builder, vector, out, (out_row, r)), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def _fetch(context, address):
    """Ask for a cache line without waiting for it; an address beyond the end does no harm."""

    def generate(context, builder, signature, arguments):
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def _wide(context):
    """Lets LLVM use the widest vectors for the loops of the calling function; left to itself it halves them."""

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add knows no attributes with values
        return context.get_dummy_value()

    return types.void(), generate


@njit(**COMPILE)
def _at(x, row, column):
    return x.ctypes.data + row * x.strides[0] + 4 * column


@njit(**COMPILE)
def _multiply(c, c_row, a, a_row, a_step, b, b_row, width, count, fresh):
    """ROWS rows of a product, ``width`` columns (rounded up to LANES), by tiles."""
    j = 0
    while j < width:
        left = width - j
        if left >= 3 * LANES and left != 4 * LANES:
            _tile_3(c + 4 * j, c_row, a, a_row, a_step, b + 4 * j, b_row, count, fresh)
            j += 3 * LANES
        elif left > LANES:
            _tile_2(c + 4 * j, c_row, a, a_row, a_step, b + 4 * j, b_row, count, fresh)
            j += 2 * LANES
        else:
            _tile_1(c + 4 * j, c_row, a, a_row, a_step, b + 4 * j, b_row, count, fresh)
            j += LANES


@njit(**COMPILE)
def _round_up(n, unit):
    return -(-n // unit) * unit


@njit(**COMPILE)
def _scratch(rows, columns):
    """Zeros whose rows start at a multiple of LANES, and are not a power of two apart, which would map all of them to few cache sets."""
    width = _round_up(columns, LANES)
    width += 0 if width % 64 else LANES
    memory = np.zeros(rows * width + LANES, np.float32)
    first = -(memory.ctypes.data // 4) % LANES
    return memory[first : first + rows * width].reshape(rows, width)


@njit(**COMPILE)
def _turned(x, first, cos, sin, scale, out):
    """Rows of x from column ``first``, turned and times ``scale``."""
    half = cos.shape[1]
    for i in range(len(x)):
        for j in range(0, 2 * half, 16):
            _fetch(_at(x, i + AHEAD, first + j))
            _fetch(_at(out, i + AHEAD, j))
        row, c, s, target = _at(x, i, first), _at(cos, i, 0), _at(sin, i, 0), _at(out, i, 0)
        if half % 8 == 0:
            _turn_8(row, c, s, half, scale, target)
        elif half % 4 == 0:
            _turn_4(row, c, s, half, scale, target)
        else:
            _turn_1(row, c, s, half, scale, target)


@njit(**COMPILE)
def _scaled(x, first, columns, scales, out):
    """Rows of x from column ``first``, each times its scale."""
    for i in range(len(x)):
        for j in range(0, columns, 16):
            _fetch(_at(x, i + AHEAD, first + j))
            _fetch(_at(out, i + AHEAD, j))
        row, target = _at(x, i, first), _at(out, i, 0)
        if columns % 8 == 0:
            _scale_8(row, columns, scales[i], target)
        elif columns % 4 == 0:
            _scale_4(row, columns, scales[i], target)
        else:
            _scale_1(row, columns, scales[i], target)


@njit(**COMPILE)
def _transposed(x, out):
    """All of a scratch matrix, to as many columns of another."""
    for i in range(0, x.shape[0] // LANES * LANES, LANES):
        for j in range(0, len(out), LANES):
            _transpose(_at(x, i, j), x.strides[0], _at(out, j, i), out.strides[0])


@njit(**COMPILE)
def _past(q, kt, first, rows, depth, s):
    """(rows, D) times (D, T): each of the queries ``first`` and following with the keys up to its own."""
    for j in range(0, first + rows, PANEL):
        for r in range(max(0, j - first) // ROWS * ROWS, rows, ROWS):
            width = min(PANEL, _round_up(first + r + ROWS - j, LANES))
            _multiply(_at(s, r, j), s.strides[0], _at(q, r, 0), q.strides[0], 4, _at(kt, 0, j), kt.strides[0], width, depth, True)


@njit(**COMPILE)
def _from_past(s, v, first, rows, width, y):
    """(rows, T) times (T, D), up to each query's own position."""
    for j in range(0, first + rows, PANEL):
        for r in range(max(0, j - first) // ROWS * ROWS, rows, ROWS):
            seen = min(PANEL, first + r + ROWS - j)
            _multiply(_at(y, r, 0), y.strides[0], _at(s, r, j), s.strides[0], 4, _at(v, j, 0), v.strides[0], width, seen, j == 0)


@njit(**COMPILE)
def _to_past(s, dy, first, rows, width, dv):
    """Adds (T, rows) times (rows, D): what keys and values get from the queries that see them."""
    for j in range(0, first + rows, ROWS):
        r = max(0, j - first)
        _multiply(_at(dv, j, 0), dv.strides[0], _at(s, r, j), 4, s.strides[0], _at(dy, r, 0), dy.strides[0], width, rows - r, False)


@njit(inline="always")
def _power(x):
    """2^x to 3e-7 of itself for x <= 0, zero below -127: 2^k 2^r with k = round(x), 2^r by a minimax polynomial of degree 5."""
    z = F(-127.0) if x < F(-127.0) else x  # in this order, what is no number stays none
    shifted = F(z + (ROUND + F(127.0)))  # its last bits are the exponent of 2^k
    r = z - (shifted - (ROUND + F(127.0)))
    p = F(1.327647196e-3) * r + F(9.675541503e-3)
    p = p * r + F(5.550713275e-2)
    p = p * r + F(2.402211972e-1)
    p = p * r + F(6.931469671e-1)
    p = p * r + F(1.000000072)
    return p * np.int32(shifted.view(np.int32) << np.int32(23)).view(np.float32)


@njit(**COMPILE)
def _highest(bits):
    """Maximum of floats by their bits read as integers: many are compared at a time, which for floats NaN forbids."""
    magnitude, highest = np.int32(2**31 - 1), np.int32(-(2**31))
    for j in range(len(bits)):
        highest = max(highest, bits[j] ^ ((bits[j] >> np.int32(31)) & magnitude))
    return np.int32(highest ^ ((highest >> np.int32(31)) & magnitude)).view(np.float32)


@njit(**COMPILE)
def _forget_future(row, seen):
    """-inf in whatever a tile may have computed beyond what is seen; returns the number of whole vectors' columns that hold the past."""
    for j in range(LANES + ROWS):
        row[seen + j] = -np.inf
    return _round_up(seen, LANES)


@njit(**COMPILE, fastmath={"contract", "reassoc"})
def _softmax(s, bits, first, rows, log_sums, inverse):
    """2^(s - max) in place, with ``bits`` those of s; the binary logarithm of its sum with max added, and the inverse of the sum."""
    _wide()
    for r in range(rows):
        row = s[r]
        n = _forget_future(row, first + r + 1)
        row, highest, total = row[:n], _highest(bits[r, :n]), F(0.0)
        for j in range(n):
            row[j] = _power(row[j] - highest)
            total += row[j]
        log_sums[first + r] = highest + F(LOG2_E * np.log(total))
        inverse[r] = F(1.0) / total


@njit(**COMPILE)
def attend(qkv, cos, sin, heads, kv_heads, out, log_sums, start, stop):
    """(B, T, (H + K) D + K D_v), (T, D/2) twice -> (B, T, H D_v) and (B, H, T) binary logarithms of the softmax's sums; counts (B, K)."""
    length, dim, v_dim, group = qkv.shape[1], 2 * cos.shape[1], out.shape[2] // heads, heads // kv_heads
    padded = length + STRIP
    k, kt, v, same = _scratch(padded, dim), _scratch(_round_up(dim, LANES), padded), _scratch(padded, v_dim), np.ones(length, F)
    q, s, y, inverse = _scratch(STRIP, dim), _scratch(STRIP, padded), _scratch(STRIP, v_dim), np.empty(STRIP, F)
    bits = s.view(np.int32)
    for n in range(start, stop):
        x, shared = qkv[n // kv_heads], n % kv_heads
        _turned(x, (heads + shared) * dim, cos, sin, F(1.0), k)
        _transposed(k, kt)
        _scaled(x, (heads + kv_heads) * dim + shared * v_dim, v_dim, same, v)
        for head in range(shared * group, (shared + 1) * group):
            for first in range(0, length, STRIP):
                last = min(first + STRIP, length)
                _turned(x[first:last], head * dim, cos[first:last], sin[first:last], F(LOG2_E * dim**-0.5), q)
                _past(q, kt, first, last - first, dim, s)
                _softmax(s, bits, first, last - first, log_sums[n // kv_heads, head], inverse)
                _from_past(s, v, first, last - first, v_dim, y)
                _scaled(y[: last - first], 0, v_dim, inverse, out[n // kv_heads, first:last, head * v_dim :])


@njit(**COMPILE, fastmath={"contract", "reassoc"})
def _softmax_backward(s, dp, first, rows, log_sums, y, dy):
    """Scores and gradients of the probabilities become, in place, probabilities p = 2^(s - log sum) and p (dp - <y, dy>)."""
    _wide()
    for r in range(rows):
        row, log_sum, along = s[r], log_sums[first + r], F(0.0)
        n = _forget_future(row, first + r + 1)
        p, ds, y_row, dy_row = row[:n], dp[r, :n], y[r], dy[r]
        for j in range(len(y_row)):
            along += y_row[j] * dy_row[j]
        for j in range(n):
            p[j] = _power(p[j] - log_sum)
            ds[j] = p[j] * (ds[j] - along)


@njit(**COMPILE)
def attend_backward(qkv, cos, sin, heads, kv_heads, out, log_sums, grad, d_qkv, start, stop):
    """The gradient of all of qkv from that of ``out``; arguments as of ``attend``."""
    length, dim, v_dim, group = qkv.shape[1], 2 * cos.shape[1], out.shape[2] // heads, heads // kv_heads
    padded, same, back = length + STRIP, np.ones(length, F), -sin
    k, kt, dk = _scratch(padded, dim), _scratch(_round_up(dim, LANES), padded), _scratch(padded, dim)
    v, vt, dv = _scratch(padded, v_dim), _scratch(_round_up(v_dim, LANES), padded), _scratch(padded, v_dim)
    q, dq, dy, s, dp = _scratch(STRIP, dim), _scratch(STRIP, dim), _scratch(STRIP, v_dim), _scratch(STRIP, padded), _scratch(STRIP, padded)
    for n in range(start, stop):
        x, dx, shared = qkv[n // kv_heads], d_qkv[n // kv_heads], n % kv_heads
        k_first, v_first = (heads + shared) * dim, (heads + kv_heads) * dim + shared * v_dim
        _turned(x, k_first, cos, sin, F(1.0), k)
        _transposed(k, kt)
        _scaled(x, v_first, v_dim, same, v)
        _transposed(v, vt)
        dk[:], dv[:] = F(0.0), F(0.0)
        for head in range(shared * group, (shared + 1) * group):
            for first in range(0, length, STRIP):
                last = min(first + STRIP, length)
                rows, y = last - first, out[n // kv_heads, first:last, head * v_dim : (head + 1) * v_dim]
                if rows < STRIP:  # no rows of another strip beside those of the last one
                    dy[:], q[:] = F(0.0), F(0.0)
                _turned(x[first:last], head * dim, cos[first:last], sin[first:last], F(LOG2_E * dim**-0.5), q)
                _scaled(grad[n // kv_heads, first:last], head * v_dim, v_dim, same, dy)
                _past(q, kt, first, rows, dim, s)
                _past(dy, vt, first, rows, v_dim, dp)
                _softmax_backward(s, dp, first, rows, log_sums[n // kv_heads, head], y, dy)
                _from_past(dp, k, first, rows, dim, dq)
                _to_past(s, dy, first, rows, v_dim, dv)
                _to_past(dp, q, first, rows, dim, dk)
                _turned(dq[:rows], 0, cos[first:last], back[first:last], F(dim**-0.5), dx[first:last, head * dim :])
        _turned(dk[:length], 0, cos, back, F(1.0) / LOG2_E, dx[:, k_first:])  # q came with this factor
        _scaled(dv[:length], 0, v_dim, same, dx[:, v_first:])
