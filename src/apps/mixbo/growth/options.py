"""Typed options of greedy growth. No torch here: the launcher reads them to check a config."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from src.nanollama.config.schema import Fraction, Positive, PositiveFloat, Rate, config

Increment = int | float | tuple[int | float, ...]
Target = Literal["params", "vram", "iter", "flops"]
Escalation = Literal["seeds", "steps", "joint", "undo", "iterations"]


@config
class GrowthConfig:
    """Growth of a baseline model (``strategy=greedy``). Keys are the training's own (``model.emb_dim``) or upstream's (``n_embd``)."""

    baseline: dict[str, Any] = field(default_factory=dict)  # the first model and its training; absent keys: the training's defaults
    param_names: tuple[str, ...] = ("n_layer", "n_head", "n_embd", "mlp_size", "n_qk_head_dim", "n_v_head_dim")  # directions
    increments: tuple[Increment, ...] = (1, 1, 32, 32, 32, 32)  # of each direction (one: of all; a list: of each layer)
    joint: tuple[tuple[str, ...], ...] = ()  # directions also tried together
    iterations: Positive = 1  # multiples of its step tried in each direction
    num_iterations: Positive = 20  # growth steps
    random_iterations: Positive = 2  # seeds of each candidate
    efficiency_target: Target = "params"  # cost: parameters, peak memory, time of a step, FLOPs of a step
    override: dict[str, Any] = field(default_factory=dict)  # training settings; changed on resume, the incumbent is measured anew
    results_file: str | None = None  # YAML in upstream's layout, written beside the study
    reuse: bool = False  # copy equal trainings from growths in the same folder, as a multirun over costs leaves them
    rule: Literal["paired", "upstream"] = "paired"  # upstream: its decisions exactly, its mistakes included
    nlayer_dup_mode: Literal["dup_middle", "dup_each"] = "dup_middle"  # which entry of per-layer lists a new layer copies
    max_iters_increase: Positive | None = None  # steps added when stuck; None: half as many again (upstream: none)
    z: PositiveFloat = 2.0  # a gain counts if it is this many standard errors above 0 (Student's t where few were seen)
    cost_fraction: Fraction = 0.05  # a step is as many increments as cost this share of the incumbent's parameters; 0: one increment
    undo_tolerance: Rate = 0.0  # nats that taking a step back may lose; 0: it has to gain
    stuck: tuple[Escalation, ...] = ("seeds", "steps", "joint", "steps", "undo", "iterations")  # in this order, then stop
