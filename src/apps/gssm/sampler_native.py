"""The compiled sampler. Imported on first use, because numba takes most of a second to import and seconds to compile (then cached).

A batch of sequences (*lanes*) advances in lock-step, so that the loops over lanes become vector instructions and the table look-ups
of different lanes overlap in memory. The number of lanes is a run-time argument on purpose: with a constant, short loops are unrolled
to scalar code before the vectoriser sees them, at twice the time.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from src.nanollama.arrays import Array

from .philox import MULTIPLIERS, ROUNDS, WEYL

M0, M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
W0, W1 = np.uint64(WEYL[0]), np.uint64(WEYL[1])
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
STEPS = 16  # steps whose random words are drawn at once; a multiple of 4, so that every chunk starts on a Philox block


@njit(nogil=True, cache=True)
def philox_block(counter, low, high, key0, key1, out):  # type: ignore[no-untyped-def]
    """``philox.philox4x32`` at counters (counter, low[l], high[l], 0) of each lane l; ``out``: (4, lanes)."""
    for lane in range(low.shape[0]):
        c0, c1, c2, c3 = uint64(counter), uint64(low[lane]), uint64(high[lane]), uint64(0)
        k0, k1 = uint64(key0), uint64(key1)
        for _ in range(ROUNDS):
            p0, p1 = c0 * M0, c2 * M1
            c0, c1, c2, c3 = ((p1 >> SHIFT) ^ c1 ^ k0) & LOW, p1 & LOW, ((p0 >> SHIFT) ^ c3 ^ k1) & LOW, p0 & LOW
            k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
        out[0, lane] = uint32(c0)
        out[1, lane] = uint32(c1)
        out[2, lane] = uint32(c2)
        out[3, lane] = uint32(c3)


@njit(nogil=True, cache=True, inline="always")
def step_node(table, offset, dim, bits, words, source, stride, k0, k1, slots, sequence, block, index, entry, out):  # type: ignore[no-untyped-def]
    """Draw one node's new state in every lane: find the row, load the alias entry, choose between slot and alias."""
    lanes = words.shape[0]
    wide = uint64(uint32(dim))
    for k in range(k0, k1, 4):
        a, b, c, d = slots[source[k]], slots[source[k + 1]], slots[source[k + 2]], slots[source[k + 3]]
        sa, sb, sc, sd = stride[k], stride[k + 1], stride[k + 2], stride[k + 3]
        if k == k0:
            for lane in range(lanes):
                column = uint32((uint64(words[lane]) * wide) >> SHIFT)
                row = a[lane] * sa + b[lane] * sb + c[lane] * sc + d[lane] * sd
                index[lane] = offset + sequence[lane] * block + row + column
        else:
            for lane in range(lanes):
                index[lane] += a[lane] * sa + b[lane] * sb + c[lane] * sc + d[lane] * sd
    for lane in range(lanes):
        entry[lane] = table[index[lane]]
    mask = uint32((uint64(1) << uint64(bits)) - uint64(1))
    for lane in range(lanes):
        product = uint64(words[lane]) * wide
        shared = entry[lane]
        out[lane] = uint32(product >> SHIFT) if (uint32(product) >> bits) < (shared >> bits) else shared & mask


@njit(nogil=True, cache=True)
def sample(  # type: ignore[no-untyped-def]
    table, base, per_sequence, dims, bits, first_input, source, stride, nb_latents, nb_previous, key0, key1, start, lanes, tokens, latents
):
    """Fill ``tokens`` (count, length) with sequences start, start + 1, ..; and ``latents`` (count, length, nb_latents) unless empty."""
    count, length = tokens.shape
    nodes = dims.shape[0]
    words = np.empty((STEPS * nodes + 4, lanes), np.uint32)
    slots = np.empty((nodes + nb_previous, lanes), np.uint32)
    index, entry = np.empty(lanes, np.uint32), np.empty(lanes, np.uint32)
    low, high, sequence = np.empty(lanes, np.uint32), np.empty(lanes, np.uint32), np.empty(lanes, np.uint32)
    chunk = np.empty((STEPS, lanes), np.uint32)
    want_latents = latents.shape[0] > 0
    for first in range(0, count, lanes):
        width = min(lanes, count - first)
        for lane in range(lanes):  # lanes beyond the last sequence repeat it and are not written
            sequence[lane] = first + min(lane, width - 1)
            number = uint64(start) + uint64(sequence[lane])
            low[lane], high[lane] = uint32(number & LOW), uint32(number >> SHIFT)
        for i in range(nodes):
            for lane in range(lanes):
                slots[i, lane] = 0
        for t0 in range(0, length, STEPS):
            steps = min(STEPS, length - t0)
            for block in range((steps * nodes + 3) // 4):
                philox_block(t0 * nodes // 4 + block, low, high, key0, key1, words[4 * block : 4 * block + 4])
            for t in range(steps):
                for j in range(nb_previous):
                    for lane in range(lanes):
                        slots[nodes + j, lane] = slots[nb_latents + j, lane]
                for i in range(nodes):
                    step_node(
                        table, base[i], dims[i], bits[i], words[t * nodes + i], source, stride, first_input[i],
                        first_input[i + 1], slots, sequence, per_sequence[i], index, entry, slots[i],
                    )  # fmt: skip
                for lane in range(lanes):
                    chunk[t, lane] = slots[nb_latents, lane]
                for i in range(nb_latents + 1, nodes):
                    for lane in range(lanes):
                        chunk[t, lane] = chunk[t, lane] * dims[i] + slots[i, lane]
                if want_latents:
                    for i in range(nb_latents):
                        for lane in range(width):
                            latents[first + lane, t0 + t, i] = slots[i, lane]
            for lane in range(width):
                for t in range(steps):
                    tokens[first + lane, t0 + t] = chunk[t, lane]


@njit(nogil=True, cache=True)
def build_alias(rows: Array, bits: int, packed: NDArray[np.uint32]) -> None:
    """Vose's construction, row by row. ``rows``: (R, K) probabilities; ``packed``: (R, K) entries, see ``alias``."""
    count, dim = rows.shape
    full = uint64(1) << uint64(32 - bits)
    weight = np.empty(dim, np.float64)
    small, large = np.empty(dim, np.int64), np.empty(dim, np.int64)
    for r in range(count):
        nb_small, nb_large = 0, 0
        for k in range(dim):
            weight[k] = rows[r, k] * dim
            packed[r, k] = uint32(((full - uint64(1)) << uint64(bits)) | uint64(k))  # alone in its slot, unless paired below
            if weight[k] < 1.0:
                small[nb_small] = k
                nb_small += 1
            else:
                large[nb_large] = k
                nb_large += 1
        while nb_small and nb_large:
            nb_small -= 1
            lesser, greater = small[nb_small], large[nb_large - 1]
            threshold = uint64(weight[lesser] * full + 0.5)
            if threshold < full:
                packed[r, lesser] = uint32((threshold << uint64(bits)) | uint64(greater))
            weight[greater] -= 1.0 - weight[lesser]
            if weight[greater] < 1.0:
                nb_large -= 1
                small[nb_small] = greater
                nb_small += 1
