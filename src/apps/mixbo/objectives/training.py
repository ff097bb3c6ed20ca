"""Real trainings: a mixture, a model size and a number of steps become one command; its run folder becomes a learning curve.

The training itself is seen only from outside, as overrides in and a run folder out, so any command serves that mixes named domains
by ``data.weights`` and validates each apart (splits ``valid/<domain>``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.nanollama.checkpoint.find import find_checkpoint, numbered
from src.nanollama.config import ConfigError, Entry, compose, quoted
from src.nanollama.config.compose import ROOT
from src.nanollama.config.main import entry_of
from src.nanollama.config.schema import OptimConfig
from src.nanollama.metrics.sinks import read_jsonl
from src.nanollama.model.sizing import num_params
from src.nanollama.profiler import flops
from src.nanollama.train.schedule import decay_start

from ..options import FidelityConfig, TrainingConfig
from ..problem import Fidelities, Metric
from ..records import Record
from ..study import Curve, Outcome

# What every trial gets before the user's own overrides: a constant rate, so that a run is a prefix of every longer one (and can be
# continued and read as a curve); no second copy of the metrics.
BASE = ("optim.schedule=constant", "eval.sequences=32", "metrics.tensorboard=false")


class Trainings:
    """The trials of a sweep as commands. Every size is composed and checked when this is built, before anything is trained."""

    def __init__(self, options: TrainingConfig, fidelity: FidelityConfig) -> None:
        self.options = options
        self.entry = entry_of(options.script)
        if self.entry.domains is None:
            raise ConfigError(f"training.script = {options.script}: this command does not train on a weighted mixture of domains")
        assert fidelity.model_size and fidelity.steps  # resolve() fills them in
        configs = {size: compose(self.entry, self._fixed(size)) for size in fidelity.model_size}
        self.fidelities = Fidelities(
            tuple(configs), tuple(float(num_params(cfg.model)) for cfg in configs.values()), tuple(int(s) for s in fidelity.steps)
        )
        self.flops_per_step = tuple(_flops_per_step(cfg) for cfg in configs.values())
        target = configs[fidelity.model_size[-1]]
        self.domains = self.entry.domains(target)
        if len(self.domains) < 2:
            raise ConfigError(_one_domain(options, self.entry))
        self.metric = _metric(options.metric, self.domains)
        self.optim: OptimConfig = target.optim
        self.period = max(1, self.fidelities.steps[0] // options.checkpoints)

    @property
    def continuable(self) -> bool:
        """Whether a finished run can be extended: while the rate is constant it does not depend on the run's length."""
        return self.optim.schedule in ("constant", "wsd")

    @property
    def decay(self) -> float:
        """Share of a run, at its end, that its continuation trains anew."""
        return self.optim.decay if self.optim.schedule == "wsd" else 0.0

    def command(self, trial: Record, run_dir: Path, parent: Path | None) -> tuple[str, ...]:
        """The command line of a trial; ``parent`` is the run folder that it continues."""
        overrides = [
            *self._fixed(trial.model_size),
            f"data.weights=[{','.join(repr(float(w)) for w in trial.weights)}]",
            f"train.steps={trial.steps}",
            f"eval.period={self.period}",
            f"checkpoint.keep={2 if self.decay else 1}",  # the last one, and that before the decay
            f"run_dir={quoted(run_dir)}",
        ]
        if parent is not None:
            overrides.append(f"checkpoint.init_from={quoted(self._checkpoint(parent))}")
        return (sys.executable, "-m", self.options.script, *overrides)

    def outcome(self, trial: Record, run_dir: Path, result: Mapping[str, Any]) -> Outcome:
        """Read a finished run's learning curve: one validation loss per domain at every evaluation of its own."""
        curve: Curve = ()
        added = float(result.get("flops", 0.0))
        if result["status"] == "ok":
            try:
                curve = read_curve(run_dir, self.domains)
            except (OSError, ValueError, KeyError) as error:
                return Outcome("error", flops=added, message=f"{run_dir / 'metrics.jsonl'} cannot be read: {error!r}")
        if self.optim.schedule != "constant":  # a decaying rate makes intermediate losses no forecast of a shorter run's end
            curve = curve[-1:]
        return Outcome(result["status"], curve, added, result.get("message"))

    def _checkpoint(self, parent: Path) -> Path:
        """Where to continue the run in the folder ``parent``: at its end, or before its decay."""
        reached = numbered(parent / "checkpoints")[-1:]
        return find_checkpoint(parent / "checkpoints" / str(decay_start(self.optim, reached[0])) if reached else parent)

    def _fixed(self, size: str) -> list[str]:
        file = [f"config={self.options.config}"] if self.options.config else []
        return [*file, *BASE, *self.options.overrides, self.options.size.format(size)]


def _one_domain(options: TrainingConfig, entry: Entry) -> str:
    """What to say when there is nothing to mix: where that comes from, and which experiments of the command have several domains."""
    chosen = [text for text in (f"config={options.config}", *options.overrides) if text.startswith(("config=", "experiment=", "data."))]
    said = ", ".join(text for text in chosen if text != "config=None") or "its defaults"
    folder = ROOT / (entry.experiments or "")
    names = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")) if entry.experiments else []
    mixing = [f"experiment={name}" for name in names if len(_domains(entry, name)) > 1]
    hint = f"take {' or '.join(mixing)}" if mixing else "name data with several"
    return f"{options.script} with {said} has fewer than two domains, so there is no mixture to search: {hint}"


def _domains(entry: Entry, experiment: str) -> tuple[str, ...]:
    assert entry.domains is not None
    try:
        return entry.domains(compose(entry, [f"experiment={experiment}"]))
    except ConfigError:  # one that needs more, or that is not for this command
        return ()


def _flops_per_step(cfg: Any) -> float:
    return flops.training(cfg.model, cfg.data.seq_len) * cfg.data.seq_len * cfg.data.batch_size


def _metric(weights: Mapping[str, float], domains: Sequence[str]) -> Metric:
    unknown = sorted(set(weights) - set(domains))
    if unknown:
        raise ConfigError(f"training.metric: no domain is called {unknown[0]!r}; the domains are {', '.join(domains)}")
    if not weights:
        return Metric(tuple(domains), tuple(1 / len(domains) for _ in domains))
    if not sum(weights.values()) > 0:
        raise ConfigError("training.metric: at least one domain needs a positive weight")
    return Metric(tuple(domains), tuple(weights.get(domain, 0.0) for domain in domains))


def read_curve(run_dir: Path, domains: Sequence[str]) -> Curve:
    """(step, one loss per domain) for every step at which all domains were evaluated."""
    seen: dict[int, dict[str, float]] = {}
    for record in read_jsonl(run_dir / "metrics.jsonl"):
        if record["split"].startswith("valid/"):
            seen.setdefault(record["step"], {})[record["split"].removeprefix("valid/")] = record["loss"]
    return tuple((step, tuple(seen[step][d] for d in domains)) for step in sorted(seen) if seen[step].keys() >= set(domains))
