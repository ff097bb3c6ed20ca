"""Tuned constants that are not options: priors of the surrogate's hyper-parameters, its fit, and the search for candidates.

All priors are Gaussian on an unconstrained scale (logs of positive quantities). Outputs are scaled so that the mixture's effect has unit
variance (``fitting.scaling``); mixtures enter as sqrt(w + 1 %), nearly a quarter sphere of diameter sqrt(2); size and step are logs
scaled to [0, 1].

Lengths, amplitude and the loading that all fidelities share are held near their means. Left free, a study's few mixtures always found
lengths at which every size is nearly the same smooth function, and what the target has of its own could no more be learned there.
Synthetic problems (30 studies, mixtures as sqrt(w) then), geometric mean of the regret at 2, 4, 6, 8 and 10 full runs: .0073, .0037,
.0020, .0012, .0009 so, and .0112, .0089, .0062, .0056, .0043 with free ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log


@dataclass(frozen=True)
class Prior:
    """Gaussian on an unconstrained parameter. Fits start at the mean; with ``start``, of a parameter whose sign changes nothing, there."""

    mean: float
    sd: float
    start: float | None = None


ARD_UP_TO = 8  # domains; with more, one length scale for all: a study has too few runs to learn one each

# Shares far below this are alike. A domain is learnt from the others too, and in the data mixing laws of Ye et al. 2024 a loss is smooth in
# its share down to none at all; sqrt alone has an infinite slope there, and an inch from a corner looked like another, maybe better, place.
SHARE = 0.01
MIXTURE_LENGTH = Prior(log(0.8), 0.15)  # between "each corner is its own world" (.2) and "nearly linear" (3)
FIDELITY_LENGTH = Prior(log(0.7), 0.15)  # two sizes at the ends of the grid agree by exp(-1): small ones show where, not what
JOINT_LENGTH = Prior(log(0.7), 0.7)  # of size and step in one Matern over everything, where it says how fast the trend bends too
DOMAIN_LENGTH = Prior(0.0, 0.5)  # log ratio of a domain's length scale to the common one
SECOND_LENGTH = Prior(log(0.7), 0.5)  # of the second shared function, relative to the first: only its scale is free
AMPLITUDE = Prior(0.0, 0.2)  # log sd of a mixture effect free to change with size and step
# Log of how the sd over mixtures at the target compares with that at the smallest size, and at the first step. Accuracies start on a
# plateau: with a constant sd the intervals were far too narrow where it ends.
GROWTH = Prior(0.0, 0.5)
# Signed loadings l_1 = c + a1 (1 - s) + a2 (1 - t) and l_2 = b1 (1 - s) + b2 (1 - t) of the two functions shared by all fidelities.
# Symmetric about 0, so that a cheap fidelity may be anti-correlated with the target. Shrunk, and started near 0: a line through the
# loadings of small sizes says little about the target's, and with sd 1 the fit extrapolated with far too narrow intervals (synthetic).
COMMON = Prior(0.0, 0.1, start=0.2)
DRIFT = Prior(0.0, 0.3)
LOADING_2 = Prior(0.0, 0.3, start=0.05)
# Log sd of the departure from the trend that all mixtures share (a learning curve is not a line in log step), in sds of the effect: wide.
# Too small a prior made the mixture kernel take it over with a length of 7, an optimum 5 to 15 nats below the one now found from any start.
LEVEL = Prior(2.0, 3.0)
RUN = Prior(log(0.02), 1.0)  # sd of a run's own offset (its training seed)
RUN_LENGTH = 0.5  # correlation of that offset along the curve, in scaled log steps; fixed: too few points per run to learn it
NOISE = Prior(log(0.02), 1.0)  # sd of one evaluation, above the floor
TREND_SD = 100.0  # coefficients of the trend, integrated out: nearly flat
LAW_EXPONENT = Prior(log(1.0), 0.5)  # exponents times the log range of size or step: .34 * log(50) = 1.3, .28 * log(16) = .8
ITERATIONS = 60  # of L-BFGS; the posterior of the hyper-parameters is flat long before
TOLERANCE = 1e-5  # relative, of the log posterior (hundreds to thousands of nats): the next .01 nats change no decision

# Sds by which a value may miss its prediction before the hyper-parameters are fitted anew at once. Losses stay below 5 (synthetic problems;
# emulator: 7); an accuracy that leaves its plateau at chance misses by 40 to 100, and predictions did until the next fit.
SURPRISE = 10.0

# Candidates: Dirichlet concentrations of the pool (inside, near faces and corners, near the centroid), and moves of the local searches.
CONCENTRATIONS = (1.0, 0.3, 3.0)
MASS_MOVED = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)  # between two domains: from coarse to the finest share that matters
MOVES = 12  # at most with each of them, for the answer
POOL_MOVES = 6  # ... for the pool: its searches run at every suggestion, and its best need not be exact
AROUND = (0.05, 0.02)  # mass moved around what such a search finds, so that the acquisition may prefer a neighbour

UNTESTED = 4  # times as cautious while nothing was tested at the target: all that is said of it is extrapolated
