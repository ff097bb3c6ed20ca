"""Simulator, emulator and table: exact optima, set correlations, known values."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from src.apps.mixbo.config import SWEEP
from src.apps.mixbo.objectives.emulator import Emulator
from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.objectives.table import Table
from src.apps.mixbo.objectives.training import Trainings
from src.apps.mixbo.options import SimulatorConfig, SpaceConfig
from src.apps.mixbo.problem import Metric
from src.apps.mixbo.records import Record
from src.apps.mixbo.space import MixtureSpace
from src.nanollama.config import ConfigError, compose

SPACE = MixtureSpace.from_config(SpaceConfig())
SMALL = {"amplitude": 0.008}  # low enough for every correlation below


def objective_at(simulator: Simulator, w: np.ndarray, size: int, step: int) -> np.ndarray:
    return simulator.metric.objective(simulator.values(w, simulator.fidelities.sizes[size], step))


@pytest.mark.parametrize(
    "options",
    [
        SimulatorConfig(),
        SimulatorConfig(gamma=1.0, outputs=4, seed=1),
        SimulatorConfig(wells=4, seed=2, amplitude=0.02),
        SimulatorConfig(optimum=(0, 0.3, 0, 0, 0.7)),
        SimulatorConfig(optimum=(0, 0, 1, 0, 0), outputs=5),
        SimulatorConfig(accuracy=True, amplitude=0.02),
    ],
)
def test_the_optimum_is_exact_by_brute_force(options: SimulatorConfig) -> None:
    simulator = Simulator(options, SPACE)
    rng = np.random.default_rng(0)
    w = np.vstack([rng.dirichlet(np.full(5, a), 20_000) for a in (0.2, 1.0)])
    near = SPACE.transfers(simulator.optimum, (1e-3, 1e-2))
    size, step = simulator.fidelities.target
    best = objective_at(simulator, simulator.optimum[None], size, step)[0]
    assert best < objective_at(simulator, np.vstack([w, near]), size, step).min()
    assert simulator.regret(simulator.optimum) == 0.0


@pytest.mark.parametrize("r", [-0.9, 0.0, 0.5, 0.95])
def test_the_correlation_with_the_target_is_what_was_set(r: float) -> None:
    simulator = Simulator(SimulatorConfig(r_size=r, r_step=1.0, **SMALL), SPACE)
    w = np.random.default_rng(7).dirichlet(np.ones(5), 20_000)
    size, step = simulator.fidelities.target
    found = np.corrcoef(objective_at(simulator, w, 0, step), objective_at(simulator, w, size, step))[0, 1]
    assert found == pytest.approx(r, abs=0.03)
    assert simulator.correlation(size, step) == 1.0


def test_larger_and_longer_is_better_for_every_mixture_and_refused_otherwise() -> None:
    simulator = Simulator(SimulatorConfig(), SPACE)
    w = np.random.default_rng(3).dirichlet(np.ones(5), 500)
    sizes, steps = range(len(simulator.fidelities.sizes)), simulator.fidelities.steps
    grid = np.array([[objective_at(simulator, w, size, step) for step in steps] for size in sizes])
    assert np.all(np.diff(grid, axis=0) < 0) and np.all(np.diff(grid, axis=1) < 0)
    with pytest.raises(ConfigError, match="amplitude"):
        Simulator(SimulatorConfig(amplitude=0.5, r_size=0.0), SPACE)


def test_noise_is_of_the_set_size_and_the_same_for_the_same_run() -> None:
    simulator = Simulator(SimulatorConfig(noise=0.01, run_noise=0.02), SPACE)
    w = [0.2] * 5
    assert simulator.observe(w, "60M", [1000, 2000], 5) == simulator.observe(w, "60M", [1000, 2000], 5)
    assert simulator.observe(w, "60M", [2000], 5)[0] == simulator.observe(w, "60M", [1000, 2000], 5)[1]
    drawn = np.array([[v[0] for _, v in simulator.observe(w, "60M", [1000, 2000], run)] for run in range(600)])
    assert drawn.std(axis=0) == pytest.approx(np.hypot(0.01, 0.02), rel=0.1)
    assert (drawn[:, 0] - drawn[:, 1]).std() == pytest.approx(0.01 * np.sqrt(2), rel=0.1)


def test_emulator_gives_the_known_values() -> None:
    default = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "slimpajama_simulator.npz"
    path = Path(os.environ.get("NANOLLAMA_SIMULATOR", default))
    if not path.is_file():
        pytest.skip("no emulator file: set NANOLLAMA_SIMULATOR to its path")
    book, uniform = np.eye(5)[4:], np.full((1, 5), 0.2)
    for metric, size, step, w, value in [
        ("stackexchange", "20M", 100, uniform, 4.4904),
        ("wikipedia", "1B", 19500, uniform, 1.0644),
        ("commoncrawl", "1B", 5000, book, 2.6859),
        ("hellaswag", "1B", 19500, book, 0.4025),
    ]:
        assert Emulator(path, metric).values(w, size, step)[0, 0] == pytest.approx(value, abs=6e-5)
    assert Emulator(path, "hellaswag").metric.maximise and not Emulator(path, "mean").metric.maximise
    assert len(Emulator(path, "mean").metric.outputs) == 7 and len(Emulator(path, "mean_domains").metric.outputs) == 5
    with pytest.raises(ConfigError, match="19600"):
        Emulator(path, "mean", [100, 19600])
    with pytest.raises(ConfigError, match="nothing"):
        Emulator(path, "nothing")


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A small random network over two domains in the emulator's format, and its arrays."""
    rng = np.random.default_rng(4)
    arrays = {
        "weight_0": rng.normal(size=(6, 4)), "bias_0": rng.normal(size=6),
        "weight_1": rng.normal(size=(5, 6)), "bias_1": rng.normal(size=5),
        "weight_2": rng.normal(size=(5, 5)), "bias_2": rng.normal(size=5),
        "x_mean": np.array([0.5, 0.5, 300.0, 1000.0]), "x_std": np.array([0.3, 0.2, 400.0, 800.0]),
        "y_mean": rng.normal(size=5), "y_std": rng.uniform(0.5, 2, size=5),
        "model_sizes_millions": np.array([20.0, 1000.0]), "steps": np.arange(100, 2100, 100), "gflops_per_step": np.array([2.0, 90.0]),
        "domains": np.array(["code", "prose"]), "metrics": np.array(["train", "code", "prose", "web", "hellaswag"]),
    }  # fmt: skip
    np.savez(tmp_path / "network.npz", **arrays)
    return tmp_path / "network.npz", arrays


