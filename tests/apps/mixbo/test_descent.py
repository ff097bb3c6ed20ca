"""The local search on the simplex, against a convex solver and at its edges."""

import numpy as np
import pytest
from scipy.optimize import minimize

from src.apps.mixbo.constants import MASS_MOVED
from src.apps.mixbo.descent import descend
from src.apps.mixbo.options import SpaceConfig
from src.apps.mixbo.space import MixtureSpace


def bowl(centre):
    return lambda w: ((np.atleast_2d(w) - centre) ** 2 @ np.arange(1.0, centre.size + 1))


@pytest.mark.parametrize("seed", range(8))
def test_finds_the_minimum_of_a_bowl_on_a_capped_simplex_to_its_finest_step(seed):
    rng = np.random.default_rng(seed)
    space = MixtureSpace.from_config(SpaceConfig(floors={"a": 0.05}, caps={"b": 0.4}))
    score = bowl(rng.dirichlet(np.full(space.dim, 0.5)))
    found = descend(space, score, space.centroid())
    bounds = [(0.05, 1), (0, 0.4), (0, 1), (0, 1), (0, 1)]
    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}
    exact = minimize(lambda w: score(w)[0], space.centroid(), method="SLSQP", bounds=bounds, constraints=sums, options={"ftol": 1e-12})
    assert found.sum() == pytest.approx(1) and all(low - 1e-12 <= w <= high + 1e-12 for w, (low, high) in zip(found, bounds, strict=True))
    np.testing.assert_allclose(found, exact.x, atol=2 * MASS_MOVED[-1])


def test_never_ends_above_its_start_and_leaves_a_flat_score_alone():
    space = MixtureSpace.from_config(SpaceConfig())
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, space.dim))

    def rough(w):
        return np.sin(20 * np.atleast_2d(w) @ directions.T).sum(axis=1)

    for start in space.sample(10, rng):
        assert rough(descend(space, rough, start))[0] <= rough(start)[0]
        np.testing.assert_array_equal(descend(space, lambda w: np.zeros(len(w)), start), start)
