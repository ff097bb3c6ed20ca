"""The compiled parts of ``estimate``. Imported on first use (see ``sampler_native``)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def row_of(i, p, slots, base, first_input, source, stride):  # type: ignore[no-untyped-def]
    """First entry of the kernel row that node i reads in particle p."""
    row = base[i]
    for k in range(first_input[i], first_input[i + 1]):
        row += stride[k] * slots[source[k], p]
    return row


@njit(nogil=True, cache=True)
def probability(row, k, dim, table, shared, prior, counts, p):  # type: ignore[no-untyped-def]
    """Of outcome k in a kernel row: from the table, or, for a row drawn per sequence, posterior predictive given the particle's counts.

    Rows from ``shared`` on are drawn per sequence; ``prior`` (dim,) is their Dirichlet concentration.
    """
    if row < shared:
        return table[row + k]
    total = 0.0
    for j in range(dim):
        total += prior[j] + counts[p, row - shared + j]
    return (prior[k] + counts[p, row - shared + k]) / total


@njit(nogil=True, cache=True)
def draw(row, dim, table, shared, prior, counts, p):  # type: ignore[no-untyped-def]
    """An outcome of a kernel row."""
    left = np.random.random()
    for k in range(dim - 1):
        left -= probability(row, k, dim, table, shared, prior, counts, p)
        if left < 0.0:
            return k
    return dim - 1


@njit(nogil=True, cache=True)
def digits_of(token, dims, nb_latents, out):  # type: ignore[no-untyped-def]
    """States of the observed nodes that spell ``token``."""
    for i in range(dims.shape[0] - 1, nb_latents - 1, -1):
        out[i] = token % dims[i]
        token //= dims[i]


@njit(nogil=True, cache=True)
def emissions(p, digits, slots, table, shared, prior, counts, base, dims, first_input, source, stride, nb_latents, emission):  # type: ignore[no-untyped-def]
    """Probability of the observed nodes' new states ``digits`` given each joint state of the latents, into ``emission`` (states,).

    Leaves particle p's latents in the last joint state.
    """
    for s in range(emission.shape[0]):
        set_digits(s, nb_latents, p, slots, dims)
        emission[s] = 1.0
        for i in range(nb_latents, dims.shape[0]):
            row = row_of(i, p, slots, base, first_input, source, stride)
            emission[s] *= probability(row, digits[i], dims[i], table, shared, prior[i], counts, p)


@njit(nogil=True, cache=True)
def next_states(p, slots, table, shared, prior, counts, base, dims, first_input, source, stride, nb_latents, joint):  # type: ignore[no-untyped-def]
    """Law of particle p's joint latent state one step on, into ``joint`` (states,)."""
    size = 1
    joint[0] = 1.0
    law = np.empty(prior.shape[1])
    for i in range(nb_latents):  # law of latents 0..i, in place from the back; the states are the digits of the index
        own, loaded = slots[i, p], -1
        for s in range(size - 1, -1, -1):
            set_digits(s, i, p, slots, dims)
            slots[i, p] = own
            row = row_of(i, p, slots, base, first_input, source, stride)
            if row != loaded:
                loaded = row
                for z in range(dims[i]):
                    law[z] = probability(row, z, dims[i], table, shared, prior[i], counts, p)
            for z in range(dims[i] - 1, -1, -1):
                joint[s * dims[i] + z] = joint[s] * law[z]
        size *= dims[i]


@njit(nogil=True, cache=True)
def choose(joint, emission):  # type: ignore[no-untyped-def]
    """Sum of ``joint * emission``, and an index drawn in proportion to it."""
    total = 0.0
    for s in range(joint.shape[0]):
        total += joint[s] * emission[s]
    left = np.random.random() * total
    for s in range(joint.shape[0]):
        left -= joint[s] * emission[s]
        if left < 0.0:
            return total, s
    return total, joint.shape[0] - 1


@njit(nogil=True, cache=True)
def set_digits(number, length, p, slots, dims):  # type: ignore[no-untyped-def]
    """Write the first ``length`` latents' states, of which ``number`` is the mixed-radix number."""
    for i in range(length - 1, -1, -1):
        slots[i, p] = number % dims[i]
        number //= dims[i]


@njit(nogil=True, cache=True)
def resample(weight, slots, counts):  # type: ignore[no-untyped-def]
    """Systematic resampling: particles in proportion to their weights, which become equal."""
    size = weight.shape[0]
    chosen = np.empty(size, np.int64)
    position, reached, p = np.random.random(), weight[0] * size, 0
    for q in range(size):
        while reached < position + q and p < size - 1:
            p += 1
            reached += weight[p] * size
        chosen[q] = p
    slots[:] = slots[:, chosen]
    counts[:] = counts[chosen]
    weight[:] = 1.0 / size