def by_hand(arrays: dict[str, np.ndarray], w: list[float], millions: float, step: int) -> dict[str, float]:
    """All metrics of one mixture, neuron by neuron."""
    h = [(x - m) / s for x, m, s in zip([*w, millions, step], arrays["x_mean"], arrays["x_std"], strict=True)]
    for layer in range(3):
        neurons = zip(arrays[f"weight_{layer}"], arrays[f"bias_{layer}"], strict=True)
        h = [sum(a * b for a, b in zip(row, h, strict=True)) + bias for row, bias in neurons]
        h = [max(value, 0.0) for value in h] if layer < 2 else h
    return {str(name): value * s + m for name, value, s, m in zip(arrays["metrics"], h, arrays["y_std"], arrays["y_mean"], strict=True)}


def test_an_emulator_is_its_network(network: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, arrays = network
    mixtures = [[1.0, 0.0], [0.3, 0.7], [0.5, 0.5]]
    for metric, outputs in (
        ("web", ("web",)), ("train", ("train",)), ("hellaswag", ("hellaswag",)), ("mean", ("code", "prose", "web")),
        ("mean_domains", ("code", "prose")),
    ):  # fmt: skip
        emulator = Emulator(path, metric, [100, 1500, 2000])
        assert emulator.metric.outputs == outputs and emulator.metric.maximise == (metric == "hellaswag")
        assert emulator.metric.weights == (1 / len(outputs),) * len(outputs)
        for size, millions, step in (("20M", 20.0, 100), ("1B", 1000.0, 1500)):
            expected = [[by_hand(arrays, w, millions, step)[name] for name in outputs] for w in mixtures]
            np.testing.assert_allclose(emulator.values(np.array(mixtures), size, step), expected, rtol=1e-12)
    assert emulator.domains == ("code", "prose") and emulator.flops_per_step == (2e9, 9e10)
    assert emulator.fidelities.sizes == ("20M", "1B") and emulator.fidelities.steps == (100, 1500, 2000)
    assert Emulator(path).fidelities.steps == tuple(range(100, 2100, 100))


def test_an_emulator_is_asked_within_its_range_only(network: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, _ = network
    for steps in ([100, 2100], [50], [150]):
        with pytest.raises(ConfigError, match=rf"fidelity\.steps: {steps[-1]} is not .* 100 to 2000 by 100"):
            Emulator(path, "web", steps)
    with pytest.raises(ConfigError, match=r"step 2100 is outside .*\(100 to 2000\)"):
        Emulator(path, "web").values(np.array([[0.5, 0.5]]), "1B", 2100)
    with pytest.raises(ConfigError, match=r"'loss' is not in this emulator; it has .*'web'.*'mean_domains'"):
        Emulator(path, "loss")
    with pytest.raises(ConfigError, match="'7B'"):
        Emulator(path, "web").values(np.array([[0.5, 0.5]]), "7B", 100)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weight_1": np.full((5, 6), np.nan)}, "weight_1 holds numbers that are not finite"),
        ({"x_std": np.zeros(4)}, "x_std of 0"),
        ({"weight_0": np.ones((6, 5))}, r"weight_0 has the shape \(6, 5\).*\(6, 4\)"),
        ({"bias_1": None}, "bias_1 is missing"),
        ({"metrics": np.array(["train", "code"])}, "y_mean has the shape"),
        ({"domains": np.array(["code", "prose", "web"])}, r"x_mean has the shape \(4,\).*\(5,\)"),
        ({"gflops_per_step": np.ones(3)}, "gflops_per_step"),
        ({"steps": np.array([0.5, 1.5])}, "whole numbers"),
        ({"steps": np.array([100])}, "which has 100 only"),
        ({"metrics": np.array(["train", "hellaswag", "piqa", "arc_easy", "hellaswag"])}, "'mean' is not in this emulator"),
    ],
)
def test_an_emulator_whose_arrays_do_not_fit_together_is_refused(
    changed: dict[str, np.ndarray | None], words: str, network: tuple[Path, dict[str, np.ndarray]]
) -> None:
    path, arrays = network
    np.savez(path, **{key: value for key, value in (arrays | changed).items() if value is not None})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        Emulator(path, "mean", [200])


