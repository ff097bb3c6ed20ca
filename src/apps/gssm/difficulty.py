"""What makes a graph's sequences hard: the measures, by name.

All are deterministic functions of the kernels and the settings (fixed random words), so a root finder can follow them. In nats per
token they form a profile: ``unigram_loss`` and ``ngram_<n>`` are what counting achieves, ``window_<k>`` is the best possible loss from
the last k tokens, ``bayes_loss`` the best possible loss from the whole past. The share of the way that needs a long past is what a model
must gain by inference.

    python -m src.apps.gssm.difficulty experiment=debug
    python -m src.apps.gssm.difficulty experiment=debug map.alpha_X.num=5 map.alpha_Z.num=5 graph_seeds=4
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.nanollama.arrays import Array
from src.nanollama.config import ConfigError, RunFolder, main
from src.nanollama.config.folder import write_json

from . import compression, kernels, ngram
from .estimate import bounds
from .filter import Filter, Floor, bayes_loss, check_feasible, work
from .graph import build
from .kernels import Kernels, row_entropy
from .measure_config import DIFFICULTY, DifficultyConfig, MeasureConfig, settings
from .sampler import Sampler

WORK = 1e10  # multiplications spent on one exact measure: some 20 seconds of one core
LEAST = 8  # sequences, whatever they cost
WINDOWS_PER_SEQUENCE = 32
BOUNDS = 8  # estimated bounds use this many times fewer sequences than the exact filter
BLOCK = 16  # sequences whose predictive laws are held at once


@dataclass(frozen=True)
class Estimate:
    """A measure and its standard error over sequences (None: a single number for the whole stream)."""

    value: float
    se: float | None = None


class Meter:
    """Measures of one set of kernels; what several of them need is computed once."""

    def __init__(self, kernels: Kernels, seq_len: int, cfg: MeasureConfig) -> None:
        self.kernels = kernels
        self.seq_len = seq_len
        self.cfg = cfg
        self.sampler = Sampler(kernels, cfg.seed, threads=cfg.threads)
        self.log_vocab = math.log(kernels.graph.vocab_size)
        self.sequences = min(cfg.sequences, max(LEAST, int(WORK / (work(kernels.graph) * seq_len))))

    def read(self, name: str) -> Estimate:
        """The measure called ``name``. Raises ``ConfigError`` for an unknown name, or an exact measure that is out of reach."""
        if name in MEASURES:
            return MEASURES[name](self)
        kind, _, number = name.rpartition("_")
        if number.isdecimal() and int(number) >= 1 and kind in ("ngram", "window"):
            return self._ngram(int(number)) if kind == "ngram" else self._window(int(number))
        raise ConfigError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}, ngram_<n> and window_<k>")

    @cached_property
    def _stream(self) -> NDArray[Any]:
        return compression.stream(self.sampler, self.cfg.tokens)

    def gzip_legacy(self) -> Estimate:
        return Estimate(compression.gzip_legacy(self._stream))

    def gzip_normalised(self) -> Estimate:
        noise = compression.gzip_noise(self.kernels.graph.vocab_size, self.cfg.tokens)
        return Estimate(compression.gzip_legacy(self._stream) / noise)

    @cached_property
    def filter(self) -> Filter:
        return Filter(self.kernels, threads=self.cfg.threads)

    @cached_property
    def _floor(self) -> Floor:
        return bayes_loss(self.sampler, self.filter, self.seq_len, self.sequences)

    def bayes_loss(self) -> Estimate:
        return Estimate(self._floor.mean, self._floor.se)

    def bayes_share(self) -> Estimate:
        scale = self.log_vocab or 1.0
        return Estimate(self._floor.mean / scale, self._floor.se / scale)

    def _ngram(self, order: int) -> Estimate:
        count = max(2, self.cfg.tokens // self.seq_len)
        fit, test = (self.sampler.sample(f"ngram-{part}", 0, count, self.seq_len + 1) for part in ("fit", "test"))
        losses = ngram.held_out_losses(fit, test, self.kernels.graph.vocab_size, (order,))[order][:, 1:].mean(axis=1)
        return _over_sequences(losses)

    def _window(self, width: int) -> Estimate:
        """The Bayes loss plus what forgetting all but ``width`` tokens costs, the mean divergence of the two predictive laws.

        The short-sighted predictor does not know how far into the sequence it is: before its window it has the average law.
        """
        if width > self.seq_len:
            raise ConfigError(f"window_{width} needs sequences of more than {width} tokens; data.seq_len is {self.seq_len}")
        positions = self.seq_len + 1 - width
        prior = self.filter.occupancy(positions)
        tokens = self.sampler.sample("floor", 0, self.sequences, self.seq_len + 1)
        starts = np.random.Generator(np.random.Philox(key=width)).integers(0, positions, (len(tokens), WINDOWS_PER_SEQUENCE))
        excess = np.empty(len(tokens))
        for first in range(0, len(tokens), BLOCK):
            rows, at = tokens[first : first + BLOCK], starts[first : first + BLOCK]
            full = np.take_along_axis(self.filter.predictive(rows), (at + width)[..., None], axis=1)
            windows = np.take_along_axis(rows[:, None], at[..., None] + np.arange(width + 1), axis=2)
            short = self.filter.window_predictive(windows.reshape(-1, width + 1), prior).reshape(full.shape)
            excess[first : first + BLOCK] = _divergence(full, short).mean(axis=1)
        return _over_sequences(self._floor.per_sequence + excess)


MEASURES: dict[str, Callable[[Meter], Estimate]] = {
    "gzip_legacy": Meter.gzip_legacy,
    "gzip_normalised": Meter.gzip_normalised,
    "unigram_loss": lambda meter: meter._ngram(1),
    "bigram_loss": lambda meter: meter._ngram(2),
    "bayes_loss": Meter.bayes_loss,
    "bayes_share": Meter.bayes_share,
}


def measure(kernels: Kernels, seq_len: int, cfg: MeasureConfig | None = None) -> dict[str, Any]:
    """All measures of one set of kernels, with the keys of ``difficulty.json``; losses in nats per token.

    ``bayes_estimator`` says where ``bayes_loss`` comes from. Where the exact filter is out of reach (``bayes_note`` says why), it is an
    upper bound, the loss of a particle filter, with a lower one as ``bayes_lower``; there are no windows then.
    """
    cfg = cfg or MeasureConfig()
    meter = Meter(kernels, seq_len, cfg)
    found: dict[str, Any] = {name: meter.read(name).value for name in ("gzip_legacy", "gzip_normalised", "unigram_loss", "bigram_loss")}
    found |= {f"ngram_{n}": meter.read(f"ngram_{n}").value for n in cfg.ngrams}
    try:
        check_feasible(kernels.graph)
    except ConfigError as error:
        found |= _bounds(meter) | {"bayes_note": str(error)}
    else:
        loss = meter.bayes_loss()
        found["bayes_estimator"] = "exact filter"
        if work(kernels.graph) * kernels.graph.vocab_size * seq_len <= WORK:
            found |= {f"window_{k}": meter.read(f"window_{k}").value for k in cfg.windows if k <= seq_len}
        found |= {"bayes_loss": loss.value, "bayes_loss_se": loss.se, "sequences": meter.sequences}
    scale = meter.log_vocab or 1.0
    found["bayes_share"] = None if found["bayes_loss"] is None else found["bayes_loss"] / scale
    return found | {
        "log_vocab": meter.log_vocab,
        "tokens": cfg.tokens,
        "seq_len": seq_len,
        "row_entropy": {node.name: row_entropy(table) for node, table in zip(kernels.graph.nodes, kernels.tables, strict=True)},
    }


def _bounds(meter: Meter) -> dict[str, Any]:
    """What is known of the Bayes loss without an exact filter."""
    sequences = max(2, meter.cfg.sequences // BOUNDS)
    try:
        found = bounds(meter.sampler, meter.seq_len, sequences, threads=meter.cfg.threads)
    except ConfigError as error:
        return {"bayes_loss": None, "bayes_loss_se": None, "bayes_estimator": str(error), "sequences": 0}
    above = {"bayes_loss": found.upper, "bayes_loss_se": found.upper_se, "bayes_estimator": found.name, "sequences": sequences}
    return above | {"bayes_lower": found.lower, "bayes_lower_se": found.lower_se}


def combine(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over graph seeds of rows of ``measure``, and ``<key>_se_graphs``, the standard error of each mean over the seeds."""
    if len(rows) == 1:
        return dict(rows[0])
    mean: dict[str, Any] = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(first, Mapping):
            mean[key] = combine([dict(v) for v in values])
        elif key.endswith("_se") and first is not None:
            mean[key] = math.sqrt(sum(v**2 for v in values)) / len(values)
        elif isinstance(first, float):
            mean[key] = sum(values) / len(values)
            if len(set(values)) > 1:
                mean[f"{key}_se_graphs"] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
        else:
            mean[key] = first
    return mean


