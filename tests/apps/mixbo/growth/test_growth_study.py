"""Growths as their users meet them: real processes, killed and resumed, with failing trials, wrong input, files and viewer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from src.apps.mixbo.compare.__main__ import main as compare
from src.apps.mixbo.config import SWEEP, identity
from src.apps.mixbo.controller import Controller
from src.apps.mixbo.folder import read_config
from src.apps.mixbo.growth.folder import stories
from src.apps.mixbo.growth.parts import growth, growth_study
from src.apps.mixbo.growth.probe import turns
from src.apps.mixbo.growth.shapes import Shapes, word
from src.apps.mixbo.growth.story import Story
from src.apps.mixbo.sweeper import translate
from src.apps.mixbo.view import main as view
from src.nanollama.config import ConfigError, RunFailed, RunFolder, compose
from src.nanollama.config.compose import as_dict
from src.nanollama.launcher.signals import StopFlag

SCRIPT = "tests.apps.mixbo.growth.growing"
GROW = [
    "strategy=greedy", f"training.script={SCRIPT}", "growth.param_names=[n_embd,mlp_size,n_layer]", "growth.increments=[32,32,1]",
    "growth.num_iterations=1", "growth.stuck=[]", "metrics.tensorboard=false",
]  # fmt: skip


def prepare(run_dir: Path, *argv: str):
    """The parts of a growth as the command assembles them, in this process."""
    cfg = compose(SWEEP, [*GROW, *argv, f"run_dir={run_dir}"])
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**as_dict(cfg), "run_dir": None}))
    return growth(cfg, RunFolder(run_dir))


def grow(run_dir: Path, *argv: str) -> str:
    """Run (or resume) a growth to its end; returns the reason."""
    parts = prepare(run_dir, *argv)
    try:
        return Controller(parts.ask, parts.study, parts.runner, parts.limits, parts.watch).run(StopFlag())
    finally:
        parts.watch.close()
        parts.study.close()


def story(run_dir: Path) -> Story:
    return stories(read_config(run_dir), run_dir)()


def decisions(run_dir: Path) -> list[str]:
    return [chapter.action for chapter in story(run_dir).chapters]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A growth that nobody disturbed, with upstream's file and a shape that diverges."""
    run_dir = tmp_path_factory.mktemp("growth") / "whole"
    grow(run_dir, f"growth.results_file={run_dir}.yaml", "growth.baseline={bad: {nb_layers_2: diverge}}", "metrics.tensorboard=true")
    return run_dir


# --- the study --------------------------------------------------------------------------------------------------------------------


def test_it_grows_where_the_gain_is(whole: Path) -> None:
    told = story(whole)
    assert [chapter.action for chapter in told.chapters[:1]] == ["accepted mlp_size 32→64"]
    answer = json.loads((whole / "best.json").read_text())
    assert answer["overrides"] == {"model.emb_dim": 32, "model.ffn_dim": 64, "model.nb_layers": 1} and answer["steps"] == 1
    html = (whole / "report.html").read_text()
    assert all(title in html for title in ("Path", "Loss against parameters", "Efficiency", "Rounds", "Failures"))
    assert "accepted mlp_size 32→64" in html or "accepted mlp_size 32\\u219264" in html
    assert list((whole / "tb").rglob("events*"))


def test_6_11_every_trial_has_a_process_and_a_folder_of_its_own(whole: Path) -> None:
    started = [folder / "started" for folder in (whole / "trials").iterdir()]
    pids = [file.read_text().split() for file in started]
    assert len(pids) == len(story(whole).records) and all(len(each) == 1 for each in pids)
    assert len({each[0] for each in pids}) == len(pids)


def test_7_12_a_failed_trial_is_on_record(whole: Path) -> None:
    failed = [record for record in story(whole).records if record.status == "failed"]
    assert {record.wanted.label for record in failed} == {"n_layer 1→2"} and failed[0].measured.status == "nan"
    assert "told to diverge" in failed[0].message


def test_9_false_is_passed_on_like_any_other_value(whole: Path) -> None:
    cfg = compose(SWEEP, [*GROW, "growth.baseline={model.tie_embeddings: false}"])
    words = Shapes(cfg.training, cfg.growth).words((), ())
    assert "model.tie_embeddings=false" in words
    assert [word(value) for value in (True, None, (1, 2), 0.1, "a=b,c")] == ["true", "null", "[1,2]", "0.1", "'a=b,c'"]


