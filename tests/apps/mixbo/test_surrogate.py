"""The surrogate against GPyTorch, finite differences and its own invariances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP, SingleTaskMultiFidelityGP
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from studies import FIDELITIES, finish, problem, simulator, spread_out

from src.apps.mixbo import fitting
from src.apps.mixbo.constants import FIDELITY_LENGTH, SURPRISE
from src.apps.mixbo.fitting import fit, log_posterior, scaling
from src.apps.mixbo.kernels import Inputs, SurrogateKernel, embed
from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.observations import observations, rows
from src.apps.mixbo.options import SimulatorConfig, SpaceConfig
from src.apps.mixbo.records import Record, Suggestion, runs
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.surrogate import Surrogate, arrays, condition

KERNELS = ("lmc", "product", "joint", "flops")
MIXTURES = np.random.default_rng(5).dirichlet(np.ones(3), 6)


@pytest.mark.parametrize("length_2", [0.3, 1.0, 100.0])
def test_a_size_below_leaves_open_what_the_target_has_of_its_own(length_2: float) -> None:
    """By a smooth kernel, or where the second function's length could evade it, .8 of the range would say nearly all about the rest."""
    kernel = SurrogateKernel(3, 1, problem(simulator()).surrogate)
    for name, value in (("length_2", np.log(length_2)), ("common", 0.0), ("loading_2", 0.0)):
        kernel.theta.data[:, kernel.layout[name]] = float(value)
    mixtures = torch.as_tensor(MIXTURES[:2])
    below, target = (Inputs.product(mixtures, torch.tensor([[size, 1.0]], dtype=torch.float64)) for size in (0.8, 1.0))
    less = torch.tensor([1.0, -1.0], dtype=torch.float64)
    pairs = (below, below), (below, target), (target, target)
    at, across, there = (float(less @ kernel.covariance(a, b)[0].detach() @ less) for a, b in pairs)
    r = 3**0.5 * 0.2 / np.exp(FIDELITY_LENGTH.mean)
    assert across / (at * there) ** 0.5 == pytest.approx((1 + r) * np.exp(-r), rel=1e-6)


def test_coregionalisation_is_its_formula() -> None:
    kernel, rng = SurrogateKernel(3, 1, problem(simulator()).surrogate), np.random.default_rng(2)
    kernel.theta.data[:] = torch.as_tensor(rng.normal(0, 0.5, kernel.theta.shape))
    kernel.theta.data[:, kernel.layout["level"]] = -np.inf  # what all mixtures share cancels in differences, but for rounding
    part = {name: kernel.theta.detach().numpy()[0, where] for name, where in kernel.layout.items()}
    (v, w), x, y = np.sqrt(MIXTURES[:2] + 0.01), np.array([0.3, 0.6]), np.array([0.9, 1.0])
    length = np.exp(part["length"] + part["domain"])
    r = np.sqrt(3 * (((x - y) / np.exp(part["fidelity_length"])) ** 2).sum())
    at_x, at_y = (part["common"][0] + part["drift"] @ (1 - at) for at in (x, y))
    first = at_x * at_y + np.exp(2 * part["amplitude"][0]) * (1 + r) * np.exp(-r)
    second = (part["loading_2"] @ (1 - x)) * (part["loading_2"] @ (1 - y))
    far = [np.sqrt(5 * (((v - w) / scale) ** 2).sum()) for scale in (length, length * np.exp(part["length_2"]))]
    forgotten = [1 - (1 + d + d * d / 3) * np.exp(-d) for d in far]
    grown = np.exp(part["growth"] @ (x + y - 2))
    rows_of = [Inputs.product(torch.as_tensor(MIXTURES[:2]), torch.as_tensor(at)[None]) for at in (x, y)]
    less = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = float(less @ kernel.covariance(*rows_of)[0].detach() @ less)
    assert found == pytest.approx(2 * grown * (first * forgotten[0] + second * forgotten[1]), rel=1e-6)