@njit(nogil=True, cache=True)
def predictor_losses(  # type: ignore[no-untyped-def]
    tokens, particles, defence, vocab, table, shared, nb_counts, prior, base, dims, first_input, source, stride,
    nb_latents, nb_previous, seed, joint, own_emission, losses,
):  # fmt: skip
    """-log of a particle predictor's probability of each token of one sequence, into ``losses`` (T,).

    ``joint``: scratch of as many entries as joint latent states, to sum over all next states of a particle; empty: draw one without
    looking. ``own_emission``: whether an observed node's kernel is drawn per sequence, so that particles differ in it.
    """
    np.random.seed(seed)
    nodes = dims.shape[0]
    slots = np.zeros((nodes + nb_previous, particles), np.int64)
    counts = np.zeros((particles, nb_counts), np.float32)
    weight, emission = np.full(particles, 1.0 / particles), np.empty(joint.shape[0])
    digits, old = np.zeros(nodes, np.int64), np.zeros((nb_latents, particles), np.int64)
    for t in range(tokens.shape[0]):
        digits_of(tokens[t], dims, nb_latents, digits)
        for j in range(nb_previous):
            slots[nodes + j] = slots[nb_latents + j]
        old[:] = slots[:nb_latents]
        total = 0.0
        for p in range(particles):
            if joint.shape[0] > 0:
                if own_emission or p == 0:
                    emissions(
                        p, digits, slots, table, shared, prior, counts, base, dims, first_input, source, stride, nb_latents, emission
                    )
                    slots[:nb_latents, p] = old[:, p]
                next_states(p, slots, table, shared, prior, counts, base, dims, first_input, source, stride, nb_latents, joint)
                likelihood, chosen = choose(joint, emission)
                weight[p] *= likelihood
                set_digits(chosen, nb_latents, p, slots, dims)
            else:
                for i in range(nb_latents):
                    row = row_of(i, p, slots, base, first_input, source, stride)
                    slots[i, p] = draw(row, dims[i], table, shared, prior[i], counts, p)
                for i in range(nb_latents, nodes):
                    row = row_of(i, p, slots, base, first_input, source, stride)
                    weight[p] *= probability(row, digits[i], dims[i], table, shared, prior[i], counts, p)
            if nb_counts > 0:
                count(p, digits, old, slots, shared, counts, base, dims, first_input, source, stride, nb_latents)
            for i in range(nb_latents, nodes):
                slots[i, p] = digits[i]
            total += weight[p]
        losses[t] = -np.log((1.0 - defence) * total + defence / vocab)
        squares = 0.0
        for p in range(particles):
            weight[p] = weight[p] / total if total > 0.0 else 1.0 / particles
            squares += weight[p] ** 2
        if squares * particles > 2.0:  # effective sample size below half
            resample(weight, slots, counts)


@njit(nogil=True, cache=True)
def count(p, digits, old, slots, shared, counts, base, dims, first_input, source, stride, nb_latents):  # type: ignore[no-untyped-def]
    """Add the step that particle p has just made to the counts of the rows that are drawn per sequence."""
    for i in range(dims.shape[0]):
        new = digits[i]
        if i < nb_latents:  # its kernel was read at its old state
            new, slots[i, p] = slots[i, p], old[i, p]
        row = row_of(i, p, slots, base, first_input, source, stride)
        if row >= shared:
            counts[p, row - shared + new] += 1
        if i < nb_latents:
            slots[i, p] = new


@njit(nogil=True, cache=True)
def oracle_entropy(  # type: ignore[no-untyped-def]
    tokens, latents, particles, vocab, table, base, dims, first_input, source, stride, nb_latents, nb_previous, seed, entropy
):
    """Entropy of the next token given the true previous states, its law averaged over ``particles`` draws of the new latents."""
    np.random.seed(seed)
    nodes, shared = dims.shape[0], table.shape[0]
    slots = np.zeros((nodes + nb_previous, 1), np.int64)
    none, prior = np.zeros((1, 0), np.float32), np.zeros(1)
    digits, law, offset = np.zeros(nodes, np.int64), np.empty(vocab), np.zeros(nodes, np.int64)
    for t in range(tokens.shape[0]):
        law[:] = 0.0
        for _ in range(particles):
            for i in range(nodes):
                slots[i, 0] = 0 if t == 0 else latents[t - 1, i] if i < nb_latents else digits[i]
            for j in range(nb_previous):
                slots[nodes + j, 0] = slots[nb_latents + j, 0]
            for i in range(nodes):
                offset[i] = row_of(i, 0, slots, base, first_input, source, stride)
                if i < nb_latents:
                    slots[i, 0] = draw(offset[i], dims[i], table, shared, prior, none, 0)
            for token in range(vocab):
                product, rest = 1.0 / particles, token
                for i in range(nodes - 1, nb_latents - 1, -1):
                    product *= table[offset[i] + rest % dims[i]]
                    rest //= dims[i]
                law[token] += product
        entropy[t] = 0.0
        for token in range(vocab):
            if law[token] > 0.0:
                entropy[t] -= law[token] * np.log(law[token])
        digits_of(tokens[t], dims, nb_latents, digits)