def _divergence(p: Array, q: Array) -> Array:
    """KL(p || q) in nats over the last axis."""
    possible = p > 0
    ratio = np.divide(p, q, out=np.ones_like(p), where=possible)
    return np.sum(np.where(possible, p * np.log(ratio), 0.0), axis=-1)


def _over_sequences(losses: Array) -> Estimate:
    return Estimate(float(losses.mean()), float(losses.std(ddof=1) / math.sqrt(len(losses))))


# --- the command -----------------------------------------------------------------------------------------------------------------


def survey(cfg: DifficultyConfig) -> list[dict[str, Any]]:
    """Every setting of ``cfg`` (or point of its map) measured on every graph seed: rows of ``combine`` with their concentrations."""
    from tqdm import tqdm

    points = settings(cfg)
    # a profile at every point of a map would take most of the time and be shown nowhere
    effort = replace(cfg.measure, ngrams=(), windows=()) if cfg.map.active else cfg.measure
    rows = []
    with tqdm(total=len(points) * cfg.graph_seeds, desc="measuring", unit="graph", disable=None) as bar:
        for name, (alpha_X, alpha_Z, first) in points.items():
            seeds, each = list(range(first, first + cfg.graph_seeds)), []
            for seed in seeds:
                each.append(measure(kernels.draw(build(cfg.gssm, alpha_X, alpha_Z), seed), cfg.data.seq_len, effort))
                bar.update()
            rows.append({"name": name, "alpha_X": alpha_X, "alpha_Z": alpha_Z, **combine(each), "graph_seeds": seeds, "each": each})
    return rows


