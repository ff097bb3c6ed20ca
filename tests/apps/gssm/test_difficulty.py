import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from naive_gssm import reference_graph, steps

from src.apps.gssm import difficulty, difficulty_page, graph, kernels
from src.apps.gssm.config import GssmConfig, domain, resolve
from src.apps.gssm.filter import Filter
from src.apps.gssm.measure_config import DifficultyConfig, LogGrid, MapConfig, MeasureConfig, resolve_difficulty, settings
from src.apps.gssm.node import NodeConfig
from src.apps.gssm.sampler import Sampler
from src.nanollama.config import ConfigError

QUICK = MeasureConfig(tokens=16_384, sequences=64, windows=(1, 2))


def node(name, dim, parents=(), **more):
    return NodeConfig(name=name, state_dim=dim, parents=parents, **more)


def small(alpha_X=0.3, alpha_Z=0.3):
    return graph.build([node("Z", 3, ("X",)), node("X", 4, ("Z", "X"))], alpha_X, alpha_Z)


def test_measure_has_the_keys_of_the_contract():
    found = difficulty.measure(kernels.draw(reference_graph(latents=2), 0), 32, QUICK)
    for key in ("gzip_legacy", "gzip_normalised", "unigram_loss", "bigram_loss", "bayes_loss", "bayes_loss_se", "log_vocab"):
        assert isinstance(found[key], float)
    assert found["log_vocab"] == pytest.approx(np.log(32))
    assert found["tokens"] == 16_384
    assert found["bayes_loss"] < found["window_2"] < found["window_1"] < found["unigram_loss"] <= found["log_vocab"] + 0.1
    assert found == difficulty.measure(kernels.draw(reference_graph(latents=2), 0), 32, QUICK)


def test_defect_the_calibration_grid_has_every_measure():
    """Upstream, the call that measured gzip lacked an argument: the grid crashed."""
    meter = difficulty.Meter(kernels.draw(small(), 0), 16, QUICK)
    for name in (*difficulty.MEASURES, "ngram_3", "window_2"):
        assert np.isfinite(meter.read(name).value)
    with pytest.raises(ConfigError, match=r"no measure 'entropy'; there are gzip_legacy"):
        meter.read("entropy")
    with pytest.raises(ConfigError, match=r"window_17.*data.seq_len is 16"):
        meter.read("window_17")


def test_occupancy_is_the_exact_law():
    """Push the law of the whole state through the naive transition, one step at a time."""
    drawn = kernels.draw(small(), 3)
    law = {(0, 0): 1.0}
    total = np.zeros((4, 3))
    for _ in range(5):
        following = {}
        for (z, x), p in law.items():
            for new, q in steps(drawn, (z, x)).items():
                following[new] = following.get(new, 0) + p * q
            for z_new in range(3):
                total[x, z_new] += p * drawn.tables[0][z, x, z_new]
        law = following
    np.testing.assert_allclose(Filter(drawn).occupancy(5), total / 5, atol=1e-12)


def test_window_law_is_exact():
    """p(x_3 | x_2) from the exact joint of the first tokens, with the window's place known (one position)."""
    drawn = kernels.draw(small(), 3)
    joint = np.zeros((4, 4))
    for s1, p in steps(drawn, (0, 0)).items():
        for s2, q in steps(drawn, s1).items():
            joint[s1[1], s2[1]] += p * q
    found = Filter(drawn).window_predictive(np.array([[a, 0] for a in range(4)]), Filter(drawn).occupancy(1))
    np.testing.assert_allclose(found, joint / joint.sum(axis=1, keepdims=True), atol=1e-12)


def test_one_token_of_context_is_the_bigram_level():
    """Two routes to the same number: the exact law of a window of one, and counts of pairs."""
    meter = difficulty.Meter(kernels.draw(reference_graph(0.05, 0.1, latents=3), 0), 64, MeasureConfig())
    window, counted = meter.read("window_1"), meter.read("bigram_loss")
    assert counted.value - window.value == pytest.approx(0.005, abs=0.02)  # counting pays a little for estimating 1024 numbers
    assert meter.read("window_32").value == pytest.approx(meter.read("bayes_loss").value, abs=1e-3)


