"""Power laws: recovered with honest intervals, refused where the points do not determine them; the command on real run folders."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.apps.gssm.power_law import fit
from src.apps.gssm.scaling import abscissa, excess_loss, laws, scaling
from src.apps.gssm.scaling_config import SCALING, ScalingConfig
from src.nanollama.config import ConfigError, compose, write_json
from src.nanollama.config.main import run_command
from src.nanollama.report import find_runs

X = np.geomspace(1e3, 1e6, 7)


@given(a=st.floats(0.1, 10), b=st.floats(0.1, 1.5), plateau=st.floats(0, 0.5), unit=st.sampled_from([1.0, 1e3, 1e9]))
@settings(max_examples=30)
def test_an_exact_law_is_recovered_whatever_the_unit_of_x(a: float, b: float, plateau: float, unit: float) -> None:
    y = a * (X / 1e3) ** -b
    c = plateau * y[-1]
    law = fit(X * unit, y + c)
    assert law is not None and not law.problem
    assert law.b == pytest.approx(b, rel=1e-4) and law.c == pytest.approx(c, abs=1e-3 * y[-1])
    assert law(X * unit) == pytest.approx(y + c, rel=1e-4)


@pytest.mark.parametrize(("b", "noise"), [(0.4, 0.05), (1.0, 0.01), (0.3, 0.001)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(b: float, noise: float) -> None:
    """Also where it is narrower than the steps of any grid."""
    rng = np.random.default_rng(0)
    hits, said = 0, 0
    for _ in range(200):
        law = fit(X, (0.01 + 5 * (X / 10) ** -b) * np.exp(noise * rng.normal(size=len(X))))
        assert law is not None
        if not law.problem:
            said += 1
            hits += law.b_interval[0] <= b <= law.b_interval[1]
    assert said > 150 and 0.88 < hits / said <= 1


def test_a_plateau_may_lie_above_the_smallest_excess() -> None:
    """Near the plateau the noise is as often below it as above."""
    rng = np.random.default_rng(0)
    laws = [fit(X, (0.01 + 500 * X**-1.0) * np.exp(0.1 * rng.normal(size=len(X)))) for _ in range(100)]
    assert sum(law.c_interval[0] <= 0.01 <= law.c_interval[1] for law in laws) > 88


def test_what_the_points_do_not_determine_is_called_so() -> None:
    rng = np.random.default_rng(1)
    short = np.geomspace(1e3, 3e3, 6)
    assert "spans a factor of 3" in fit(short, short**-0.5).problem
    assert "at least 4 are needed" in fit(X[:3], X[:3] ** -0.5).problem
    flat = fit(X, 0.1 * np.exp(0.02 * rng.normal(size=len(X))))
    assert "exponents from" in flat.problem
    assert str(flat).startswith("not identifiable")
    assert "exponents from" in fit(X, np.full(len(X), 0.1)).problem and "exponents from" in fit(X, X**0.2).problem
    assert fit(np.array([5.0, 5.0]), np.array([1.0, 1.1])) is None
    with pytest.raises(ValueError, match="positive"):
        fit(X, -X)


def test_known_errors_widen_the_interval_of_a_lucky_fit() -> None:
    y = X**-0.5
    lucky, honest = fit(X, y), fit(X, y, se=0.1 * y)
    assert lucky.b_interval[1] - lucky.b_interval[0] < honest.b_interval[1] - honest.b_interval[0]


def write_run(path, size: int, seed: int, excess: float | None, **config) -> None:
    path.mkdir(parents=True)
    result = {"status": "ok", "parameters": size, "tokens": 10 * size, "flops": 100 * size, "bayes_loss": 1.0, "best": {"valid": 1.3}}
    write_json(path / "result.json", result if excess is None else {**result, "excess_loss": excess, "excess_loss_se": 0.001})
    (path / "config.yaml").write_text(json.dumps({"train": {"seed": seed}, "data": {"sequences": None}, **config}))


def test_the_command_averages_seeds_separates_curves_and_names_what_it_leaves_out(tmp_path, capsys) -> None:
    rng = np.random.default_rng(2)
    for name, b in (("A", 0.5), ("B", 0.2)):
        for size in (1e3, 4e3, 16e3, 64e3, 256e3):
            for seed in (0, 1, 2):
                noisy = float(size**-b * np.exp(0.02 * rng.normal()))
                write_run(tmp_path / "grid" / f"{name}-{size:.0f}-{seed}", int(size), seed, noisy, alpha_X=name)
    write_run(tmp_path / "grid" / "no floor", 1000, 0, None, alpha_X="A")
    args = [f"runs=[{tmp_path / 'grid'}]", "by=[alpha_X]", f"run_dir={tmp_path / 'out'}"]
    assert run_command(SCALING, scaling.__wrapped__, args) == 0
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [curve["name"] for curve in found["curves"]] == ["alpha_X=A", "alpha_X=B"] and found["left_out"] == ["no floor"]
    for curve, b in zip(found["curves"], (0.5, 0.2), strict=True):
        assert curve["repetitions"] == [3] * 5 and not curve["law"]["problem"]
        assert curve["law"]["b_interval"][0] <= b <= curve["law"]["b_interval"][1]
    out = capsys.readouterr().out
    assert run_command(SCALING, scaling.__wrapped__, [args[0], "by=[alpha_x]", f"run_dir={tmp_path / 'typo'}"]) == 2
    assert "by=alpha_x: the config of none of the 31 runs has this key" in capsys.readouterr().err
    assert "exponent" in out and "left out, for want of a positive excess loss or of a value of parameters: no floor" in out
    assert "Scaling laws" in (tmp_path / "out" / "scaling.html").read_text()


def test_a_repetition_below_the_floor_counts_in_its_mean(tmp_path) -> None:
    """Noise around a small excess has both signs; without the negative ones the mean would be too high."""
    for size, excesses in ((1000, (0.5, 0.3)), (4000, (0.03, -0.01)), (16000, (0.01, -0.02))):
        for seed, excess in enumerate(excesses):
            write_run(tmp_path / f"{size}-{seed}", size, seed, excess)
    found = laws(find_runs([tmp_path]), ScalingConfig(runs=("x",)))
    (curve,) = found["curves"]
    assert curve["x"] == [1000, 4000] and curve["excess"] == pytest.approx([0.4, 0.01]) and curve["repetitions"] == [2, 2]
    assert sorted(found["left_out"]) == ["16000-0", "16000-1"]


def test_loss_and_abscissa_are_read_from_the_run() -> None:
    result = {"excess_loss": 0.5, "bayes_loss": 1.0, "best": {"valid": 1.3}}
    assert excess_loss(result, "final") == 0.5 and excess_loss(result, "best") == pytest.approx(0.3) and excess_loss({}, "best") is None

    class One:
        config, result = {"data": {"sequences": 100}}, {"tokens": 7}

    assert (abscissa(One, "sequences"), abscissa(One, "tokens"), abscissa(One, "flops")) == (100, 7, None)
    with pytest.raises(ConfigError, match=r"give runs="):
        compose(SCALING, [])
