"""A multirun's command line as a sweep: what ``hydra/sweeper=mixbo`` stands for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from src.nanollama.config import ConfigError
from src.nanollama.config.folder import open_folder
from src.nanollama.config.main import execute

from .cells import multirun
from .cells.config import CELLS
from .config import SWEEP, SweepConfig, resolve_sweep
from .families import families
from .jobs import Launch
from .options import BudgetConfig, FidelityConfig, PoolConfig, StrategyConfig, TrainingConfig
from .strategies import GREEDY
from .sweep import sweep

SIZE, STEPS = "model", "train.steps"


def is_space(arguments: Sequence[str]) -> bool:
    """Whether keys other than the fidelities of a mixture are swept."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(arguments))
    return any(override.is_sweep_override() and override.get_key_element() not in (SIZE, STEPS) for override in parsed)


def translate(script: str, arguments: Sequence[str], options: Mapping[str, Any], run_dir: str | None) -> SweepConfig:
    """The config that ``src.apps.mixbo.sweep`` would have been given. ``options``: the fields of ``hydra.sweeper``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if options["strategy"] == GREEDY:
        raise ConfigError(
            "hydra/sweeper=mixbo searches data mixtures; a model is grown by python -m src.apps.mixbo.sweep strategy=greedy "
            f"training.script={script}"
        )
    fidelities: dict[str, tuple[str, ...]] = {}
    rest = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key = override.get_key_element()
        if key in (SIZE, STEPS) and not override.is_range_sweep() and not override.is_interval_sweep():
            values = override.sweep_string_iterator() if override.is_choice_sweep() else [override.get_value_element_as_str()]
            fidelities[key] = tuple(str(value) for value in values)
        elif override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: hydra/sweeper=mixbo sweeps over data.weights, {SIZE} and {STEPS} only; fix this one")
        else:
            rest.append(override.input_line or "")
    if fidelities.keys() != {SIZE, STEPS}:
        raise ConfigError(f"hydra/sweeper=mixbo needs the fidelities, small to large: {SIZE}=pico,nano,tiny {STEPS}=50,100,200")
    try:
        steps = tuple(int(step) for step in fidelities[STEPS])
    except ValueError as error:
        raise ConfigError(f"{STEPS}={','.join(fidelities[STEPS])}: steps are whole numbers") from error
    budget = BudgetConfig(**{key: options[key] for key in ("flops", "full_runs", "trials") if options.get(key) is not None})
    return resolve_sweep(
        SweepConfig(
            run_dir=run_dir,
            seed=options["seed"],
            training=TrainingConfig(script=script, overrides=tuple(rest)),
            fidelity=FidelityConfig(fidelities[SIZE], steps),
            strategy=StrategyConfig(name=options["strategy"], division_coefficient=options["division_coefficient"]),
            budget=budget,
            pool=PoolConfig(slots=options["slots"]),
            storage=options.get("storage"),
        )
    )


def run(script: str, arguments: Sequence[str], options: Mapping[str, Any], run_dir: str | None, launch: Launch | None = None) -> None:
    """Carry out the sweep, in batches by ``launch`` if given; ends the process with its exit code unless that is 0."""
    try:
        if is_space(arguments):
            space = multirun.translate(script, arguments, options, run_dir)
            code = execute(partial(inspect.unwrap(families), launch=launch), space, open_folder(CELLS, space, [*arguments]))
        else:
            cfg = translate(script, arguments, options, run_dir)
            code = execute(partial(inspect.unwrap(sweep), launch=launch), cfg, open_folder(SWEEP, cfg, [*arguments]))
    except ConfigError as error:  # Hydra would turn it into a traceback and code 1
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    if code:
        raise SystemExit(code)
