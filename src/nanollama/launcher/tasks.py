"""The runs that one command line asks for: one, or those of a grid (a ``grid:`` section in the YAML file, or ``-m key=a,b``).

    grid:
      train.seed: [0, 1, 2]
      optim: {lr: [1e-3, 3e-3]}     # the product of all lists, the last one varying fastest

A key given on the command line is no longer the grid's: ``-m train.seed=5,6`` takes the place of the file's seeds.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ..config import ConfigError, Entry
from ..config.compose import CONFIGS, FILE_GROUPS, as_dict, check_overrides, compose_node, flatten, has_grid, rewrite_argv, typed
from ..config.explain import check_key
from ..config.main import expand
from ..config.schema import ClusterConfig
from .script import processes

MAX_TASKS = 10_000


@dataclass(frozen=True)
class Task:
    """One run: its config as composed (what is to be derived is left open) and resolved; ``label`` tells it from its siblings."""

    config: dict[str, Any]
    resolved: dict[str, Any]
    label: str = ""


def compose_tasks(entry: Entry, argv: Sequence[str], sweep: bool) -> tuple[tuple[Task, ...], Any]:
    """Every run that ``argv`` asks for, and the typed config of the first. Raises ConfigError before anything is started."""
    overrides = rewrite_argv(entry, argv)
    check_overrides(entry, overrides)
    jobs = list(expand(overrides)) if sweep else [overrides]
    varies = [len(set(column)) > 1 for column in zip(*jobs, strict=True)]
    tasks: list[Task] = []
    first: Any = None
    composer = _Composer(entry)
    for job in jobs:
        swept = [text for text, varied in zip(job, varies, strict=True) if varied]
        node = composer(job)
        for values in _grid_points(entry, node, given=[text.partition("=")[0] for text in job]):
            label = " ".join(swept + [f"{key}={value}" for key, value in values.items()])
            raw, cfg = _checked(entry, node, values, job, label)
            first = first or raw
            if (raw.cluster, raw.run_dir) != (first.cluster, first.run_dir):
                raise ConfigError(f"{label}: cluster.* and run_dir must be the same for all runs of a grid; start one grid for each")
            tasks.append(Task(_without_run_dir(raw), _without_run_dir(cfg), label))
            if len(tasks) > MAX_TASKS:
                raise ConfigError(f"the grid has more than {MAX_TASKS} runs; make it smaller")
    return tuple(tasks), first


class _Composer:
    """Composes command lines that differ in plain values only once, since Hydra takes a tenth of a second for each."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        shape = tuple(text for text in overrides if not _is_value(text))
        if shape not in self.composed:
            self.composed[shape] = compose_node(self.entry, shape)[0]
        node = deepcopy(self.composed[shape])
        for text in overrides:
            if _is_value(text):
                _set(node, *_parse(text), source="command line")
        return node


def _is_value(text: str) -> bool:
    """Whether an override gives one field its value, rather than choosing a file or adding and removing fields."""
    key = text.partition("=")[0]
    is_group = key in FILE_GROUPS or (CONFIGS / key).is_dir() or key.startswith("hydra")
    return not is_group and text[0] not in "+~" and "@" not in key


def _parse(text: str) -> tuple[str, Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(text)
    if override.is_sweep_override():
        raise ConfigError(f"command line: {text}: several values are a grid: add -m; or quote one text: {override.key_or_group}='a,b'")
    return override.key_or_group, override.value()


def _set(node: DictConfig, key: str, value: Any, source: str) -> None:
    try:
        OmegaConf.update(node, key, value, merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {key} = {value!r}: {str(error).splitlines()[0]}") from error


def _grid_points(entry: Entry, node: DictConfig, given: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Take the section ``grid`` out of ``node`` and yield its points, ``{}`` once without one; keys in ``given`` stay as they are."""
    section: Any = {}
    if has_grid(entry, node):
        with open_dict(node):
            section = OmegaConf.to_container(node.pop("grid"))
        if not isinstance(section, dict) or not section:
            raise ConfigError("grid: must map keys to lists of values, e.g. grid: {train.seed: [0, 1, 2]}")
    lists = flatten(section)
    for key, values in lists.items():
        check_key("grid", key, entry.schema)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid: {key} = {values!r}: give a list of values, e.g. [{values}, ...]")
    lists = {key: values for key, values in lists.items() if key not in given}
    for point in itertools.product(*lists.values()):
        yield dict(zip(lists, point, strict=True))


def _checked(entry: Entry, node: DictConfig, values: Mapping[str, Any], overrides: Sequence[str], label: str) -> tuple[Any, Any]:
    """The typed config of one run, before and after ``resolve``."""
    node = deepcopy(node) if values else node
    for key, value in values.items():
        _set(node, key, value, source="grid")
    try:
        raw = typed(replace(entry, resolve=lambda cfg: cfg), node, overrides)
        if not isinstance(getattr(raw, "cluster", None), ClusterConfig):
            raise ConfigError(f"{entry.name}: this command's config has no section cluster, so the launcher cannot start it")
        with _world_size(processes(raw.cluster) * raw.cluster.nodes):
            return raw, entry.resolve(raw)
    except ConfigError as error:
        raise ConfigError(f"{error} (in the run with {label})" if label else str(error)) from error


@contextmanager
def _world_size(size: int) -> Iterator[None]:
    """What ``resolve`` derives from the number of ranks must be right for the run, not for the launcher."""
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(size)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WORLD_SIZE"]
        else:
            os.environ["WORLD_SIZE"] = before


def _without_run_dir(cfg: Any) -> dict[str, Any]:
    return {key: value for key, value in as_dict(cfg).items() if key != "run_dir"}