def test_a_fit_turns_back_from_a_covariance_without_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = simulator()
    posed = problem(objective)
    x, y, _ = arrays(posed, spread_out(objective, {"20M": 8, "150M": 4}), (3, 2.0))
    best = fit(x, y, 3, posed.surrogate).kernel
    calls = iter(range(1000))

    def singular_once(*args: object) -> torch.Tensor:
        if next(calls) == 1:
            raise torch.linalg.LinAlgError
        return log_posterior(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "log_posterior", singular_once)
    again = fit(x, y, 3, posed.surrogate).kernel
    inputs, (shift, scale) = Inputs.of(torch.as_tensor(x)), scaling(torch.as_tensor(x), torch.as_tensor(y), 3)
    target, floor = ((torch.as_tensor(y) - shift) / scale).T, (posed.surrogate.noise_floor / scale).square()
    start = SurrogateKernel(3, 1, posed.surrogate)
    reached = [float(log_posterior(kernel, inputs, target, floor)) for kernel in (start, again, best)]  # type: ignore[arg-type]
    assert reached[1] > reached[0] + 0.9 * (reached[2] - reached[0])


@pytest.mark.parametrize("refit", [1, 4])
def test_an_accuracy_that_leaves_its_plateau_is_fitted_at_once(refit: int) -> None:
    objective = simulator(accuracy=True, noise=0.0, amplitude=0.02)
    posed = problem(objective, surrogate={"refit": refit})
    records = spread_out(objective, {"20M": 8, "150M": 4, "1B": 3})
    for n in (13, 14, 15):  # 53 sds off before, at the very mixture that was run, until the fit at 16
        surrogate, w = condition(posed, records[:n]), np.array([record.weights for record in records[12:n]])
        at = surrogate.at_target(w)
        sd = np.sqrt(surrogate.variance(at) + surrogate.run_variance + surrogate.noise_variance)
        assert np.all(np.abs(posed.metric.objective(objective.values(w, "1B", 8000)) - at.mean) < 3 * sd)
        assert surrogate.surprise < SURPRISE


def test_a_fit_that_begins_too_far_from_the_data_begins_anew() -> None:
    """Small models at chance: the chain's level had shrunk so far that the next fit ended 200 sds from the first full run."""
    space = MixtureSpace.from_config(SpaceConfig())
    objective = Simulator(SimulatorConfig(accuracy=True, amplitude=0.01), space)
    posed = replace(problem(objective), space=space)
    anchors, records = [*np.eye(5), np.full(5, 0.2)], []
    plan = [("20M", 16000, w) for w in (*anchors, *np.random.default_rng(0).dirichlet(np.ones(5), 5))]
    plan += [("60M", 16000, w) for w in anchors] + [(size, 1000, w) for size in ("150M", "400M") for w in anchors[:2]]
    plan += [("1B", 16000, anchors[5]), ("1B", 8000, anchors[3]), ("1B", 8000, anchors[4])]
    for size, steps, w in plan:
        records.append(finish(objective, Suggestion(tuple(w.tolist()), size, steps), records))
    surrogate, centroid = condition(posed, records), anchors[5][None]
    assert len(records) % posed.surrogate.refit == 0 and surrogate.surprise < SURPRISE
    assert abs(surrogate.mean_at_target(centroid) + objective.values(centroid, "1B", 16000)[:, 0]) < 0.01  # .4 off before


def test_a_fit_stays_where_more_rows_have_a_factor_too() -> None:
    objective = simulator(accuracy=True, noise=0.0, amplitude=0.02)
    posed = problem(objective)
    x, y, _ = arrays(posed, spread_out(objective, {"20M": 8, "150M": 4, "1B": 1}), (3, 4.0))
    astray = fit(x, y, 3, posed.surrogate)
    with torch.no_grad():
        astray.kernel.theta[:, astray.kernel.layout["level"]] = 20.0  # where a line search once ended, and every later fit began
    inputs = Inputs.of(torch.as_tensor(x))
    target, floor = ((torch.as_tensor(y) - astray.shift) / astray.scale).T, (posed.surrogate.noise_floor / astray.scale).square()
    with pytest.raises(torch.linalg.LinAlgError):
        log_posterior(astray.kernel, inputs, target, floor)  # type: ignore[arg-type]
    again, anew = (fit(x, y, 3, posed.surrogate, start) for start in (astray, None))
    torch.testing.assert_close(again.kernel.theta, anew.kernel.theta)