def test_10_17_results_have_names(whole: Path) -> None:
    record = story(whole).records[0]
    assert (record.measured.best_iter, record.measured.vram, record.measured.params) == (200, 100.0, 11360.0)


def test_13_16_18_one_evaluation_at_the_end_and_rates_may_be_directions(tmp_path: Path, whole: Path) -> None:
    asked = yaml.safe_load((whole / "trials/0/config.yaml").read_text())
    assert asked["eval"]["period"] == 0 and asked["checkpoint"]["keep"] == 1
    cfg = compose(SWEEP, [*GROW[:2], "growth.param_names=[n_embd,learning_rate]", "growth.increments=[32,-2e-4]",
                          "growth.joint=[[n_embd,learning_rate]]"])  # fmt: skip
    assert Shapes(cfg.training, cfg.growth).start == (("model.emb_dim", 32), ("optim.lr", 1e-3))


def test_upstreams_file_has_upstreams_layout(whole: Path) -> None:
    log = yaml.safe_load(Path(f"{whole}.yaml").read_text())
    first, second, *_ = log["iterations"]
    assert log["stop_reason"].startswith("growth.num_iterations") and log["baseline_config"]["mlp_size"] == 64
    assert first["iter"] == -1 and first["baseline_config_after"]["n_embd"] == 32
    assert set(first["baseline_metrics"]) == {"loss", "score", "params", "peak_gpu_mb", "iter_latency_avg", "best_iter"}
    chosen = second["chosen"]
    assert chosen["param"] == "mlp_size" and chosen["value"] == 64 and chosen in second["candidates"]
    assert chosen["delta_params"] == chosen["num_params"] - first["baseline_metrics"]["params"] > 0
    assert {seed["seed"] for seed in chosen["seeds"]} >= {0, 1}


def test_the_viewer_shows_it(whole: Path, capsys) -> None:
    assert view([str(whole), "--once"]) == 0
    shown = capsys.readouterr().out
    for text in ("mlp_size 32→64", "accepted", "failed: nan", "Noise: sigma", "not identifiable", "told to diverge", "stopped:"):
        assert text in shown
    assert view([str(whole), "--html"]) == 0 and "report" in capsys.readouterr().out


