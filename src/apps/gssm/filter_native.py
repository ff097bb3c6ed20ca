"""The compiled forward filter. Imported on first use (see ``sampler_native``); ``filter`` builds its arguments.

Sequences (*lanes*) advance in lock-step and are the last axis of every array, so that inner loops run over contiguous memory whatever
the shape of the latents. The belief has shape (states, lanes) and is updated in place.
"""

from __future__ import annotations

import numpy as np
from numba import njit

TINY = 1e-150  # less likely states and transitions count as impossible; products of two stay clear of slow denormal numbers
WIDE = 16  # from this many states on, a latent's kernel rows are long enough to be the inner loop themselves


@njit(nogil=True, cache=True)
def clear(array, first, last):  # type: ignore[no-untyped-def]
    """Zero rows ``first`` to ``last - 1``. (Slice assignments would do, and take seconds to compile.)"""
    for i in range(first, last):
        for j in range(array.shape[1]):
            array[i, j] = 0.0


@njit(nogil=True, cache=True)
def propagate_narrow(belief, table, rows, first_row, nb_rows, offset, post, dim, own, kernel, old):  # type: ignore[no-untyped-def]
    """Replace one latent's axis: belief[p, z', q] = sum_z belief[p, z, q] table[rows[p] + offset + z own + z'], lane by lane.

    ``kernel`` (>= 4 ceil(dim / 4) dim, lanes) and ``old`` are scratch; the sum runs over four old states at a time, padded with zeros.
    """
    lanes = belief.shape[1]
    padded = (dim + 3) // 4 * 4
    clear(kernel, dim * dim, padded * dim)
    clear(old, dim, padded)
    loaded = -1
    for p in range(nb_rows):
        row = rows[first_row + p]
        if row != loaded:
            loaded = row
            for z in range(dim):
                for new in range(dim):
                    for lane in range(lanes):
                        kernel[z * dim + new, lane] = table[row + offset[lane] + z * own + new]
        for q in range(post):
            first = p * dim * post + q
            for z in range(dim):
                for lane in range(lanes):
                    old[z, lane] = belief[first + z * post, lane]
            for new in range(dim):
                into = first + new * post
                for z in range(0, padded, 4):
                    k0, k1, k2, k3 = z * dim + new, (z + 1) * dim + new, (z + 2) * dim + new, (z + 3) * dim + new
                    for lane in range(lanes):
                        total = kernel[k0, lane] * old[z, lane] + kernel[k1, lane] * old[z + 1, lane]
                        total += kernel[k2, lane] * old[z + 2, lane] + kernel[k3, lane] * old[z + 3, lane]
                        total += 0.0 if z == 0 else belief[into, lane]
                        belief[into, lane] = 0.0 if total < TINY else total


@njit(nogil=True, cache=True)
def propagate_wide(belief, table, rows, first_row, nb_rows, offset, post, dim, own, new):  # type: ignore[no-untyped-def]
    """``propagate_narrow`` with the kernel's rows as inner loop; ``new`` (lanes, >= dim) is scratch."""
    lanes = belief.shape[1]
    for p in range(nb_rows):
        for q in range(post):
            first = p * dim * post + q
            clear(new, 0, lanes)
            for z in range(dim):
                for lane in range(lanes):
                    weight = belief[first + z * post, lane]
                    row = rows[first_row + p] + offset[lane] + z * own
                    if weight != 0.0:
                        for k in range(dim):
                            new[lane, k] += weight * table[row + k]
            for k in range(dim):
                for lane in range(lanes):
                    belief[first + k * post, lane] = 0.0 if new[lane, k] < TINY else new[lane, k]


@njit(nogil=True, cache=True)
def observe(belief, emission, group, context, token, total):  # type: ignore[no-untyped-def]
    """Condition on each lane's ``token``; its probability goes to ``total`` (lanes,)."""
    lanes = belief.shape[1]
    for lane in range(lanes):
        total[lane] = 0.0
    for s in range(belief.shape[0]):
        for lane in range(lanes):
            weight = belief[s, lane] * emission[context[lane], group[s], token[lane]]
            belief[s, lane] = weight
            total[lane] += weight
    normalise(belief, total)


@njit(nogil=True, cache=True)
def observe_first(belief, prior, emission, group, token, total):  # type: ignore[no-untyped-def]
    """The belief after a first token whose past is only known by its law ``prior`` (contexts, states)."""
    for lane in range(belief.shape[1]):
        total[lane] = 0.0
    for s in range(belief.shape[0]):
        for lane in range(belief.shape[1]):
            weight = 0.0
            for context in range(prior.shape[0]):
                weight += prior[context, s] * emission[context, group[s], token[lane]]
            belief[s, lane] = weight
            total[lane] += weight
    normalise(belief, total)


@njit(nogil=True, cache=True, error_model="numpy")
def normalise(belief, total):  # type: ignore[no-untyped-def]
    """Divide by ``total``, and drop tiny weights; there is no law after an impossible token (nan)."""
    for s in range(belief.shape[0]):
        for lane in range(belief.shape[1]):
            weight = belief[s, lane] / total[lane]
            belief[s, lane] = 0.0 if weight < TINY else weight


