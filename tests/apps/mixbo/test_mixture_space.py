"""The simplex with floors and caps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from src.apps.mixbo.options import SpaceConfig
from src.apps.mixbo.space import MixtureSpace
from src.nanollama.config import ConfigError


def space(floors: dict[str, float] | None = None, caps: dict[str, float] | None = None, domains: str = "abcde") -> MixtureSpace:
    return MixtureSpace.from_config(SpaceConfig(tuple(domains), floors or {}, caps or {}))


@st.composite
def boxes(draw: st.DrawFn) -> MixtureSpace:
    low = [draw(st.floats(0, 0.2)) for _ in range(4)]
    high = [min(1.0, value + draw(st.floats(0.05, 1.0))) for value in low]
    if sum(high) < 1.01:
        high[0] = 1.0
    return space(dict(zip("abcd", low, strict=True)), dict(zip("abcd", high, strict=True)), "abcd")


@settings(max_examples=40, deadline=None)
@given(boxes(), st.integers(0, 1000))
def test_every_mixture_made_is_valid(box: MixtureSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = [box.corners(), box.centroid()[None], box.sample(8, rng), box.sample(8, rng, 0.3), box.project(rng.normal(size=(8, 4)))]
    made.append(box.transfers(box.centroid(), (0.3, 0.01)))
    for w in np.vstack(made):
        np.testing.assert_allclose(box.validate(w), w, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(boxes(), st.integers(0, 1000))
def test_projection_is_the_nearest_point(box: MixtureSpace, seed: int) -> None:
    point = np.random.default_rng(seed).normal(0.25, 0.5, size=4)
    found = minimize(
        lambda w: ((w - point) ** 2).sum(),
        box.centroid(),
        jac=lambda w: 2 * (w - point),
        bounds=list(zip(box.floor, box.cap, strict=True)),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(4)},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(box.project(point)[0], found.x, atol=1e-5)


def test_corners_are_unit_vectors_without_caps_and_reach_the_cap_with_them() -> None:
    np.testing.assert_allclose(space().corners(), np.eye(5), atol=1e-9)
    capped = space(caps={"a": 0.4}, floors={"b": 0.1}).corners()
    assert capped[0, 0] == pytest.approx(0.4) and capped[2, 2] == pytest.approx(0.9)


def test_capped_sampler_is_uniform_on_the_polytope() -> None:
    box, rng = space(caps={"a": 0.3, "b": 0.5}, domains="abc"), np.random.default_rng(0)
    simplex = rng.dirichlet(np.ones(3), 40_000)
    kept = simplex[(simplex[:, 0] <= 0.3) & (simplex[:, 1] <= 0.5)]
    drawn = box.sample(8000, rng)
    np.testing.assert_allclose(drawn.mean(axis=0), kept.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(drawn.std(axis=0), kept.std(axis=0), atol=0.01)


@pytest.mark.parametrize(
    ("floors", "caps", "words"),
    [
        ({"a": 0.7, "b": 0.6}, {}, "floors sum"),
        ({}, dict.fromkeys("abcde", 0.1), "caps sum"),
        ({"a": 0.5}, {"a": 0.4}, "floor of 'a'"),
        ({"z": 0.1}, {}, "'z'"),
    ],
)
def test_bounds_that_leave_nothing_are_refused(floors: dict[str, float], caps: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        space(floors, caps)


@pytest.mark.parametrize("weights", [[0.5, 0.5, 0.5, 0, 0], [1.0, 0], [1.2, -0.2, 0, 0, 0], [float("nan"), 1, 0, 0, 0]])
def test_a_mixture_that_is_none_is_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        space().validate(weights)