def test_a_loading_that_few_data_shrank_to_0_is_found_again_with_more() -> None:
    """At 0 the slope is 0, a loading's sign being free: a fit that starts there ends nats below one that does not."""
    objective = simulator(r_size=0.9, noise=0.001)
    posed = problem(objective)
    x, y, _ = arrays(posed, spread_out(objective, {"20M": 20, "150M": 10, "1B": 10}), (3, 2.0))
    fits = {name: fit(x, y, 3, posed.surrogate) for name in ("anew", "saddle")}
    kernel = fits["saddle"].kernel
    assert isinstance(kernel, SurrogateKernel)
    for loading in ("common", "drift", "loading_2"):
        kernel.theta.data[:, kernel.layout[loading]] = 0.0
    fits["again"] = fit(x, y, 3, posed.surrogate, fits["saddle"])
    shift, scale = scaling(torch.as_tensor(x), torch.as_tensor(y), 3)
    target, floor = ((torch.as_tensor(y) - shift) / scale).T, (posed.surrogate.noise_floor / scale).square()
    inputs = Inputs.of(torch.as_tensor(x))
    at = {name: float(log_posterior(found.kernel, inputs, target, floor)) for name, found in fits.items()}  # type: ignore[arg-type]
    assert at["again"] > at["anew"] - 0.1 > at["saddle"] + 1.0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_posterior_equals_gpytorch(kernel: str, outputs: int) -> None:
    objective = simulator(outputs=outputs)
    posed = problem(objective, surrogate={"kernel": kernel})
    records = spread_out(objective, {"20M": 5, "150M": 3})
    x, y, pending = arrays(posed, records, (5, 2.0))
    fitted = fit(*arrays(posed, records, (3, 4.0))[:2], 3, posed.surrogate)
    surrogate = Surrogate(posed, x, y, pending, fitted)
    query = rows(posed, MIXTURES, np.array([0, 1, 2, 2, 1, 0]), np.array([8000.0, 2000, 8000, 4000, 4000, 2000]))
    basis = surrogate.basis(query)
    mean, covariance, errors = np.zeros(len(query)), np.zeros((len(query), len(query))), []
    for i, weight in enumerate(objective.metric.signed):
        kernel_i = SurrogateKernel(3, 1, posed.surrogate)
        kernel_i.theta.data = fitted.kernel.theta.data[i : i + 1]
        target = (torch.as_tensor(y[:, i : i + 1]) - fitted.shift[i]) / fitted.scale[i]
        noise = fitted.noise[i].expand(len(x))
        model = SingleTaskGP(
            torch.as_tensor(x), target, covar_module=_Single(kernel_i), mean_module=ZeroMean(),
            likelihood=FixedNoiseGaussianLikelihood(noise), outcome_transform=None,
        )  # fmt: skip
        prior = kernel_i.forward(torch.as_tensor(x), torch.as_tensor(x))[0].detach().numpy() + np.diag(noise.numpy())
        errors.append(weight * float(fitted.scale[i]) * np.linalg.solve(np.linalg.cholesky(prior), target[:, 0].numpy()))
        errors[-1] /= np.sqrt(np.mean((errors[-1] / (weight * float(fitted.scale[i]))) ** 2))
        posterior = model.posterior(torch.as_tensor(query))
        mean += weight * (posterior.mean[:, 0].detach() * fitted.scale[i] + fitted.shift[i]).numpy()
        covariance += (weight * float(fitted.scale[i])) ** 2 * posterior.distribution.covariance_matrix.detach().numpy()
    # One-step-ahead errors that go together do not average out in the sum of the outputs.
    covariance *= np.sum(np.sum(errors, axis=0) ** 2) / np.sum(np.square(errors))
    np.testing.assert_allclose(basis.mean, mean, atol=1e-5)
    np.testing.assert_allclose(surrogate.covariance(basis, basis), covariance, atol=1e-6)
    np.testing.assert_allclose(surrogate.variance(basis), covariance.diagonal(), atol=1e-6)
    np.testing.assert_allclose(surrogate.mean(query), basis.mean, atol=1e-10)