def test_standard_errors_are_what_other_sequences_show():
    drawn = kernels.draw(graph.build([node("Z1", 3, ("X",)), node("Z2", 3, ("X",)), node("X", 8, ("Z1", "Z2"))], 0.01, 0.1), 0)
    for name in ("bayes_loss", "window_1"):
        each = [difficulty.Meter(drawn, 32, MeasureConfig(sequences=64, seed=seed)).read(name) for seed in range(60)]
        assert np.mean([e.se for e in each]) == pytest.approx(np.std([e.value for e in each], ddof=1), rel=0.2)


def test_infinite_window_equals_the_whole_past():
    drawn = kernels.draw(small(), 1)
    tokens = Sampler(drawn, 0).sample("test", 0, 50, 12)
    found = Filter(drawn)
    # the window starts at the first token, and occupancy(1) is exactly what is known before it
    np.testing.assert_allclose(found.window_predictive(tokens, found.occupancy(1)), found.predictive(tokens)[:, -1], atol=1e-12)


def test_a_slow_filter_gets_fewer_sequences_and_no_windows(monkeypatch):
    latents = [node(f"Z{i}", 4, ("X",)) for i in range(6)]
    drawn = kernels.draw(graph.build([*latents, node("X", 8, tuple(n.name for n in latents))], 0.1, 0.1), 0)
    assert difficulty.Meter(drawn, 256, MeasureConfig()).sequences == 256
    assert difficulty.Meter(drawn, 10_000, MeasureConfig()).sequences == 10
    assert difficulty.Meter(drawn, 10_000, MeasureConfig(sequences=3)).sequences == 3
    monkeypatch.setattr(difficulty, "WORK", 1.0)
    found = difficulty.measure(kernels.draw(small(), 0), 16, QUICK)
    assert found["sequences"] == 8 and "window_1" not in found and found["bayes_loss"] > 0


def test_combine_averages_over_graphs():
    rows = [{"a": 1.0, "a_se": 0.3, "n": 5, "inner": {"b": 2.0}}, {"a": 3.0, "a_se": 0.4, "n": 5, "inner": {"b": 2.0}}]
    found = difficulty.combine(rows)
    assert found == {"a": 2.0, "a_se_graphs": 1.0, "a_se": 0.25, "n": 5, "inner": {"b": 2.0}}


def test_settings_of_a_config():
    nodes = (node("Z", 3), node("X", 4, ("Z",)))
    setups = {"one": {"alpha_X": 0.1, "alpha_Z": 0.2}, "two": {"alpha_X": 0.3, "alpha_Z": 0.4, "graph_seed": 7}}
    assert settings(DifficultyConfig(gssm=nodes, alpha_X=1, alpha_Z=2)) == {"gssm": (1, 2, 0)}
    assert settings(DifficultyConfig(gssm=nodes, setups=setups)) == {"one": (0.1, 0.2, 0), "two": (0.3, 0.4, 7)}
    assert settings(DifficultyConfig(gssm=nodes, setups=setups, setup="two")) == {"two": (0.3, 0.4, 7)}
    axis = LogGrid(low=0.01, high=1, num=3)
    mapped = settings(DifficultyConfig(gssm=nodes, alpha_Z=5, map=MapConfig(alpha_X=axis)))
    assert [z for _, z, _ in mapped.values()] == [5, 5, 5]
    assert [x for x, _, _ in mapped.values()] == pytest.approx([0.01, 0.1, 1])
    around = settings(DifficultyConfig(gssm=nodes, setups=setups, setup="two", map=MapConfig(alpha_X=axis)))
    assert [(z, seed) for _, z, seed in around.values()] == [(0.4, 7)] * 3
    with pytest.raises(ConfigError, match=r"setup=three: no such entry of setups; there are: one, two"):
        resolve_difficulty(DifficultyConfig(gssm=nodes, setups=setups, setup="three"))
    with pytest.raises(ConfigError, match="gssm is empty"):
        resolve_difficulty(DifficultyConfig())