@njit(nogil=True, cache=True)
def predict(belief, emission, group, context, pooled, ahead):  # type: ignore[no-untyped-def]
    """Law of the next token, ``ahead`` (V, lanes). ``pooled`` (groups, lanes) is scratch."""
    lanes = belief.shape[1]
    clear(ahead, 0, ahead.shape[0])
    if emission.shape[0] > 1:  # every lane has an emission of its own
        for s in range(belief.shape[0]):
            for v in range(ahead.shape[0]):
                for lane in range(lanes):
                    ahead[v, lane] += belief[s, lane] * emission[context[lane], group[s], v]
        return
    clear(pooled, 0, pooled.shape[0])
    for s in range(belief.shape[0]):
        for lane in range(lanes):
            pooled[group[s], lane] += belief[s, lane]
    fours = emission.shape[1] // 4 * 4
    for g in range(0, fours, 4):
        for v in range(ahead.shape[0]):
            e0, e1, e2, e3 = emission[0, g, v], emission[0, g + 1, v], emission[0, g + 2, v], emission[0, g + 3, v]
            for lane in range(lanes):
                total = e0 * pooled[g, lane] + e1 * pooled[g + 1, lane]
                ahead[v, lane] += total + (e2 * pooled[g + 2, lane] + e3 * pooled[g + 3, lane])
    for g in range(fours, emission.shape[1]):
        for v in range(ahead.shape[0]):
            for lane in range(lanes):
                ahead[v, lane] += emission[0, g, v] * pooled[g, lane]


@njit(nogil=True, cache=True)
def marginals(belief, dims, out):  # type: ignore[no-untyped-def]
    """Marginal of each latent, one after the other, in ``out`` (sum of dims, lanes)."""
    clear(out, 0, out.shape[0])
    first, post = 0, belief.shape[0]
    for i in range(dims.shape[0]):
        post //= dims[i]
        for s in range(belief.shape[0]):
            row = first + s // post % dims[i]
            for lane in range(belief.shape[1]):
                out[row, lane] += belief[s, lane]
        first += dims[i]


@njit(nogil=True, cache=True)
def advance(belief, token, table, rows, first_row, token_offset, dims, own):  # type: ignore[no-untyped-def]
    """One step of all latents, in topological order: from z_{t-1} to z_t, given ``token`` (lanes,) at t-1."""
    lanes, states = belief.shape[1], belief.shape[0]
    widest = 1
    for dim in dims:
        widest = max(widest, dim)
    padded = (min(widest, WIDE) + 3) // 4 * 4
    kernel, old, new = np.empty((padded * padded, lanes)), np.empty((padded, lanes)), np.empty((lanes, widest))
    offset = np.empty(lanes, np.int64)
    post = states
    for i in range(dims.shape[0]):
        nb_rows = states // post
        post //= dims[i]
        for lane in range(lanes):
            offset[lane] = token_offset[i, token[lane]]
        if dims[i] < WIDE:
            propagate_narrow(belief, table, rows, first_row[i], nb_rows, offset, post, dims[i], own[i], kernel, old)
        else:
            propagate_wide(belief, table, rows, first_row[i], nb_rows, offset, post, dims[i], own[i], new)


@njit(nogil=True, cache=True)
def forward(  # type: ignore[no-untyped-def]
    tokens, prior, emission, group, context_of, table, rows, first_row, token_offset, dims, own, nll, entropy, predictive, beliefs
):
    """Run the filter over ``tokens`` (lanes, length); fill those outputs that are not empty. Arguments: see ``filter``."""
    lanes, length = tokens.shape
    belief = np.zeros((group.shape[0], lanes))
    for lane in range(lanes):
        belief[0, lane] = 1.0
    width = 0
    for dim in dims:
        width += dim
    pooled, ahead = np.empty((emission.shape[1], lanes)), np.empty((emission.shape[2], lanes))
    marginal, total = np.empty((width, lanes)), np.empty(lanes)
    token, context = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    for t in range(length):
        known = t > 0 or prior.shape[0] == 0
        if known:
            advance(belief, token, table, rows, first_row, token_offset, dims, own)
            for lane in range(lanes):
                context[lane] = context_of[token[lane]]
            if entropy.shape[0] > 0 or predictive.shape[0] > 0:
                predict(belief, emission, group, context, pooled, ahead)
                for lane in range(predictive.shape[0]):
                    for v in range(ahead.shape[0]):
                        predictive[lane, t, v] = ahead[v, lane]
                for lane in range(entropy.shape[0]):
                    entropy[lane, t] = 0.0
                    for v in range(ahead.shape[0]):
                        if ahead[v, lane] > 0.0:
                            entropy[lane, t] -= ahead[v, lane] * np.log(ahead[v, lane])
        for lane in range(lanes):
            token[lane] = tokens[lane, t]
        if known:
            observe(belief, emission, group, context, token, total)
        else:
            observe_first(belief, prior, emission, group, token, total)
        for lane in range(nll.shape[0]):
            nll[lane, t] = -np.log(total[lane])
        if beliefs.shape[0] > 0:
            marginals(belief, dims, marginal)
        for lane in range(beliefs.shape[0]):
            for k in range(width):
                beliefs[lane, t, k] = marginal[k, lane]
