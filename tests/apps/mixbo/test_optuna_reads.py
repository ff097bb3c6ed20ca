"""A study opens in plain Optuna, which is what optuna-dashboard does."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna import visualization


def test_optuna_loads_and_plots_a_study(kg: Path) -> None:
    store = f"sqlite:///{kg / 'study.db'}"
    (name,) = optuna.get_all_study_names(store)
    study = optuna.load_study(study_name=name, storage=store)
    assert len(study.trials) == 12 and all(trial.state.is_finished() for trial in study.trials)
    assert study.best_value == pytest.approx(min(trial.value for trial in study.trials if trial.value is not None))
    assert all(sum(v for k, v in trial.params.items() if k not in ("model_size", "steps")) == pytest.approx(1.0) for trial in study.trials)
    for plot in (visualization.plot_optimization_history, visualization.plot_slice, visualization.plot_intermediate_values):
        assert plot(study).data
