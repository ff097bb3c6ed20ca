"""Probes: they find what is there, nothing where nothing is, and no more than the exact filter allows."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ortho_group

from src.apps.gssm.beliefs import Study, beliefs
from src.apps.gssm.config import TRAIN
from src.apps.gssm.inspect_config import BELIEFS, POSITIONS
from src.apps.gssm.inspection import open_trained
from src.apps.gssm.measure_config import DIFFICULTY
from src.apps.gssm.positions import octaves, positions
from src.apps.gssm.probes import by_position, fit_linear, fit_mlp, score, window
from src.apps.gssm.train import train
from src.nanollama.checkpoint.find import find_checkpoint
from src.nanollama.config import ConfigError, compose, read_result
from src.nanollama.config.main import run_command


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A model that has learned a little on a graph of two latents."""
    path = tmp_path_factory.mktemp("run")
    graph = "gssm=[{name: A, state_dim: 3}, {name: B, state_dim: 2, parents: [A, X]}, {name: X, state_dim: 6, parents: [A, B]}]"
    args = [
        graph, "alpha_X=0.1", "alpha_Z=0.3", "data.seq_len=24", "data.batch_size=16", "model.emb_dim=24", "model.nb_layers=2",
        "model.nb_heads=2", "train.steps=60", "optim.lr=1e-2", "eval.period=0",
        "metrics.tensorboard=false", "train.device=cpu", f"run_dir={path}",
    ]  # fmt: skip
    assert run_command(TRAIN, train.__wrapped__, args) == 0
    return path


def test_the_linear_probe_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(500, 6)), rng.normal(size=(500, 2))
    y = x @ rng.normal(size=(6, 2)) + 3 + 0.1 * noise
    found = fit_linear(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), 1e-12)
    design = np.c_[x, np.ones(500)]
    expected = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert found(torch.tensor(x, dtype=torch.float32)).numpy() == pytest.approx(expected, abs=1e-4)


def test_collinear_features_do_not_break_it() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    doubled = torch.cat([x, x, torch.ones(200, 1)], dim=1)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    assert fit_linear(doubled, y, 1e-6)(doubled) == pytest.approx(y, abs=1e-2)


def test_the_mlp_finds_what_no_line_can_and_never_loses_much_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, 2, generator=generator) * 2 - 1
    line = fit_linear(x, x[:, :1] * x[:, 1:], 1e-6)
    mlp = fit_mlp(x, x[:, :1] * x[:, 1:], line, 32, 40, seed=0)
    fresh = torch.rand(1000, 2, generator=generator) * 2 - 1
    target = (fresh[:, :1] * fresh[:, 1:]).numpy()[:, None]
    r2 = [score(target, predict(fresh).numpy()[:, None], np.zeros(1)).r2 for predict in (line, mlp)]
    assert r2[0] < 0.02 and r2[1] > 0.95
    noise = torch.randn(4000, 1, generator=generator)
    kept = fit_mlp(x, noise, fit_linear(x, noise, 1e-6), 32, 5, seed=0)
    assert score(np.zeros((1000, 1, 1)) + 1, kept(fresh).numpy()[:, None] + 1, np.array([0.0])).r2 > 0.9  # early stopping: no invention


