"""Priors of the surrogate's hyper-parameters: the one place of its tuned constants.

All are Gaussian on an unconstrained scale (logs of positive quantities). Outputs are scaled so that, once the trend in size and
step is taken out, their sd is 1; mixtures enter as sqrt(w), a quarter sphere of diameter sqrt(2); size and step are logs scaled to
[0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log


@dataclass(frozen=True)
class Prior:
    """Gaussian on an unconstrained parameter; fits start at the mean unless ``start`` says otherwise."""

    mean: float
    sd: float
    start: float | None = None


ARD_UP_TO = 8  # domains; with more, one length scale for all: a study has too few runs to learn one each

MIXTURE_LENGTH = Prior(log(0.8), 0.8)  # between "each corner is its own world" (.2) and "nearly linear" (3)
FIDELITY_LENGTH = Prior(log(0.7), 0.7)  # residuals of a trend vary over about the range of the grid
DOMAIN_LENGTH = Prior(0.0, 0.5)  # log ratio of a domain's length scale to the common one
SECOND_LENGTH = Prior(log(0.7), 0.5)  # of the second shared function, relative to the first: only its scale is free
AMPLITUDE = Prior(0.0, 1.0)  # log sd of a mixture effect free to change with size and step
# Log of how the sd over mixtures at the target compares with that at the smallest size, and at the first step. Accuracies start on a
# plateau: with a constant sd the intervals were far too narrow where it ends.
GROWTH = Prior(0.0, 0.5)
# Signed loadings l_1 = c + a1 (1 - s) + a2 (1 - t) and l_2 = b1 (1 - s) + b2 (1 - t) of the two functions shared by all fidelities.
# Symmetric about 0, so that a cheap fidelity may be anti-correlated with the target. Shrunk, and started near 0: a line through the
# loadings of small sizes says little about the target's, and with sd 1 the fit extrapolated with far too narrow intervals (synthetic).
COMMON = Prior(0.0, 0.5, start=0.2)
DRIFT = Prior(0.0, 0.3)
LOADING_2 = Prior(0.0, 0.3, start=0.05)
# Variance of what each size has of its own, as a share of the mixture effect's, and as smooth over mixtures. Fixed: below the target
# nothing can teach it, and without it intervals of differences at the target were far too narrow and knowledge gradients fell to 1e-90.
# Synthetic problems, geometric mean of the regret at 3 and 5 full runs: .0090 and .0056 with .1, .0071 and .0047 with .2, .0063 and .0044
# with .4, the same from 8 on.
DISCREPANCY = 0.2
DISCREPANCY_LENGTH = 0.5  # in scaled log size: sizes a quarter of the range apart share .6 of it
LEVEL = Prior(log(0.3), 1.0)  # sd of the departure from the trend that all mixtures share (a learning curve is not a line in log step)
RUN = Prior(log(0.02), 1.0)  # sd of a run's own offset (its training seed)
RUN_LENGTH = 0.5  # correlation of that offset along the curve, in scaled log steps; fixed: too few points per run to learn it
NOISE = Prior(log(0.02), 1.0)  # sd of one evaluation, above the floor
TREND_SD = 10.0  # coefficients of the trend, integrated out: nearly flat
LAW_EXPONENT = Prior(log(1.0), 0.5)  # exponents times the log range of size or step: .34 * log(50) = 1.3, .28 * log(16) = .8
ITERATIONS = 60  # of L-BFGS; the posterior of the hyper-parameters is flat long before
TOLERANCE = 1e-6  # relative, of the log posterior (hundreds to thousands of nats): the next .001 nats change no decision
