"""The report of a sweep: numbers behind the pictures against independent ones; folders in every state."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from src.apps.mixbo.build import build
from src.apps.mixbo.config import SWEEP
from src.apps.mixbo.folder import read_config, read_history
from src.apps.mixbo.history import History
from src.apps.mixbo.records import Record
from src.apps.mixbo.report.__main__ import main
from src.apps.mixbo.report.answer import answer_in_words
from src.apps.mixbo.report.calibration import leave_one_out, one_step_ahead
from src.apps.mixbo.report.folder import Sweep, Trial, load
from src.apps.mixbo.report.page import sweep_page
from src.apps.mixbo.report.simplex import along
from src.apps.mixbo.report.trust import measured, posterior_correlations, reference, true_correlations
from src.apps.mixbo.study import Study
from src.apps.mixbo.surrogate import condition
from src.apps.mixbo.truth import Truth
from src.nanollama.config import compose
from src.nanollama.report import Figure, Table

SECTIONS = (
    "The mixture", "The answer over the cost", "Which fidelities were bought, and when", "Trust in each fidelity",
    "The posterior over mixtures", "Predicted against observed", "Learning curves", "All trials", "Settings",
)  # fmt: skip


def titles(folder: Path) -> list[str]:
    return [section.title for section in sweep_page(load(folder)).sections]


def test_progress_has_a_row_a_trial_with_cost_prediction_and_true_regret(kg: Path) -> None:
    rows, best = read_history(kg), json.loads((kg / "best.json").read_text())
    assert [row["trial"] for row in rows] == list(range(12))
    sweep = load(kg)
    costs = np.cumsum([record.flops for record in sweep.records])
    np.testing.assert_allclose([row["spent_flops"] for row in rows], costs)
    assert rows[-1]["predicted"] == best["predicted"] and rows[-1]["weights"] == best["weights"]
    simulator = sweep.truth.objective
    for row in rows:
        assert row["regret"] == pytest.approx(simulator.regret(list(row["weights"].values())), abs=1e-12)
        assert row["true_value"] - row["regret"] == pytest.approx(sweep.truth.best)


def test_lines_that_a_killed_sweep_could_not_write_are_made_up(kg: Path, tmp_path: Path) -> None:
    whole = (kg / "progress.jsonl").read_text()
    (tmp_path / "progress.jsonl").write_text("".join(whole.splitlines(keepends=True)[:7]) + '{"trial": 7, "tri')
    sweep = load(kg)
    history = History(tmp_path, sweep.problem, sweep.truth)
    assert [row["trial"] for row in history.update(sweep.records)] == [7, 8, 9, 10, 11]
    assert history.update(sweep.records) == []
    history.close()
    assert (tmp_path / "progress.jsonl").read_text() == whole


def test_history_of_another_study_is_dropped(kg: Path, tmp_path: Path) -> None:
    shutil.copy(kg / "progress.jsonl", tmp_path)
    sweep = load(kg)
    history = History(tmp_path, sweep.problem, sweep.truth)
    assert [row["trial"] for row in history.update(sweep.records[:2])] == [0, 1]
    history.close()
    assert [row["trial"] for row in read_history(tmp_path)] == [0, 1]


def test_records_from_the_tables_equal_those_of_the_study(kg: Path) -> None:
    cfg, sweep = read_config(kg), load(kg)
    from src.apps.mixbo.config import identity

    study = Study(f"{cfg.name}-{identity(cfg)}", Study.sqlite(kg), sweep.problem, identity(cfg))
    assert tuple(sweep.records) == study.records()


def test_page_of_a_finished_sweep(kg: Path) -> None:
    assert (kg / "report.html").is_file() and titles(kg) == list(SECTIONS)
    page = sweep_page(load(kg))
    assert page.lead.startswith("For 1B at step 8000, train on ") and "stopped: budget.trials = 12 are used" in page.facts
    html = page.render()
    assert html.count("of 90\u00a0% intervals 67 to 92\u00a0% held") == 2  # where they are told, and where they are drawn
    assert "<i>c" not in html and "&lt;i&gt;c" in html  # a domain's name is text, not markup


def test_a_mixture_is_shown_once_and_the_optimum_always(kg: Path, tmp_path: Path) -> None:
    shutil.copytree(kg, tmp_path / "sweep", ignore=shutil.ignore_patterns("trials", "tb"))
    sweep = load(tmp_path / "sweep")
    third = dict.fromkeys(sweep.problem.space.domains, 1 / 3)
    for weights, expected in (
        ({}, ["recommended", "best tested mixture", "true optimum"]),  # the uniform one, and not tested at the target
        ({"weights": third}, ["recommended", "true optimum"]),
        ({"weights": dict(zip(third, sweep.truth.optimum, strict=True))}, ["recommended", "best tested mixture", "true optimum"]),
    ):
        (tmp_path / "sweep" / "best.json").write_text(json.dumps(sweep.answer | {"baseline": third} | weights))
        table = next(s for s in sweep_page(load(tmp_path / "sweep")).sections if s.title == "The mixture").blocks[1]
        assert isinstance(table, Table) and [row[0] for row in table.rows] == expected


def test_the_axis_of_the_answer_begins_with_the_last_guess_before_anything_was_measured_at_the_target(kg: Path, tmp_path: Path) -> None:
    young = tmp_path / "young"
    shutil.copytree(kg, young, ignore=shutil.ignore_patterns("trials", "tb", "result.json"))
    first = next(i for i, record in enumerate(load(kg).records) if record.model_size == "1B" and record.steps == 8000)
    for name, header in (("trials.csv", 1), ("progress.jsonl", 0)):  # ends with the first value at the target
        (young / name).write_text("".join((kg / name).read_text().splitlines(keepends=True)[: first + 1 + header]))
    figure = next(s for s in sweep_page(load(young)).sections if s.title == "The answer over the cost").blocks[0]
    assert isinstance(figure, Figure)
    rows, seen = read_history(young), load(young).records[first].curve[-1][1][0]
    values = [seen, rows[-1]["low"], rows[-1]["high"], *(row[key] for row in rows[-2:] for key in ("predicted", "true_value"))]
    pad = 0.08 * (max(values) - min(values))
    assert figure.layout["yaxis"]["range"] == pytest.approx([min(values) - pad, max(values) + pad])


def test_command_rebuilds_the_page(kg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(kg), f"out={tmp_path / 'again.html'}"]) == 0
    html, said = (tmp_path / "again.html").read_text(), capsys.readouterr().out
    assert "train on" in said and all(title in html for title in SECTIONS)
    weights = json.loads((kg / "best.json").read_text())["weights"]
    assert all(f"{100 * weight:.1f}" in html for weight in weights.values())
    assert main([str(tmp_path)]) == 2 and "no sweep" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_page_of_a_young_sweep(kg: Path, tmp_path: Path, kept: int) -> None:
    young = tmp_path / "young"
    shutil.copytree(kg, young, ignore=shutil.ignore_patterns("trials", "tb", "best.json", "result.json"))
    for name in ("trials.csv", "progress.jsonl"):
        lines = (young / name).read_text().splitlines(keepends=True)
        (young / name).write_text("".join(lines[: kept + (name == "trials.csv")]))
    found = titles(young)
    assert found[-1] == "Settings" and ("The mixture" in found) == (kept > 0) and ("Predicted against observed" in found) == (kept >= 3)
    assert answer_in_words(load(young)).startswith("No trial has a result yet")
    page = sweep_page(load(young))
    page.render()
    assert not any(re.search(r"[a-z0-9]\.[A-Z]", section.lead) for section in page.sections)  # sentences stand apart


def test_running_and_failed_trials_are_shown_as_such(kg: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(kg, folder, ignore=shutil.ignore_patterns("trials", "tb"))
    lines = (folder / "trials.csv").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace(",ok,", ",oom,", 1)
    lines[-1] = lines[-1].replace(",ok,", ",running,", 1)
    (folder / "trials.csv").write_text("".join(lines))
    curves = [line for line in (folder / "curves.csv").read_text().splitlines(keepends=True) if not line.startswith(("2,", "11,"))]
    (folder / "curves.csv").write_text("".join(curves))
    sweep = load(folder)
    assert [r.status for r in sweep.records].count("failed") == 1 and sweep.records[-1].status == "running"
    page = sweep_page(sweep)
    assert "12 trials, 1 running, 1 failed" in page.facts and "oom" in page.render()


class JointNormal:
    """A surrogate whose fidelities have a known correlation r with the target, independently for every mixture."""

    def __init__(self, r: np.ndarray) -> None:
        self.loadings = np.stack([r.ravel(), np.sqrt(1 - r.ravel() ** 2)], axis=1)  # the last one is the target: (1, 0)

    def grid(self, mixtures, sizes, steps):
        self.rows = len(mixtures) * len(sizes)
        return self

    mean = property(lambda self: np.zeros(self.rows))

    def covariance(self, a, b):
        each = self.loadings @ self.loadings.T
        return np.kron(np.eye(self.rows // len(each)), each)


def test_posterior_correlation_is_that_of_the_process(kg: Path) -> None:
    problem = load(kg).problem
    r = np.array([[-0.9, -0.3], [0.0, 0.5], [0.8, 1.0]])
    found = posterior_correlations(problem, JointNormal(r), problem.fidelities.steps)
    np.testing.assert_allclose(found.mean, r, atol=0.03)
    assert np.all(found.low <= found.mean) and np.all(found.mean <= found.high + 1e-12)
    assert found.high[0, 0] < 0 and found.low[1, 0] < 0 < found.high[1, 0]


def test_true_correlation_is_the_one_the_simulator_was_built_with(kg: Path) -> None:
    sweep = load(kg)
    steps, sizes = sweep.problem.fidelities.steps, range(len(sweep.problem.fidelities.sizes))
    expected = [[sweep.truth.objective.correlation(size, step) for step in steps] for size in sizes]
    np.testing.assert_allclose(true_correlations(sweep.problem, sweep.truth.objective, steps), expected, atol=0.03)


def test_measured_values_are_keyed_by_fidelity_and_mixture(kg: Path) -> None:
    problem = load(kg).problem
    records = [
        Record(0, (1.0, 0.0, 0.0), "20M", 8000, "ok", ((2000, (3.0,)), (8000, (2.0,)))),
        Record(1, (0.0, 1.0, 0.0), "20M", 8000, "failed", ((2000, (9.0,)),)),
        Record(2, (1.0, 0.0, 0.0), "1B", 2000, "ok", ((2000, (1.5,)),)),
    ]
    assert measured(problem, records) == {
        ("20M", 2000): {(1.0, 0.0, 0.0): 3.0},
        ("20M", 8000): {(1.0, 0.0, 0.0): 2.0},
        ("1B", 2000): {(1.0, 0.0, 0.0): 1.5},
    }


def test_reference_is_the_largest_fidelity_that_shares_mixtures_with_another_size(kg: Path) -> None:
    problem = load(kg).problem
    w = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5)]
    seen = {("20M", 8000): dict.fromkeys(w[:4], 1.0), ("400M", 2000): dict.fromkeys(w[:4], 1.0), ("400M", 8000): dict.fromkeys(w[1:], 1.0)}
    assert reference(problem, seen) == ("400M", 2000)  # at step 8000 only three of the four are shared
    assert reference(problem, {("1B", 8000): dict.fromkeys(w, 1.0)}) is None


def test_leave_one_out_never_sees_the_run_it_predicts(kg: Path) -> None:
    sweep = load(kg)
    predictions = leave_one_out(sweep)
    assert [p.trial for p in predictions] == [r.number for r in sweep.records]
    seen = condition(sweep.problem, sweep.records)
    noise = seen.noise_variance**0.5
    # With the run among the data the posterior would be no wider than the noise of one value; without it, it must be
    assert all(p.sd > noise for p in predictions) and np.median([p.sd for p in predictions]) > 1.5 * noise
    errors = [abs(p.observed - p.mean) for p in predictions]
    assert spearmanr([p.mean for p in predictions], [p.observed for p in predictions]).statistic > 0.7 and max(errors) < 1.5


def test_one_step_ahead_is_what_the_suggestion_said(kg: Path) -> None:
    sweep = load(kg)
    found = one_step_ahead(sweep)
    assert {p.trial for p in found} == {t.record.number for t in sweep.trials if t.predicted_mean is not None} and found
    for p in found:
        assert p.observed == sweep.trials[p.trial].record.curve[-1][1][0]


def test_slices_keep_the_proportions_of_the_other_domains() -> None:
    mixtures = along(np.array([0.5, 0.3, 0.2]), 0, np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(mixtures, [[0, 0.6, 0.4], [0.5, 0.3, 0.2], [1, 0, 0]])
    np.testing.assert_allclose(along(np.array([1.0, 0.0, 0.0]), 0, np.array([0.4])), [[0.4, 0.3, 0.3]])


def test_tensorboard_has_the_answer_by_trial_and_by_cost(kg: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(kg / "tb"))
    events.Reload()
    rows = read_history(kg)
    by_trial = events.Scalars("predicted/by_trial")
    assert [event.step for event in by_trial] == list(range(1, 13))
    np.testing.assert_allclose([event.value for event in by_trial], [row["predicted"] for row in rows], rtol=1e-6)
    assert [event.step for event in events.Scalars("regret/by_cost")] == [round(1000 * row["spent_full_runs"]) for row in rows]
    assert sorted(int(path.name) for path in (kg / "tb" / "trials").iterdir()) == list(range(12))


def test_truth_of_a_table_is_its_best_row(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    lines = ["a,b,size,step,loss"]
    values = {("s", 1): (3.0, 4.0, 5.0), ("s", 2): (2.0, 1.0, 3.0), ("l", 2): (1.0, 0.5, 0.7)}
    for (size, step), losses in values.items():
        lines += [f"{w},{1 - w},{size},{step},{loss}" for w, loss in zip((0.0, 0.5, 1.0), losses, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    table = [f"table.path={path}", "+table.parameters={s: 1e6, l: 1e7}", "+table.flops_per_step={s: 1e9, l: 1e10}"]
    problem, runner = build(compose(SWEEP, ["objective=table", "space.domains=[a,b]", *table]), tmp_path)
    truth = Truth(problem, runner.objective)
    assert truth.exact and truth.best == 0.5 and truth.optimum.tolist() == [0.5, 0.5]
    assert truth.regret((1.0, 0.0)) == pytest.approx(0.2) and truth.value((0.3, 0.7)) is None


def test_a_table_with_gaps_has_a_report(tmp_path: Path) -> None:
    """Which nobody could have of it before: the true correlations asked for rows that are not there."""
    mixtures = [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]
    grid = [(a, b, size, step) for a, b in mixtures for size in "sl" for step in (1, 2)]
    rows = [f"{a},{b},{size},{step},{3 + (a - 0.3) ** 2 + (size == 's') + 1 / step}" for a, b, size, step in grid]
    del rows[-4]  # the smallest fidelity of the last mixture
    (tmp_path / "runs.csv").write_text("\n".join(["a,b,size,step,loss", *rows]) + "\n")
    table = [f"table.path={tmp_path / 'runs.csv'}", "+table.parameters={s: 1e6, l: 1e7}", "+table.flops_per_step={s: 1e9, l: 1e10}"]
    cfg = compose(SWEEP, ["objective=table", "space.domains=[a,b]", *table])
    problem, runner = build(cfg, tmp_path)
    truth = Truth(problem, runner.objective)
    found = true_correlations(problem, truth.objective, problem.fidelities.steps)
    np.testing.assert_allclose(found, 1.0)
    few = replace(problem, table=frozenset(key for key in problem.table or () if key[1:] != ("s", 1) or key[0][0] > 0.4))
    assert true_correlations(few, truth.objective, problem.fidelities.steps)[0][0] is None
    records = [Record(i, w, size, 2, "ok", tuple(runner.objective.observe(w, size, (1, 2), i)), 1.0) for i, (w, size) in
               enumerate((w, size) for w in mixtures for size in "sl")]  # fmt: skip
    trials = [Trial(record, "ok", record.curve[-1][1][0], None, None, None, None) for record in records]
    assert "Trust in each fidelity" in [section.title for section in sweep_page(Sweep(tmp_path, cfg, problem, truth, trials)).sections]


def test_an_anchor_is_called_tested_only_where_it_was(kg: Path) -> None:
    sweep = load(kg)
    untested = {"baseline": dict(zip(sweep.problem.space.domains, (0.0, 1.0, 0.0), strict=True)), "gain_over_baseline": 0.01}
    assert "better than the best single domain" in answer_in_words(replace(sweep, answer={**sweep.answer, **untested}))