def test_the_viewer_reads_only(whole: Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and "study.db" not in path.name}
    trials = story(whole).records
    assert view([str(whole), "--once"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before and story(whole).records == trials


@pytest.mark.parametrize(("argv", "said"), [(["/nowhere"], "no sweep"), (["--twice", "x"], "name one sweep"), ([], "Look at a sweep")])
def test_the_viewer_says_what_is_wrong(argv: list[str], said: str, capsys) -> None:
    assert view(argv) == 2
    out = capsys.readouterr()
    assert said in out.err + out.out


# --- killed and resumed -----------------------------------------------------------------------------------------------------------


def test_12_killed_at_any_moment_and_resumed_it_decides_the_same(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "cut"
    argv = [*GROW, "growth.baseline={bad: {nb_layers_2: diverge}, wait_s: 0.05}", f"run_dir={run_dir}"]
    command = [sys.executable, "-m", "src.apps.mixbo.sweep", *argv]
    for trials in (3, 9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and len(list((run_dir / "trials").glob("*/result.json"))) < trials:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)  # the sweep alone: its trials go on, as after a crash of it
        process.wait()
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    assert decisions(run_dir) == decisions(whole)
    wanted = [(record.wanted.points, record.wanted.seed) for record in story(run_dir).records]
    assert len(set(wanted)) == len(wanted) == len(story(whole).records)
    assert all(record.status != "running" for record in story(run_dir).records)


def test_4_an_override_on_resume_measures_the_incumbent_anew(tmp_path: Path) -> None:
    run_dir = tmp_path / "more"
    argv = ["growth.num_iterations=1", "growth.param_names=[mlp_size]", "growth.increments=[32]", "growth.baseline={noise: 2e-4}"]
    grow(run_dir, *argv)
    before = story(run_dir)
    grow(run_dir, *argv, "growth.override={max_iters: 400}")
    after = story(run_dir)
    assert after.records[: len(before.records)] == before.records
    assert [chapter.action for chapter in after.chapters][:2] == ["accepted mlp_size 32→64", "override: train.steps=400"]
    grow(run_dir, *argv[1:], "growth.num_iterations=2")  # without the word it stays
    last = story(run_dir)
    assert last.state.cohort == 1 and last.state.accepted == 2 and dict(last.state.overrides) == {"train.steps": 400}
    renewed = [record.wanted for record in last.records if record.wanted.cohort == 1]
    assert renewed[0].points[0] == before.state.incumbent and dict(renewed[0].overrides) == {"train.steps": 400}


def test_equal_trainings_of_a_growth_beside_it_are_copied(tmp_path: Path) -> None:
    argv = ["growth.num_iterations=1", "growth.param_names=[mlp_size]", "growth.increments=[32]", "growth.baseline={noise: 2e-4}"]
    grow(tmp_path / "first", *argv)
    (tmp_path / "first/trials/99").mkdir()
    (tmp_path / "first/trials/99/result.json").write_text('{"status": "ok"}')  # a probe has no config
    grow(tmp_path / "second", *argv, "growth.efficiency_target=flops", "growth.reuse=true")
    first, second = story(tmp_path / "first"), story(tmp_path / "second")
    assert [record.measured for record in second.records] == [record.measured for record in first.records]
    assert not list((tmp_path / "second" / "trials").glob("*/started"))  # nothing was trained
    grow(tmp_path / "third", *argv[:-1], "growth.baseline={noise: 3e-4}", "growth.reuse=true")
    assert len(list((tmp_path / "third" / "trials").glob("*/started"))) == len(story(tmp_path / "third").records)


def test_trials_that_die_in_any_way_do_not_stop_it(tmp_path: Path) -> None:
    bad = "growth.baseline={bad: {emb_dim_64: kill, ffn_dim_64: exit, nb_layers_2: raise}}"
    reason = grow(tmp_path / "bad", bad, "pool.retries=0", "growth.random_iterations=2")
    verdicts = {arm.move.direction: arm.verdict for arm in story(tmp_path / "bad").chapters[-1].table.arms}
    assert verdicts == {"model.emb_dim": "failed: killed", "model.ffn_dim": "failed: killed", "model.nb_layers": "failed: error"}
    assert "no direction could be measured: failed" in reason


def test_a_shape_that_does_not_divide_is_listed_and_not_trained(tmp_path: Path) -> None:
    argv = ["growth.param_names=[n_head,mlp_size]", "growth.increments=[2,32]", "growth.num_iterations=1",
            "growth.baseline={n_qk_head_dim: null, n_v_head_dim: null}"]  # fmt: skip
    grow(tmp_path / "odd", *argv)
    arms = story(tmp_path / "odd").chapters[0].table.arms
    assert arms[0].verdict.startswith("invalid") and "nb_heads=3" in arms[0].verdict and arms[1].verdict == "accepted"
    assert not any(dict(record.wanted.points[0])["model.nb_heads"] == 3 for record in story(tmp_path / "odd").records)


# --- wrong input ------------------------------------------------------------------------------------------------------------------

BAD = {
    "unknown direction": (["growth.param_names=[n_embed]", "growth.increments=[1]"], "n_embd"),
    "unknown key": (["growth.param_names=[model.n_embd]", "growth.increments=[1]"], "emb_dim"),
    "too few increments": (["growth.increments=[1,2]"], "one for all"),
    "an increment of nothing": (["growth.increments=[0,32,1]"], "0"),
    "half a layer": (["growth.increments=[32,32,0.5]"], "whole numbers"),
    "increments of layers that there are not": (
        ["growth.param_names=[n_embd]", "growth.increments=[[1,2]]", "growth.baseline={n_embd: 32}"], "one increment"),
    "a direction that is no number": (["growth.param_names=[model.tie_embeddings]", "growth.increments=[1]"], "no number"),
    "one direction twice": (["growth.param_names=[n_embd,model.emb_dim]", "growth.increments=[1]"], "twice"),
    "joint with another": (["growth.joint=[[n_embd,n_head]]"], "n_head"),
    "a baseline that does not divide": (["growth.baseline={n_head: 3, n_qk_head_dim: null}"], "nb_heads"),
    "a baseline of no such key": (["growth.baseline={n_embed: 3}"], "n_embd"),
    "an override of a direction": (["growth.override={n_embd: 64}"], "direction"),
    "a simulated growth": (["objective=simulator"], "objective"),
    "full runs": (["budget.full_runs=3"], "full_runs"),
    "unknown cost": (["growth.efficiency_target=latency"], "efficiency_target"),
    "command that trains nothing": (["training.script=src.apps.mixbo.sweep"], "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=BAD.keys())
def test_wrong_input_is_refused_before_anything_is_trained(case: str, tmp_path: Path) -> None:
    argv, said = BAD[case]
    with pytest.raises(ConfigError, match=said):
        prepare(tmp_path / "run", *argv)
    assert not (tmp_path / "run/trials").exists()


def test_what_compares_mixtures_says_that_a_growth_has_none(whole: Path, capsys) -> None:
    assert compare([str(whole)]) == 2 and "has no mixtures" in capsys.readouterr().err


def test_a_budget_that_does_not_pay_for_the_baseline_is_refused(tmp_path) -> None:
    cfg = compose(SWEEP, [*GROW, "budget.flops=10", f"run_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="first trial"):
        growth(cfg, RunFolder(tmp_path))


def test_the_sweeper_says_where_models_grow() -> None:
    with pytest.raises(ConfigError, match="strategy=greedy"):
        translate(SCRIPT, [], {"strategy": "greedy"}, None)


def test_a_baseline_that_does_not_train_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"baseline does not train.*nan.*told to diverge"):
        grow(tmp_path / "nan", "growth.baseline={bad: {nb_layers_1: diverge}}")


def test_files_of_another_study_are_left_as_they_are(tmp_path: Path, whole: Path) -> None:
    theirs = Path(f"{whole}.yaml")
    contents = theirs.read_text()
    with pytest.raises(ConfigError, match="not of"):
        prepare(tmp_path / "other", f"growth.results_file={theirs}")
    upstream = tmp_path / "sweep_log.yaml"
    upstream.write_text("baseline_config: {n_layer: 1}\niterations: []\n")
    with pytest.raises(ConfigError, match="another tool"):
        prepare(tmp_path / "other", f"growth.results_file={upstream}")
    assert theirs.read_text() == contents and upstream.read_text().startswith("baseline_config")
    cfg = compose(SWEEP, [*GROW, f"run_dir={whole}"])
    study = growth_study(cfg.__class__(**{**cfg.__dict__, "name": read_config(whole).name}), whole)
    study.close()
    records = story(whole).records
    assert identity(cfg) != identity(read_config(whole)) and len(records) == len(story(whole).records)


# --- costs and real trainings -----------------------------------------------------------------------------------------------------


def test_a_growth_under_a_measured_cost(tmp_path: Path) -> None:
    run_dir = tmp_path / "vram"
    grow(run_dir, "growth.efficiency_target=vram", "growth.num_iterations=1", "growth.param_names=[mlp_size]", "growth.increments=[2048]")
    told = story(run_dir)
    (probe,) = [record for record in told.records if record.wanted.kind == "probe"]
    assert probe.status == "ok" and len(probe.costs) == 2
    (arm,) = told.chapters[0].table.arms
    assert arm.verdict == "accepted" and arm.cost == pytest.approx(probe.costs[1].value - probe.costs[0].value) and arm.cost > 1
    small, large = json.loads((run_dir / "trials" / str(probe.number) / "result.json").read_text())["costs"]
    assert 0 < small["iter"][0] < large["iter"][0] and small["vram"][0] + 1 < large["vram"][0] and large["vram"][1] < 1
    assert turns(3, 2) == [0, 1, 2, 2, 1, 0]


def test_real_trainings_grow(tmp_path: Path) -> None:
    from torch import device

    from src.nanollama.model.transformer import Transformer

    corpus = tmp_path / "corpus"
    for domain in ("a", "b"):
        (corpus / domain).mkdir(parents=True)
        for i in range(12):
            (corpus / domain / f"{i}.txt").write_text(f"{domain} counts {i}: " + " ".join(str(j * (i + 1)) for j in range(200)))
    run_dir = tmp_path / "real"
    grow(
        run_dir, "training.script=src.apps.mixbo.train", "growth.rule=upstream", "growth.random_iterations=1", "growth.num_iterations=1",
        "growth.param_names=[n_embd]", "growth.increments=[32]",
        f"training.overrides=['data.corpus={corpus}','data.cache={tmp_path}/cache']",
        "growth.baseline={n_layer: 1, n_head: 1, n_embd: 16, mlp_size: 32, max_iters: 6, batch_size: 4, block_size: 32}",
    )  # fmt: skip
    first, second = story(run_dir).records
    assert first.status == second.status == "ok" and first.measured.loss and 3 < first.measured.loss < 6
    cfg = read_config(run_dir)
    shapes = Shapes(cfg.training, cfg.growth)
    with device("meta"):
        counts = [sum(p.numel() for p in Transformer(shapes.config(r.wanted.points[0], ()).model).parameters()) for r in (first, second)]
    assert [first.measured.params, second.measured.params] == counts == [shapes.params(r.wanted.points[0], ()) for r in (first, second)]
    assert first.measured.iter and first.measured.vram and first.measured.vram > 50
