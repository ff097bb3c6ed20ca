"""Curves through growths: known laws come back, and what cannot be told is not told."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress

from src.apps.mixbo.growth.fits import power_law, slope


def law(span: float, sigma: float, points: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    n = np.geomspace(1e5, 1e5 * span, points)
    return n, 1.5 + 30 * n**-0.3 + sigma * np.random.default_rng(seed).standard_normal(points)


def test_a_power_law_comes_back_as_nonlinear_least_squares_finds_it() -> None:
    n, losses = law(30, 0.002)
    found = power_law(n, losses, np.full(20, 0.002))
    reference, _ = curve_fit(lambda x, e, a, alpha: e + a * (x / 1e5) ** -alpha, n, losses, p0=(1.0, 1.0, 0.3))
    assert found and not found.doubt
    assert (found.alpha, found.floor) == pytest.approx((reference[2], reference[0]), rel=2e-2)
    assert found.alphas[0] < 0.3 < found.alphas[1] and found.loss(1e6) == pytest.approx(1.5 + 30 * 1e6**-0.3, abs=0.01)


def test_intervals_hold_what_they_promise() -> None:
    """Nine in ten."""
    hits = 0
    for seed in range(100):
        n, losses = law(30, 0.003, seed=seed)
        found = power_law(n, losses, np.full(20, 0.003))
        assert found
        hits += found.alphas[0] <= 0.3 <= found.alphas[1]
    assert hits >= 82  # 90 +- 3


@pytest.mark.parametrize(("span", "sigma", "points", "why"), [(4, 1e-4, 20, "span"), (12, 0.1, 20, "alpha could"), (30, 1e-4, 4, "points")])
def test_what_cannot_be_told_is_not_told(span: float, sigma: float, points: int, why: str) -> None:
    n, losses = law(span, sigma, points)
    found = power_law(n, losses, np.full(points, sigma))
    assert found and why in found.doubt


def test_constants_are_not_negative_and_two_sizes_are_no_curve() -> None:
    n = np.geomspace(1e5, 1e7, 12)
    found = power_law(n, 40 * n**-0.5, np.zeros(12))
    assert found and found.floor == pytest.approx(0.0, abs=1e-3) and found.alpha == pytest.approx(0.5, rel=0.02)
    assert power_law([1e5, 1e6, 1e6], [2.0, 1.0, 1.1], [0.1] * 3) is None


def test_slopes_of_ratios_are_those_of_a_linear_regression() -> None:
    rng = np.random.default_rng(0)
    n = np.geomspace(1e4, 1e6, 15)
    ratios = 2 * n**0.25 * np.exp(0.05 * rng.standard_normal(15))
    found = slope("mlp / d", n, ratios)
    reference = linregress(np.log(n), np.log(ratios))
    assert found and found.slope == pytest.approx(reference.slope)
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(1.7709 * reference.stderr, rel=1e-3)  # t, 13 degrees, 95 %
    assert not found.doubt and slope("constant", n, np.ones(15)) is None
    few, wild = slope("few", n[:4], ratios[:4]), slope("wild", n, np.exp(3 * rng.standard_normal(15)))
    assert few and "points" in few.doubt and wild and "anything" in wild.doubt