@pytest.mark.parametrize("kernel", [*KERNELS, "botorch"])
def test_differences_from_a_mixture_follow_from_the_joint_posterior(kernel: str) -> None:
    objective = simulator(outputs=2)
    posed = problem(objective, surrogate={"kernel": kernel})
    surrogate = condition(posed, spread_out(objective, {"20M": 5, "150M": 3}))
    sizes, steps, reference = np.array([0, 2, 2]), np.array([2000.0, 4000, 8000]), MIXTURES[-1]
    less, plain = surrogate.grid(MIXTURES, sizes, steps, reference), surrogate.grid(MIXTURES, sizes, steps)
    here, alone = np.arange(18), np.tile(np.arange(15, 18), 6)  # rows: mixtures vary slowest, the reference is the last
    joint = surrogate.covariance(plain, plain)
    mixed = joint[here] - joint[alone]
    expected = mixed[:, here] - mixed[:, alone]
    np.testing.assert_allclose(less.mean, plain.mean - plain.mean[alone], atol=1e-9)
    np.testing.assert_allclose(surrogate.covariance(less, less), expected, atol=1e-9)
    np.testing.assert_allclose(surrogate.covariance(plain, less), joint[:, here] - joint[:, alone], atol=1e-9)
    np.testing.assert_allclose(surrogate.variance(less), expected.diagonal(), atol=1e-9)
    target = surrogate.at_target(MIXTURES, reference)
    paired = surrogate.paired_covariance(less, target, np.repeat(np.arange(6), 3))
    np.testing.assert_allclose(paired, surrogate.covariance(less, target)[here, np.repeat(np.arange(6), 3)], atol=1e-9)


class _Single(torch.nn.Module):
    """One output of our kernel as GPyTorch wants it: without the outputs' dimension."""

    def __new__(cls, kernel: SurrogateKernel) -> object:  # type: ignore[misc]
        from gpytorch.kernels import Kernel

        class Flat(Kernel):
            def __init__(self) -> None:
                super().__init__()
                self.inner = [kernel]  # hidden from PyTorch: its batch of outputs is not this kernel's

            def forward(self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **params: object) -> torch.Tensor:
                found = self.inner[0].forward(x1.reshape(-1, x1.shape[-1]), x2.reshape(-1, x2.shape[-1]), diag=diag)[0]
                return found.reshape(*x1.shape[:-2], *found.shape)

        return Flat()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mean", ["linear", "law"])