def test_a_feature_that_the_mlp_was_not_fitted_on_does_not_carry_it_away() -> None:
    """As the code of a token that comes in the scored sequences only."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(4000, 2)), np.zeros((4000, 1))], axis=1).astype(np.float32)
    y = torch.from_numpy(x[:, :1] * x[:, 1:2])
    seen = torch.from_numpy(x)
    predict = fit_mlp(seen, y, fit_linear(seen, y, 1e-6), 32, 10, seed=0)
    new = seen[:100].clone()
    new[:, 2] = 1.0
    assert ((predict(seen) - y) ** 2).mean() < 0.8 and torch.allclose(predict(new), predict(seen[:100]), atol=1e-5)


def test_score_is_one_minus_residual_over_total_with_the_error_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(400, 5, 3))
    predicted = target + 0.5 * rng.normal(size=target.shape)
    found = score(target, predicted, np.zeros(3))
    assert found.r2 == pytest.approx(1 - ((target - predicted) ** 2).sum() / (target**2).sum())
    repeats = [score(target[i], predicted[i], np.zeros(3)).r2 for i in rng.integers(400, size=(300, 400))]
    assert found.se == pytest.approx(np.std(repeats), rel=0.2)  # the bootstrap over sequences
    assert by_position(target, predicted, np.zeros(3)).mean() == pytest.approx(found.r2)


def test_windows_are_one_hot_and_know_where_the_sequence_began() -> None:
    codes = window(np.array([[1, 0, 1]], np.uint8), 2, 2).reshape(3, 2, 3)
    assert codes.argmax(-1).tolist() == [[2, 1], [1, 0], [0, 1]] and codes.sum() == 6


def test_probes_of_a_trained_model(run_dir, tmp_path, capsys) -> None:
    args = [f"checkpoint={run_dir}", "fit_sequences=200", "sequences=60", "windows=[1,3]", "epochs=5", "device=cpu", f"run_dir={tmp_path}"]
    assert run_command(BELIEFS, beliefs.__wrapped__, args) == 0
    found = json.loads((tmp_path / "beliefs.json").read_text())
    rows = {(r["features"], r["layer"], r["probe"], r["target"]): r for r in found["rows"]}
    assert len(rows) == len(found["rows"]) == (3 * 3 + 2) * 2 * 2  # trained, untrained, shuffled: embedding and 2 blocks; 2 windows
    best = max(r["r2"] for key, r in rows.items() if key[0] == "trained" and key[3] == "beliefs")
    for key, row in rows.items():
        top = 1 if key[3] == "beliefs" else found["ceiling"]["r2"]
        assert row["r2"] <= top + 4 * row["r2_se"]
        assert set(row["r2_by_latent"]) == {"A", "B"}
        if key[0] == "shuffled":
            assert row["r2"] < 0.02
    # the embedding is the last token, whatever the training
    one = [rows[name, layer, "linear", "beliefs"]["r2"] for name, layer in (("trained", 0), ("untrained", 0), ("last 1", None))]
    assert max(one) - min(one) < 0.01 < best
    assert best > max(r["r2"] for key, r in rows.items() if key[0] == "untrained" and key[3] == "beliefs") + 0.02
    assert len(found["r2_by_position"]["trained"]) == 24
    assert "exact filter" in capsys.readouterr().out
    assert "R² on the exact marginals" in (tmp_path / "beliefs.html").read_text()


def test_a_perfect_observer_scores_one_and_meets_the_ceiling(run_dir) -> None:
    """Features that are a rotation of the beliefs: R2 is 1 on them, and on the states what the filter itself has."""
    cfg = compose(BELIEFS, [f"checkpoint={run_dir}", "fit_sequences=200", "sequences=50", "windows=[1]", "device=cpu"])
    study = Study(open_trained(cfg), cfg)
    rotation = ortho_group.rvs(5, random_state=np.random.default_rng(0))
    values = torch.tensor(study.targets[..., :5] @ rotation, dtype=torch.float32)
    predicted = fit_linear(values[:200].flatten(0, 1), torch.tensor(study.targets[:200]).flatten(0, 1), 1e-9)(values[200:]).numpy()
    known, states = study._scores(study.targets[200:], predicted)
    assert known["r2"] == pytest.approx(1, abs=1e-3)
    assert states["r2"] == pytest.approx(study._ceiling()["r2"], abs=0.02)


def test_loss_by_position_agrees_with_the_evaluation_of_the_training(run_dir, tmp_path) -> None:
    args = [f"checkpoint={run_dir / 'checkpoints' / '60'}", "sequences=100", "seq_len=32", "device=cpu", f"run_dir={tmp_path}"]
    assert run_command(POSITIONS, positions.__wrapped__, args) == 0
    found = json.loads((tmp_path / "positions.json").read_text())
    assert len(found["excess_loss"]) == 32 and min(found["excess_loss"]) >= 0  # a divergence
    result = read_result(run_dir)
    within = np.mean(found["excess_loss"][:24])
    assert within == pytest.approx(result["excess_loss"], abs=5 * (result["excess_loss_se"] + found["mean_excess_loss_se"]))
    assert "Loss by position" in (tmp_path / "positions.html").read_text()


def small_run(path, graph: str, *more: str):
    args = [
        graph, "data.seq_len=8", "data.batch_size=4", "model.emb_dim=16", "model.nb_layers=1", "model.nb_heads=1", "train.steps=1",
        "eval.period=0", "eval.sequences=4", "metrics.tensorboard=false", "train.device=cpu", f"run_dir={path}", *more,
    ]  # fmt: skip
    assert run_command(TRAIN, train.__wrapped__, args) == 0
    return f"checkpoint={path}"


def test_runs_that_no_one_law_or_no_latent_describes_are_refused_with_the_reason(tmp_path, capsys) -> None:
    plain = "gssm=[{name: X, state_dim: 4, parents: [X]}]"
    only_tokens = small_run(tmp_path / "plain", plain, "alpha_X=0.3")
    assert run_command(BELIEFS, beliefs.__wrapped__, [only_tokens, "device=cpu", f"run_dir={tmp_path / 'a'}"]) == 2
    assert "its graph has no latent node" in capsys.readouterr().err
    setups = "setups={one: {alpha_X: 0.1, alpha_Z: null}, two: {alpha_X: 1, alpha_Z: null}}"
    mixed = small_run(tmp_path / "mixed", plain, setups, "data.weights=[0.5,0.5]")
    with pytest.raises(ConfigError, match=r"mixed the setups one, two \(data.weights\)"):
        open_trained(compose(POSITIONS, [mixed]))


def test_a_latent_that_never_changes_leaves_nothing_to_explain(tmp_path) -> None:
    graph = "gssm=[{name: Z, state_dim: 1}, {name: X, state_dim: 4, parents: [X, Z]}]"
    args = [small_run(tmp_path / "run", graph, "alpha_X=.3", "alpha_Z=1")]
    args += ["fit_sequences=4", "sequences=4", "epochs=1", "windows=[1]", "device=cpu", f"run_dir={tmp_path / 'out'}"]
    assert run_command(BELIEFS, beliefs.__wrapped__, args) == 0
    assert json.loads((tmp_path / "out" / "beliefs.json").read_text())["r2_by_position"]["trained"] == [0] * 8


def test_a_standard_error_needs_two_sequences() -> None:
    for entry, key in ((BELIEFS, "fit_sequences"), (POSITIONS, "sequences"), (DIFFICULTY, "measure.sequences")):
        with pytest.raises(ConfigError, match=f"{key} = 1: input should be greater than or equal to 2"):
            compose(entry, [f"{key}=1"])


def test_octaves_cover_every_position_once() -> None:
    for length in (1, 2, 3, 7, 8, 9):
        assert [i for part in octaves(length) for i in range(length)[part]] == list(range(length))


def test_what_is_no_checkpoint_is_named(tmp_path, run_dir) -> None:
    assert find_checkpoint(run_dir) == find_checkpoint(run_dir / "checkpoints" / "60") == run_dir / "checkpoints" / "60"
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run folder"):
        find_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="give checkpoint="):
        compose(BELIEFS, [])
    shutil.copytree(run_dir, tmp_path / "other")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    (tmp_path / "other" / "config.yaml").write_text(yaml.safe_dump({"model": config["model"]}))
    with pytest.raises(ConfigError, match="trained on no graph"):
        open_trained(compose(BELIEFS, [f"checkpoint={tmp_path / 'other'}"]))
