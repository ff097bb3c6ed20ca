"""A multirun over any keys as a comparison in cells: what ``hydra/sweeper=mixbo`` makes of a sweep that is not about data mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.nanollama.config import ConfigError

from ..options import PoolConfig
from .config import CellsConfig, resolve

STRATEGIES = ("random", "grid", "tpe")
STEPS = "train.steps"


def translate(script: str, arguments: Sequence[str], options: Mapping[str, Any], run_dir: str | None) -> CellsConfig:
    """The config that ``src.apps.mixbo.families`` would have been given. Swept ``model.family`` and ``model.target_params`` make cells."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if options["strategy"] not in STRATEGIES:
        raise ConfigError(
            f"hydra.sweeper.strategy={options['strategy']} searches data mixtures (over model and train.steps); "
            f"for a space of other keys take hydra.sweeper.strategy={', '.join(STRATEGIES)}"
        )
    space: dict[str, str] = {}
    rest: list[str] = []
    more: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key, _, text = (override.input_line or "").partition("=")
        if override.is_sweep_override():
            space[key.lstrip("+")] = text
        elif key == STEPS:
            more["steps"] = override.value()
        else:
            rest.append(override.input_line or "")
    if options.get("trials"):
        more["trials"] = options["trials"]
    cells = tuple(key for key in CellsConfig().cells if key in space)
    return resolve(
        CellsConfig(
            name="space", run_dir=run_dir, seed=options["seed"], script=script, overrides=tuple(rest), space=space, cells=cells,
            strategy=options["strategy"], seeds=0, pool=PoolConfig(slots=options["slots"]), **more,
        )
    )  # fmt: skip