def test_gradient_of_the_log_posterior(kernel: str, mean: str) -> None:
    objective = simulator(outputs=2)
    posed = problem(objective, surrogate={"kernel": kernel, "mean": mean})
    x, y, _ = arrays(posed, spread_out(objective, {"20M": 4, "150M": 2}), (3, 2.0))
    inputs, values = torch.as_tensor(x), torch.as_tensor(y)
    shift, scale = scaling(inputs, values, 3)
    target, floor = ((values - shift) / scale).T, torch.full((2,), 1e-4, dtype=torch.float64)
    module = SurrogateKernel(3, 2, posed.surrogate)
    module.theta.data += 0.1 * torch.randn(module.theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = Inputs.of(inputs)
    log_posterior(module, apart, target, floor)
    analytic = module.theta.grad
    assert analytic is not None
    analytic = -analytic.clone()
    for index in [(0, 0), (1, 2), (0, 5), (1, module.theta.shape[1] - 1)]:
        ends = []
        for sign in (1, -1):
            module.theta.data[index] += sign * 1e-4
            ends.append(float(log_posterior(module, apart, target, floor)))
            module.theta.data[index] -= sign * 1e-4
        assert float(analytic[index]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-4)


def test_defect_4_units_of_size_and_step_do_not_matter() -> None:
    objective = simulator()
    posed = problem(objective)
    records = spread_out(objective, {"20M": 5, "150M": 3})
    scaled = replace(posed, fidelities=replace(FIDELITIES, parameters=tuple(p / 1e6 for p in FIDELITIES.parameters)))
    expected = condition(scaled, records).mean_at_target(MIXTURES)
    np.testing.assert_allclose(condition(posed, records).mean_at_target(MIXTURES), expected, atol=1e-9)


def test_defect_5a_noise_survives_every_tell() -> None:
    """Whatever was told before, one more value of a mixture narrows what is known of it by one noisy observation, and by no more."""
    objective = simulator(noise=0.02)
    posed = problem(objective, surrogate={"noise_floor": 0.02, "refit": 4})
    records = spread_out(objective, {"20M": 8})
    w = records[0].weights
    for number in range(8, 20):
        records.append(Record(number, w, "20M", 8000, "ok", tuple(objective.observe(w, "20M", [8000], number))))
    seen, before = rows(posed, np.array([w]), 0, 8000.0), np.nan
    for count in range(8, len(records) + 1):
        surrogate = condition(posed, records[:count])
        variance = float(surrogate.variance(surrogate.basis(seen))[0])
        if count % 4:  # with the hyper-parameters of the tell before
            noise = 1 / (1 / variance - 1 / before)
            assert noise * (1 + 1e-6) >= 0.02**2 and noise**0.5 < 0.04
            assert noise == pytest.approx(surrogate.noise_variance + surrogate.run_variance, rel=1e-5)
        before = variance


def test_defect_5b_refitted_at_every_multiple_of_the_period_and_prior_flat_in_the_mixture() -> None:
    objective = simulator()
    posed = problem(objective, surrogate={"refit": 4})
    records = spread_out(objective, {"20M": 9})
    kernels = [condition(posed, records[:count])._kernel for count in (4, 5, 7, 8, 9)]
    assert kernels[0] is kernels[1] is kernels[2] and kernels[3] is kernels[4] and kernels[0] is not kernels[3]
    before = condition(posed, []).mean_at_target(MIXTURES)
    assert np.ptp(before) == 0.0


def test_pending_trials_narrow_and_do_not_shift() -> None:
    objective = simulator()
    posed = problem(objective)
    records = spread_out(objective, {"20M": 6, "150M": 4})
    running = Record(99, tuple(MIXTURES[0].tolist()), "1B", 8000, "running")
    without, with_it = condition(posed, records), condition(posed, [*records, running])
    np.testing.assert_allclose(without.mean_at_target(MIXTURES), with_it.mean_at_target(MIXTURES), atol=1e-6)
    before, after = (surrogate.variance(surrogate.at_target(MIXTURES)) for surrogate in (without, with_it))
    assert np.all(after <= before + 1e-12) and after[0] < 0.5 * before[0]


def test_a_checkpoint_to_come_is_pending_once() -> None:
    objective = simulator()
    posed = problem(objective)
    short, long = (Record(9, tuple(MIXTURES[0].tolist()), "1B", steps, "running") for steps in (2000, 8000))
    steps = [observations(posed, [record], (5, 2.0)).pending[:, -2].tolist() for record in (short, long)]
    assert steps == [[0.0], [0.5, 1.0]]  # scaled log steps; twice the same would be believed like two runs
    assert observations(replace(posed, decay=0.25), [long], (5, 2.0)).pending[:, -2].tolist() == [1.0]


def test_failed_trials_are_left_out_or_count_as_the_worst() -> None:
    objective = simulator()
    records = spread_out(objective, {"20M": 6})
    failed = replace(records[2], status="failed", curve=())
    records[2] = failed
    data = observations(problem(objective), records, (5, 2.0))
    assert len(data.y) == 15 and 2 not in data.x[:, -1]
    penalised = observations(problem(objective, surrogate={"failed": "penalise"}), records, (5, 2.0))
    worst = max(record.curve[-1][1][0] for record in records if record.status == "ok")
    assert len(penalised.y) == 16 and penalised.y[-1, 0] == worst


def test_continuations_are_one_run_and_its_offset_is_shared() -> None:
    objective = simulator()
    w = (0.2, 0.3, 0.5)
    curve = tuple(objective.observe(w, "20M", [2000, 4000, 8000], 0))
    first = Record(0, w, "20M", 4000, "ok", curve[:2], 2.0)
    second = Record(3, w, "20M", 8000, "ok", curve[2:], 2.0, parent=0)
    (run,) = runs([first, second])
    assert run.numbers == (0, 3) and run.curve == curve and run.reached == 8000
    data = observations(problem(objective), [first, second], (5, 2.0))
    assert data.x[:, -1].tolist() == [0.0, 0.0, 0.0]
    (growing,) = runs([first, replace(second, status="running", curve=())])
    assert growing.running and growing.reached == 4000 and growing.ends == 8000
    assert runs([replace(first, status="failed"), second]) == []


@pytest.mark.parametrize("options", [{"kernel": k} for k in KERNELS] + [{"embedding": "raw"}, {"embedding": "clr"}, {"mean": "law"}])
def test_every_form_ranks_mixtures_from_cheap_runs(options: dict[str, str]) -> None:
    objective = simulator(noise=0.0005, r_size=0.95, r_step=0.95)
    posed = problem(objective, surrogate=options)
    surrogate = condition(posed, spread_out(objective, {"20M": 16, "150M": 8, "1B": 4}))
    w = np.random.default_rng(11).dirichlet(np.ones(3), 60)
    truth = objective.metric.objective(objective.values(w, "1B", 8000))
    assert np.corrcoef(surrogate.mean_at_target(w), truth)[0, 1] > 0.8


def test_an_inch_from_a_corner_is_nearly_the_corner() -> None:
    shares = torch.tensor([0.0, 0.001, 0.002, 0.25, 1.0], dtype=torch.float64)
    at = embed(torch.stack([1 - shares, shares], dim=1), "sqrt")
    inch, two, quarter, whole = (at[1:] - at[0]).norm(dim=1).tolist()
    assert two / inch == pytest.approx(2, rel=0.05)  # sqrt alone: 1.41, its slope has no bound there
    assert inch < 0.005 * whole and quarter == pytest.approx(0.366 * whole, rel=0.1)  # and Hellinger's distances far from it


def test_botorchs_kernel_is_conditioned_like_botorchs_model() -> None:
    objective = simulator()
    posed = problem(objective, surrogate={"kernel": "botorch", "refit": 1})
    records = spread_out(objective, {"20M": 5, "150M": 3})
    x, y, _ = arrays(posed, records, (3, 4.0))
    shift, scale = y.mean(axis=0), y.std(axis=0)
    model = SingleTaskMultiFidelityGP(
        torch.as_tensor(x[:, :-1]), (torch.as_tensor(y) - shift) / scale, data_fidelities=[3, 4], outcome_transform=None
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    there = rows(posed, MIXTURES, 2, 8000.0)
    posterior = model.posterior(torch.as_tensor(there[:, :-1]))
    surrogate = condition(posed, records)
    np.testing.assert_allclose(surrogate.mean(there), posterior.mean[:, 0].detach().numpy() * scale + shift, rtol=1e-3)


def test_one_process_for_the_sum_agrees_with_one_per_output() -> None:
    objective = simulator(outputs=3)
    records = spread_out(objective, {"20M": 10, "150M": 6, "1B": 3})
    means = []
    for outputs in ("separate", "sum"):
        posed = problem(objective, surrogate={"outputs": outputs})
        means.append(condition(posed, records).mean_at_target(MIXTURES))
    assert np.corrcoef(*means)[0, 1] > 0.8
