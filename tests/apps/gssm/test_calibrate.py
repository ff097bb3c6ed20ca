import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from naive_gssm import reference_graph
from test_difficulty import command

from src.apps.gssm import calibrate
from src.apps.gssm.config import SetupConfig
from src.apps.gssm.difficulty import Estimate
from src.apps.gssm.measure_config import CalibrateConfig, MeasureConfig, SolveConfig, family, resolve_calibrate
from src.apps.gssm.node import NodeConfig
from src.nanollama.config import ConfigError

QUICK = MeasureConfig(tokens=32_768, sequences=128)


def seed_graph(alpha_Z):
    return reference_graph(1e-3, alpha_Z)


def test_hits_an_exact_target_within_its_standard_error():
    found = calibrate.solve(seed_graph, 1.3, seq_len=128, cfg=QUICK)
    assert abs(found.estimate.value - 1.3) <= found.estimate.se / 4
    assert abs(found.check.value - 1.3) < 4 * np.hypot(found.estimate.se, found.check.se)
    assert 0.05 < found.alpha < 0.15
    assert found == calibrate.solve(seed_graph, 1.3, seq_len=128, cfg=QUICK)


def test_every_graph_seed_has_its_own_solution():
    alphas = [calibrate.solve(seed_graph, 1.3, seq_len=64, graph_seed=s, cfg=QUICK).alpha for s in (0, 1)]
    assert alphas[0] != alphas[1] and alphas[0] == pytest.approx(alphas[1], rel=0.3)


@pytest.mark.parametrize(("name", "target"), [("gzip_legacy", 0.74), ("gzip_normalised", 0.75), ("bigram_loss", 2.5), ("window_2", 1.8)])
def test_any_measure_can_be_the_target(name, target):
    found = calibrate.solve(seed_graph, target, name, seq_len=64, cfg=QUICK)
    assert found.estimate.value == pytest.approx(target, abs=0.005)
    assert 0.03 < found.alpha < 0.3


@pytest.mark.parametrize("target", [0.01, 3.6])
def test_an_unreachable_target_says_so_with_the_range(target):
    with pytest.raises(calibrate.Unreachable, match=r"cannot be reached with graph seed 0: .* lies between 0\.\d+ .* and 3\.4\d+"):
        calibrate.solve(seed_graph, target, seq_len=32, cfg=QUICK)


def test_a_measure_with_next_to_no_noise_need_not_be_met_to_the_last_digit():
    """As where latents run through fixed cycles: the curve has steps far below its use, and standard errors below those."""
    search = calibrate.Search(lambda a: Estimate(1e-6 * np.floor(1e6 * a), se=1e-9), 0.3000005, None)
    assert search.root(*search.bracket(-1.0, 1.0)) == pytest.approx(0.3, abs=1e-4)


def test_root_finding_on_a_curve_that_is_not_monotone():
    """Below the bend the target is met twice; the upper crossing is taken, and a jump is no crossing."""

    def search(curve, target):
        return calibrate.Search(lambda a: Estimate(curve(a)), target, 1e-6)

    bent = search(lambda a: (a - 1) ** 2, 1.0)
    root = bent.root(*bent.bracket(-0.5, 4.0))
    assert root == pytest.approx(2.0, abs=1e-5)
    assert search(lambda a: a, 0.5).bracket_around(0.48, -3, 3) == pytest.approx((0.38, 0.58))
    assert search(lambda a: 1.0, 0.5).bracket_around(0.48, -3, 3) is None
    stepped = search(lambda a: float(a > 0.3), 0.5)
    with pytest.raises(calibrate.Unreachable, match="jumps across"):
        stepped.root(*stepped.bracket(0.0, 1.0))


def config(**solve):
    latents = [NodeConfig(name=f"Z{i}", state_dim=2, parents=("X",)) for i in (1, 2)]
    nodes = (*latents, NodeConfig(name="X", state_dim=4, parents=("Z1", "Z2")))
    setups = {"hard": {"alpha_X": 0.1, "alpha_Z": 0.2}}
    return CalibrateConfig(gssm=nodes, alpha_X=0.5, alpha_Z=0.6, setups=setups, solve=SolveConfig(**solve))