def _setup(row: dict[str, Any], cfg: DifficultyConfig) -> dict[str, Any]:
    """A row as an entry of ``setups``."""
    first = row["graph_seeds"][0]
    own = {} if first == cfg.graph_seed else {"graph_seed": first}
    return {"alpha_X": row["alpha_X"], "alpha_Z": row["alpha_Z"], **own, "difficulty": row["gzip_legacy"]}


@main(DIFFICULTY)
def difficulty(cfg: DifficultyConfig, run: RunFolder) -> dict[str, Any]:
    """Measure, print a table, and write ``difficulty.json``, ``difficulty.html`` and ``setups.yaml``."""
    from . import difficulty_page as page

    rows = survey(cfg)
    write_json(run.path / "difficulty.json", rows[0] if len(rows) == 1 else {"settings": rows})
    snippet = page.setups_yaml({f"setup{i}": _setup(row, cfg) for i, row in enumerate(rows, start=1)})
    (run.path / "setups.yaml").write_text(snippet)
    page.difficulty_page(rows, cfg).write(run.path / "difficulty.html")
    print(page.as_text(page.settings_table(rows)))
    if not cfg.map.active:
        print(f"\n{snippet.rstrip()}")
    for note in page.bayes_notes(rows):
        print(f"\n{note}")
    print(f"\n{run.path}/difficulty.html, difficulty.json, setups.yaml")
    return {key: rows[0][key] for key in ("gzip_legacy", "gzip_normalised", "bayes_loss", "bayes_loss_se")} if len(rows) == 1 else {}


if __name__ == "__main__":
    difficulty()
