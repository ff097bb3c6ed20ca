"""Tidy frames of runs: lists of flat dictionaries, one row an observation, ready for ``pandas.DataFrame`` or a CSV file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.compose import flatten
from .runs import Run

Row = dict[str, Any]

DIFFICULTY = ("gzip_legacy", "gzip_normalised", "unigram_loss", "bigram_loss", "bayes_loss", "bayes_loss_se", "log_vocab")


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def curves(runs: Sequence[Run]) -> list[Row]:
    """One row a record of ``metrics.jsonl``: ``run`` beside the record's own keys (``step``, ``tokens``, ``split``, ``loss``, ...)."""
    return [{"run": run.name, **record} for run in runs for record in run.records]


def summary(runs: Sequence[Run]) -> list[Row]:
    """One row a run: status, size, tokens, final loss, floor and excess in nats per token, median training speed, wall time in seconds."""
    return [_summary(run) for run in runs]


def _summary(run: Run) -> Row:
    result = run.result
    speeds = [speed for record in run.records if (speed := number(record.get("tokens_per_s"))) is not None]
    row: Row = {"run": run.name, "status": run.status}
    row |= {key: number(result.get(key)) for key in ("parameters", "steps", "tokens", "flops")}
    row |= {key: number(result.get(key)) for key in ("loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se", "bits_per_byte")}
    if run.records and row["tokens"] is None:  # unfinished: as far as its records go
        row |= {"steps": number(run.records[-1]["step"]), "tokens": number(run.records[-1].get("tokens"))}
    row |= {"tokens_per_s": statistics.median(speeds) if speeds else None}
    row |= {"wall_s": number(result.get("wall_s")), "peak_memory_bytes": number(result.get("peak_memory_bytes"))}
    return row | {"problems": "; ".join([*run.problems, *_first_line(run)])}


def _first_line(run: Run) -> list[str]:
    """The end of a failed run's message: the last line of a traceback says what went wrong."""
    message = str(run.result.get("message") or "").strip()
    return [message.splitlines()[-1]] if message else []


def difficulty(runs: Sequence[Run]) -> list[Row]:
    """One row a setting in a ``difficulty.json``: its concentrations and the measures of DIFFICULTY, losses in nats per token."""
    return [_difficulty(run, setting) for run in runs if run.difficulty for setting in _settings(run.difficulty)]


def _settings(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A ``difficulty.json`` is one setting, or has several of them under ``settings``."""
    several = found.get("settings")
    return [setting for setting in several if isinstance(setting, Mapping)] if isinstance(several, list) else [found]


def _difficulty(run: Run, setting: Mapping[str, Any]) -> Row:
    name = f"{run.name}: {setting.get('name')}" if setting is not run.difficulty else run.name
    alphas = {key: number(setting.get(key, run.config.get(key))) for key in ("alpha_X", "alpha_Z")}
    return {"run": run.name, "setting": name, **alphas, **{key: number(setting.get(key)) for key in DIFFICULTY}}


def text_losses(runs: Sequence[Run]) -> list[Row]:
    """One row a run and held-out text: last bits per byte of the model, with standard error, and of gzip and xz on the same bytes."""
    rows = []
    for run in runs:
        last = {record["split"]: record for record in run.records if number(record.get("bits_per_byte")) is not None}
        for split, record in last.items():
            bits, loss, se = (number(record.get(key)) for key in ("bits_per_byte", "loss", "loss_se"))
            row: Row = {"run": run.name, "split": split, "text": split.removeprefix("valid/"), "bits_per_byte": bits}
            row["bits_per_byte_se"] = bits * se / loss if bits is not None and se is not None and loss else None  # the same change of unit
            packed = run.compressors.get(split)
            rows.append(row | {key: number(packed.get(key)) if isinstance(packed, dict) else None for key in ("gzip", "xz")})
    return rows


def differing_settings(runs: Sequence[Run]) -> tuple[list[str], list[Row]]:
    """The dotted config keys that have several values among the runs that have them, and each run's value (absent: None)."""
    flat = {run.name: flatten(run.config) for run in runs if run.config}
    keys = dict.fromkeys(key for values in flat.values() for key in values if key.split(".")[0] not in ("run_dir", "name", "cluster"))
    differing = [key for key in keys if len({repr(values[key]) for values in flat.values() if key in values}) > 1]
    return differing, [{"run": name, **{key: values.get(key) for key in differing}} for name, values in flat.items()]