def test_an_emulator_without_noise_is_exact_and_with_it_scatters_by_as_much(network: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, arrays = network
    value = by_hand(arrays, [0.3, 0.7], 20.0, 100)["web"]
    assert Emulator(path, "web").observe([0.3, 0.7], "20M", [100], 3) == [(100, (pytest.approx(value, rel=1e-12),))]
    noisy = Emulator(path, "web", noise=0.1)
    drawn = np.array([noisy.observe([0.3, 0.7], "20M", [100], run)[0][1][0] for run in range(400)])
    assert drawn.mean() == pytest.approx(value, abs=0.02) and drawn.std() == pytest.approx(0.1, rel=0.15)


def test_an_unreadable_emulator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        Emulator(tmp_path / "none.npz")
    np.savez(tmp_path / "pickled.npz", weight_0=np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match="plain arrays"):
        Emulator(tmp_path / "pickled.npz")
    whole = (tmp_path / "pickled.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.arange(3))
    for damaged in (b"", b"a,b", b"PK", whole[: len(whole) // 2], (tmp_path / "one.npy").read_bytes()):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(ConfigError, match="plain arrays"):
            Emulator(tmp_path / "damaged.npz")
    np.savez(tmp_path / "short.npz", steps=np.arange(3))
    with pytest.raises(ConfigError, match="lacks"):
        Emulator(tmp_path / "short.npz")


def write_table(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["a,b,size,step,loss", *rows]) + "\n")
    return path


def table(path: Path) -> Table:
    return Table(path, ("a", "b"), Metric(("loss",), (1.0,)), {"s": 1e6, "m": 1e7}, {"s": 1.0, "m": 10.0})


def test_a_table_is_replayed_and_nothing_else(tmp_path: Path) -> None:
    rows = ["0.5,0.5,s,10,3.0", "0.5,0.5,s,20,2.5", "1,0,s,20,2.6", "0.5,0.5,m,20,2.0", "1,0,m,20,2.2"]
    replay = table(write_table(tmp_path / "t.csv", rows))
    assert replay.choices == ((0.5, 0.5), (1.0, 0.0)) and replay.fidelities.sizes == ("s", "m")
    assert replay.observe((0.5, 0.5), "s", [10, 20], 0) == [(10, (3.0,)), (20, (2.5,))]
    floats = [row.replace(",10,", ",10.0,").replace(",20,", ",20.0,") for row in rows]  # as pandas writes a column with gaps
    assert table(write_table(tmp_path / "t.csv", floats)).rows == replay.rows
    with pytest.raises(ConfigError, match="no row"):
        replay.values(np.array([[1.0, 0.0]]), "s", 10)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["0.5,0.5,s,10,x"], "line 2"),
        (["0.5,0.7,m,10,1"], "sum to 1"),
        (["1,0,m,10,1", "1,0,m,10,2"], "twice"),
        (["1,0,m,10,1", "1,0,s,20,2"], "largest size"),
        (["1,0,m,10,1", "0,1,m,10,inf"], "line 3: loss is inf"),
        (["0,1,m,10,nan"], "line 2: loss is nan"),
        (["nan,1,m,10,2"], "line 2: a is nan"),
        (["0,1,m,10,"], "line 2: loss is missing"),
        (["0,1,m,10.5,2"], "whole numbers"),
        ([], "no rows"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, rows: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        table(write_table(tmp_path / "t.csv", rows))


def test_an_empty_file_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    with pytest.raises(ConfigError, match="no column 'a'; the columns are none"):
        table(tmp_path / "t.csv")


def test_every_mixture_of_a_table_can_be_asked_for(tmp_path: Path) -> None:
    """Divided by its sum once more, one mixture in thirty is another number in its last digit, which no row has."""
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 200).tolist()
    text = "\n".join(["a,b,c,size,step,loss", *(f"{a!r},{b!r},{c!r},m,4,2.0" for a, b, c in mixtures)])
    (tmp_path / "t.csv").write_text(text + "\n")
    found = Table(tmp_path / "t.csv", ("a", "b", "c"), Metric(("loss",), (1.0,)), {"m": 1e7}, {"m": 10.0})
    space = MixtureSpace.from_config(SpaceConfig(("a", "b", "c")), found.choices)
    assert len(space.choices or ()) == 200 and all((w, "m", 4) in found.available for w in space.choices or ())


@pytest.mark.parametrize("text", [None, "not json\n", '{"step": 8, "loss": 2.0}\n'])
def test_a_training_whose_metrics_are_gone_or_damaged_has_failed(text: str | None, tmp_path: Path) -> None:
    """An exception here ended the sweep, and again whenever it was resumed."""
    cfg = compose(SWEEP, [])
    trial, trainings = Record(0, (0.2,) * 5, "pico", 50), Trainings(cfg.training, cfg.fidelity)
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    outcome = trainings.outcome(trial, tmp_path, {"status": "ok", "flops": 5.0})
    assert not outcome.ok and outcome.status == "error" and outcome.flops == 5.0 and "metrics.jsonl" in str(outcome.message)