def test_free_names_a_side_or_a_node():
    alphas = {free: [n.alpha for n in family(config(), free)(0.9).nodes] for free in ("alpha_X", "alpha_Z", "Z1")}
    assert alphas == {"alpha_X": [0.6, 0.6, 0.9], "alpha_Z": [0.9, 0.9, 0.5], "Z1": [0.9, 0.6, 0.5]}
    assert [n.alpha for n in family(config(), "alpha_Z", 0.1)(0.9).nodes] == [0.9, 0.9, 0.1]


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        ({}, r"give solve.target=VALUE .* or solve.like"),
        ({"target": 1.0, "like": "hard"}, r"give solve.target=VALUE .* or solve.like"),
        ({"like": "easy"}, r"solve.like=easy: no such entry of setups; there are: hard"),
        ({"target": 1.0, "low": 1.0, "high": 0.1}, r"solve.low=1.0 is not below"),
        ({"target": 1.0, "free": "Q"}, r"solve.free=Q: name alpha_X, alpha_Z or a node \(Z1, Z2, X\)"),
        ({"target": 1.0, "high": 1e9}, r"concentration must be between"),
    ],
)
def test_bad_requests_are_refused_before_any_work(solve, message):
    with pytest.raises(ConfigError, match=message):
        resolve_calibrate(config(**solve))


def test_the_chosen_setup_is_in_force():
    cfg = resolve_calibrate(replace(config(target=1.0), setup="hard"))
    assert (cfg.alpha_X, cfg.alpha_Z, cfg.setup) == (0.1, 0.2, None)
    setups = {"hard": SetupConfig(alpha_X=0.1, alpha_Z=0.2, graph_seed=5), "free": SetupConfig(alpha_X=0.1, alpha_Z=0.2)}
    pinned = replace(config(like="hard"), setups=setups, measure=QUICK)
    free = replace(pinned, solve=SolveConfig(like="free"))
    assert calibrate._target(pinned, 0) == calibrate._target(pinned, 1) == calibrate._target(free, 5)


def test_a_side_that_no_node_takes_is_refused():
    cfg = config(target=1.0)
    own = tuple(replace(n, alpha=0.3) if n.name == "X" else n for n in cfg.gssm)
    resolve_calibrate(replace(cfg, gssm=own))
    with pytest.raises(ConfigError, match=r"solve\.free=alpha_X: no node takes it"):
        resolve_calibrate(replace(cfg, gssm=own, solve=SolveConfig(target=1.0, free="alpha_X")))


def test_the_command_solves_and_draws_the_curve(tmp_path):
    quick = ["measure.tokens=8192", "measure.sequences=32", "measure.windows=[1]", "data.seq_len=32", "solve.curve=2"]
    done = command("calibrate", "experiment=debug", *quick, "solve.target=1.3", f"run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run/calibration.json").read_text())
    (solution,) = found["solutions"]
    assert abs(solution["value"] - 1.3) < solution["se"]
    assert len(found["curves"]["0"]) == 1  # at alpha_X = 1 no alpha_Z is that easy
    setup = yaml.safe_load((tmp_path / "run/setups.yaml").read_text())["setups"]["setup0"]
    assert setup["alpha_Z"] == pytest.approx(solution["alpha"], rel=1e-5) and setup["alpha_X"] == 0.001
    assert setup["graph_seed"] == 0  # it holds for no other kernels
    assert json.loads((tmp_path / "run/difficulty.json").read_text())["bayes_loss"] == pytest.approx(solution["value"])
    done = command("calibrate", "experiment=debug", *quick, "solve.target=1.6", "solve.free=Z1", f"run_dir={tmp_path}/node")
    assert done.returncode == 0 and "Z1 = " in done.stdout, done.stderr
    assert "setups" not in done.stdout and not (tmp_path / "node/setups.yaml").exists()  # these know of no node's alpha
    done = command("calibrate", "experiment=debug", *quick, "solve.target=9", f"run_dir={tmp_path}/no")
    assert done.returncode == 2 and "cannot be reached" in done.stderr