def test_a_setup_is_measured_on_the_kernels_that_a_training_on_it_has():
    setups = {"one": {"alpha_X": 0.1, "alpha_Z": 0.2}, "two": {"alpha_X": 0.1, "alpha_Z": 0.2, "graph_seed": 7}}
    cfg = DifficultyConfig(gssm=(node("Z", 3), node("X", 4, ("Z",))), setups=setups, graph_seeds=2, measure=QUICK)
    rows = difficulty.survey(cfg)
    assert [row["graph_seeds"] for row in rows] == [[0, 1], [7, 8]]
    law = kernels.draw(graph.build(cfg.gssm, 0.1, 0.2), domain(cfg, "two").graph_seed)
    assert rows[1]["each"][0] == difficulty.measure(law, cfg.data.seq_len, QUICK)


def test_what_is_printed_as_setups_can_be_pasted():
    rows = {"a": {"alpha_X": None, "alpha_Z": 0.123456789, "graph_seed": 3, "difficulty": 1.23456}}
    pasted = yaml.safe_load(difficulty_page.setups_yaml(rows))["setups"]
    assert pasted == {"a": {"alpha_X": None, "alpha_Z": 0.123457, "graph_seed": 3, "difficulty": 1.235}}
    nodes = (node("Z", 3), NodeConfig(name="X", state_dim=4, parents=("Z",), alpha=0.1))
    resolved = resolve(GssmConfig(gssm=nodes, setups=pasted, setup="a"))
    assert (resolved.alpha_X, resolved.alpha_Z, resolved.graph_seed) == (None, 0.123457, 3)


def test_a_map_of_one_axis_is_a_curve():
    """A heat map of one column shows nothing on a logarithmic axis, nor does one over a concentration that no node takes."""
    rows = [{"alpha_X": None, "alpha_Z": z, "gzip_legacy": 5 * z, "bigram_loss": z, "bayes_loss": z} for z in (0.01, 0.1)]
    (trace,) = difficulty_page.maps(rows).figures[0].data
    assert trace["x"] == [0.01, 0.1] and trace["y"] == [0.05, 0.5] and "type" not in trace
    (heat,) = difficulty_page.maps([{**row, "alpha_X": x} for x in (1, 2) for row in rows]).figures[0].data
    assert heat["type"] == "heatmap" and (heat["x"], heat["y"], heat["z"]) == ([1, 2], [0.01, 0.1], [[0.05, 0.05], [0.5, 0.5]])


def command(module, *args):
    return subprocess.run([sys.executable, "-m", f"src.apps.gssm.{module}", *args], capture_output=True, text=True)


def test_the_command_prints_a_table_and_writes_what_it_found(tmp_path):
    quick = ["measure.tokens=4096", "measure.sequences=8", "measure.windows=[1]", "data.seq_len=16"]
    done = command("difficulty", "experiment=debug", *quick, "graph_seeds=2", f"run_dir={tmp_path}/one")
    assert done.returncode == 0, done.stderr
    assert "gzip_legacy" in done.stdout and "setup1: {alpha_X: 0.001, alpha_Z: 0.125" in done.stdout
    found = json.loads((tmp_path / "one/difficulty.json").read_text())
    assert found["graph_seeds"] == [0, 1] and found["bayes_loss_se_graphs"] > 0
    assert "plotly" in (tmp_path / "one/difficulty.html").read_text()
    grid = ["map.alpha_X.num=2", "map.alpha_Z.num=2"]
    done = command("difficulty", "experiment=debug", *quick, *grid, f"run_dir={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "two/difficulty.json").read_text())["settings"]) == 4
    assert "heatmap" in (tmp_path / "two/difficulty.html").read_text()
