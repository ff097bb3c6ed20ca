"""Acquisitions against brute force and BoTorch, and the reference implementation's defects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import SingleTaskGP
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from studies import SPACE, finish, problem, rescaled, simulator, spread_out, study

from src.apps.mixbo import constants
from src.apps.mixbo.design import anchors_at_target, full_run, initial_design
from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.options import SimulatorConfig
from src.apps.mixbo.problem import Fidelities, Problem
from src.apps.mixbo.records import Record, Suggestion
from src.apps.mixbo.strategies import kg as kg_module
from src.apps.mixbo.strategies import lookup
from src.apps.mixbo.strategies.ei import improvement
from src.apps.mixbo.strategies.envelope import gain_of_minimum
from src.apps.mixbo.strategies.grid import build
from src.apps.mixbo.strategies.improvement import log_ei
from src.apps.mixbo.strategies.kg import knowledge_gradient
from src.apps.mixbo.suggest import suggest
from src.apps.mixbo.surrogate import condition


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=8))
def test_gain_of_minimum_is_the_integral(lines: list[tuple[float, float]]) -> None:
    mean, slope = np.array(lines).T

    crossings = [(mean[i] - mean[j]) / (slope[j] - slope[i]) for i in range(len(mean)) for j in range(i) if abs(slope[i] - slope[j]) > 1e-9]
    ends = np.unique(np.clip([*range(-9, 10), *crossings], -9, 9))  # between them the integrand is smooth
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = np.diff(ends)[:, None] / 2
    z = ends[:-1, None] + half * (1 + nodes)
    lowest = (mean + slope * z[..., None]).min(axis=-1)
    expected = mean.min() - float((half * weights * lowest * norm.pdf(z)).sum())
    assert gain_of_minimum(mean, slope[None])[0] == pytest.approx(expected, abs=1e-7)


def test_gain_is_zero_without_information_and_tiny_gains_keep_their_order() -> None:
    mean = np.array([0.0, 1.0, 2.0])
    assert gain_of_minimum(mean, np.zeros((1, 3)))[0] == 0.0
    assert gain_of_minimum(mean, np.full((1, 3), 0.7))[0] == 0.0  # the same news for all mixtures
    small = gain_of_minimum(mean, np.array([[0.0, 0.05, 0.0], [0.0, 0.06, 0.0], [0.0, 0.07, 0.0]]))
    assert 0 < small[0] < small[1] < small[2] < 1e-40


@pytest.mark.parametrize("caution", [0.0, 0.7])
def test_defect_3_kg_equals_brute_force_fantasies(caution: float) -> None:
    objective = simulator(noise=0.01, run_noise=0.01)
    posed = problem(objective, strategy={"candidates": 3, "targets": 10, "caution": caution})
    records = spread_out(objective, {"20M": 6, "150M": 4, "1B": 2})
    grid = build(posed, records, np.random.default_rng(0))
    both_new = grid.steps < 8000  # as if the baseline had been run to the last step only
    gains = knowledge_gradient(grid, grid.basis, both_new).ravel()
    surrogate, rng = grid.surrogate, np.random.default_rng(1)
    joint = surrogate.covariance(grid.targets, grid.targets)
    ranked, alone = np.argsort(gains), ~np.tile(both_new, len(grid.mixtures))
    for row in (*ranked[alone[ranked]][-2:], *ranked[~alone[ranked]][-2:]):
        one = grid.basis[row : row + 1]
        cross, variance = surrogate.covariance(one, grid.targets)[0], surrogate.variance(one)[0]
        # Draw the truth at the targets and the observation together, then condition on the observation.
        both = np.block([[joint, cross[:, None]], [cross[None], np.array([[variance]])]])
        draws = rng.multivariate_normal(np.append(grid.targets.mean, one.mean), both, size=60_000, check_valid="ignore", method="eigh")
        error = surrogate.noise_variance + surrogate.run_variance * (one.inputs.run[0] < 0)  # a new run has an offset of its own
        error += 0.0 if alone[row] else surrogate.noise_variance + surrogate.run_variance  # and so has another that it is compared with
        seen = draws[:, -1] + rng.normal(0, error**0.5, len(draws))
        sd = np.sqrt(np.maximum(surrogate.variance(grid.targets) - cross**2 / (variance + error), 0.0))
        after = grid.targets.mean + np.outer((seen - one.mean[0]) / (variance + error), cross) + caution * sd
        now = grid.targets.mean + caution * np.sqrt(surrogate.variance(grid.targets))
        best = now.argmin()
        control = after[:, best] - (grid.targets.mean + caution * sd)[best]  # of mean zero: less scatter
        expected = (now[best] - after.min(axis=1) + control).mean()
        assert gains[row] == pytest.approx(expected, rel=0.05, abs=2e-5)


def test_near_the_end_a_full_run_of_the_best_is_worth_what_it_makes_sure() -> None:
    objective = simulator()
    records = _with_design(problem(objective), objective, spread_out(objective, {"20M": 6, "150M": 4}))
    bold, careful = (problem(objective, strategy={"caution": caution}) for caution in (0.0, 1.0))
    plain, averse = (build(posed, records, np.random.default_rng(0)) for posed in (bold, careful))
    best = int(np.argmin(plain.there.mean + 2 * (~plain.allowed_cf[:, plain.is_target][:, 0])))  # of those not tested there
    worth = [knowledge_gradient(grid, grid.basis)[best, grid.is_target].item() for grid in (plain, averse)]
    assert worth[1] > 2 * worth[0]


def test_a_continued_run_brings_its_offset_along() -> None:
    objective = simulator(noise=0.001, run_noise=0.05)
    posed = problem(objective)
    records: list[Record] = []
    for mixture in SPACE.corners():
        for _ in range(5):  # training seeds
            records.append(finish(objective, Suggestion(tuple(mixture.tolist()), "20M", 8000, flops=1.0), records))
    surrogate, last = condition(posed, records), records[-1]
    at = np.array([last.weights]), np.array([0]), np.array([8000.0])
    anew, again = (surrogate.grid(*at, runs=np.array([run])) for run in (-1, last.number))
    value = objective.metric.objective(last.curve[-1][1])
    assert surrogate.run_variance > 10 * surrogate.noise_variance
    assert abs(again.mean[0] - value) < abs(anew.mean[0] - value)
    assert surrogate.variance(again)[0] < surrogate.variance(anew)[0]
    assert surrogate.variance(again)[0] < 2 * surrogate.noise_variance


def test_kg_values_a_continued_run_with_its_offset_where_the_baseline_is_missing() -> None:
    objective = simulator(noise=0.001, run_noise=0.05, r_size=0.9)
    # A quarter of the candidates are kept for mixtures already tried; with a full run due, kg would go by expected improvement.
    posed = problem(objective, strategy={"candidates": 40, "caution": 0.0, "confirm": 0.0})
    records = [record for record in _with_design(posed, objective, []) if record.model_size != "1B"]
    again = [Suggestion(tuple(corner.tolist()), "20M", 8000, flops=1.0) for corner in SPACE.corners()] * 4  # they show the offset's size
    for asked in [*again, *(Suggestion(weights, "1B", 2000, flops=1.0) for weights in ((0.6, 0.1, 0.3), (0.45, 0.05, 0.5)))]:
        records.append(finish(objective, asked, records))
    weights = records[-1].weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kg_module, "choose", lambda grid, value_cf: (grid, value_cf))
        grid, value = kg_module.kg(posed, records, np.random.default_rng(0))
    c = int(np.abs(grid.mixtures - weights).sum(axis=1).argmin())
    f = int(np.flatnonzero((grid.sizes == 2) & (grid.steps == 4000))[0])
    run = int(grid.basis.inputs.run.reshape(grid.shape)[c, f])
    assert run == records[-1].number and grid.baseline_f[f] > 0
    at = grid.mixtures[c : c + 1], grid.sizes[f : f + 1], grid.steps[f : f + 1]
    one = replace(grid, mixtures=at[0], added_cf=grid.added_cf[c : c + 1, f : f + 1])
    bases = [grid.surrogate.grid(*at, runs=np.array([number])) for number in (run, -1)]
    with_offset, without = (knowledge_gradient(one, basis).item() / grid.price(grid.added_cf[c, f]) for basis in bases)
    assert abs(with_offset - without) > 1e-3 * with_offset  # far enough apart for the next line to tell which it is
    assert value[c, f] == pytest.approx(with_offset, rel=1e-6)


def test_defect_3_a_fidelity_independent_of_the_target_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "TREND_SD", 0.0)  # the trend ties the levels of all fidelities together
    objective = simulator()
    posed = problem(objective, surrogate={"kernel": "product"})
    grid = build(posed, spread_out(objective, {"20M": 8, "1B": 3}), np.random.default_rng(0))
    kernel = grid.surrogate._kernel
    with torch.no_grad():
        kernel.theta[:, kernel.layout["fidelity_length"]] = np.log(0.01)  # no fidelity says anything about another
        kernel.theta[:, kernel.layout["run"]] = np.log(1e-9)  # nor does a run, seen at both
    apart = type(grid.surrogate)(posed, *_data(posed, grid.records), _fitted(grid))
    reference = grid.mixtures[0]
    basis = apart.grid(grid.mixtures, grid.sizes, grid.steps, reference)
    targets = apart.at_target(grid.targets.inputs.mixtures[grid.targets.inputs.mixture].numpy(), reference)
    gains = knowledge_gradient(replace(grid, surrogate=apart, targets=targets), basis)
    other = (grid.sizes < 2) | (grid.steps < 8000)
    assert gains[:, other].max() < 1e-12 and gains[:, ~other].max() > 1e-6


def _data(posed: object, records: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from src.apps.mixbo.surrogate import arrays

    return arrays(posed, records, (5, 2.0))  # type: ignore[arg-type]


def _fitted(grid: object) -> object:
    from src.apps.mixbo.fitting import Fitted, fit
    from src.apps.mixbo.surrogate import arrays

    x, y, _ = arrays(grid.problem, grid.records, (3, 4.0))  # type: ignore[attr-defined]
    original = fit(x[: 8 * 3], y[: 8 * 3], 3, grid.problem.surrogate)  # type: ignore[attr-defined]
    return Fitted(grid.surrogate._kernel, original.noise, original.shift, original.scale)  # type: ignore[attr-defined]


def test_log_ei_equals_botorch_and_stays_finite() -> None:
    x = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    y = -torch.sin(6 * x)
    model = SingleTaskGP(x, (y - y.mean()) / y.std(), outcome_transform=None)
    query = torch.linspace(0, 1, 23, dtype=torch.float64)[:, None]
    reference = LogExpectedImprovement(model, best_f=0.2)(query[:, None]).detach().numpy()
    posterior = model.posterior(query)
    ours = log_ei(-posterior.mean[:, 0].detach().numpy(), posterior.variance[:, 0].sqrt().detach().numpy(), -0.2)
    np.testing.assert_allclose(ours, reference, rtol=1e-6)
    far = log_ei(np.array([1.0, 1e3, 1e6]), np.ones(3), 0.0)
    assert np.all(np.isfinite(far)) and np.all(np.diff(far) < 0)


@pytest.mark.parametrize("name", ["kg", "ei", "ei_cost"])
def test_defect_1_the_units_of_the_metric_do_not_change_the_suggestion(name: str) -> None:
    objective = simulator()
    records = spread_out(objective, {"20M": 4, "150M": 4, "1B": 4})
    posed = problem(objective, strategy={"name": name, "design": 0}, surrogate={"noise_floor": 0.0})
    records = _with_design(posed, objective, records)
    asked = suggest(posed, records, 0, len(records))
    scaled = suggest(posed, [rescaled(record, 100.0, -7.0) for record in records], 0, len(records))
    assert scaled.model_size == asked.model_size and scaled.steps == asked.steps
    np.testing.assert_allclose(scaled.weights, asked.weights, atol=1e-9)


def _with_design(posed: object, objective: object, records: list[Record]) -> list[Record]:
    plan = [*initial_design(posed, 0), *anchors_at_target(posed)]  # type: ignore[arg-type]
    for w, size in plan:
        records = [*records, finish(objective, full_run(posed, w, size), records)]  # type: ignore[arg-type]
    return records


@pytest.mark.parametrize("seed", range(3))
def test_defect_1_ei_is_positive_somewhere_after_the_initial_design(seed: int) -> None:
    objective = simulator(seed=seed)
    posed = problem(objective)
    grid = build(posed, study(posed, objective, 11, seed), np.random.default_rng(0))
    assert improvement(grid).max() > np.log(1e-5)


def _two_sizes(r_size: float) -> tuple[Problem, list[Record]]:
    """Full runs of 44 mixtures with a small model and of 20 of them with a large one, which costs eight times as much."""
    sizes = Fidelities(("small", "large"), (3e8, 1e9), (8000,))
    objective = Simulator(SimulatorConfig(amplitude=0.01, noise=0.0002, r_size=r_size), SPACE, sizes)
    options = {"strategy": {"name": "ei_cost", "confirm": 0.0}, "cost": {"growth": 1e6, "overhead": 0.0}}
    posed = replace(problem(objective, **options), flops_per_step=(0.12, 1.0))
    mixtures = np.vstack([SPACE.corners(), SPACE.centroid(), np.random.default_rng(0).dirichlet(np.ones(3), 40)])
    records: list[Record] = []
    for size, count in ((0, 44), (1, 20)):
        for w in mixtures[:count]:
            records.append(finish(objective, full_run(posed, w, size), records))
    return posed, records


def test_defect_2_ei_cost_takes_the_informative_fidelity_and_follows_the_correlation() -> None:
    trust, chosen = {}, {}
    for r in (-0.9, 0.0, 0.95):
        posed, records = _two_sizes(r)
        grid = build(posed, records, np.random.default_rng(0))
        rho = grid.rho_cf()
        assert rho[1:, grid.sizes == 1] == pytest.approx(1.0, abs=1e-6)
        assert rho[0] == pytest.approx(0.0, abs=1e-6)  # the baseline itself: how it differs from itself is known
        trust[r] = float(np.median(rho[1:, grid.sizes == 0]))
        chosen[r] = lookup("ei_cost")(posed, records, np.random.default_rng(0)).model_size
    assert trust[-0.9] < trust[0.0] - 0.01 and trust[0.0] < trust[0.95] - 0.03
    assert chosen[0.0] == "large" and chosen[0.95] == "small"


def test_a_size_without_the_baseline_is_worth_the_price_of_a_pair_and_the_baseline_comes_first() -> None:
    objective = simulator()
    posed = problem(objective)
    records = _with_design(posed, objective, [])
    grid = build(posed, [r for r in records if r.model_size != "1B"], np.random.default_rng(0))
    missing = grid.baseline_f > 0
    assert missing[grid.sizes == 2].all() and not missing[grid.steps == 8000][:2].any()
    assert grid.baseline_f[missing] == pytest.approx(grid.added_cf[0, missing])
    paired = np.random.default_rng(1).uniform(1, 2, grid.shape)
    value = grid.with_baseline(paired, 0.5)
    np.testing.assert_array_equal(value[:, ~missing], paired[:, ~missing])
    np.testing.assert_array_equal(value[0, missing], paired.max(axis=0)[missing])
    assert (value[1:, missing] == 0.5).all()
