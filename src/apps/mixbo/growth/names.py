"""Upstream's names of settings (ReaLLM-Forge's ``train.py``) and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.nanollama.config import ConfigError
from src.nanollama.config.explain import all_keys, check_key, fields_of, nearest

LAYERS, STEPS, SEED = "model.nb_layers", "train.steps", "train.seed"

ALIASES = {
    "n_layer": LAYERS,
    "n_head": "model.nb_heads",
    "n_kv_group": "model.nb_kv_heads",
    "n_embd": "model.emb_dim",
    "mlp_size": "model.ffn_dim",
    "mlp_size_layerlist": "model.ffn_dims",
    "n_qk_head_dim": "model.qk_head_dim",
    "n_v_head_dim": "model.v_head_dim",
    "block_size": "data.seq_len",
    "batch_size": "data.batch_size",
    "max_iters": STEPS,
    "eval_interval": "eval.period",
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "warmup_iters": "optim.warmup",
    "seed": SEED,
}
UPSTREAM = {ours: theirs for theirs, ours in ALIASES.items()}


def ours(name: str, schema: type, where: str) -> str:
    """The training's key for ``name``, which may be upstream's. Raises ConfigError if its config has no such key."""
    key = ALIASES.get(name, name)
    if "." not in key and key not in fields_of(schema):
        raise ConfigError(f"{where}: {name!r} is no setting of the training; {nearest(name, [*ALIASES, *all_keys(schema)])}")
    check_key(where, key, schema)
    return key


def settings(values: Mapping[str, Any], schema: type, where: str) -> dict[str, Any]:
    """Flat overrides under our keys; nested dictionaries (as the command line makes them of dots) are flattened."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = {f"{name}.{key}": inner for key, inner in value.items()}
            found |= settings(inner, schema, where)
        else:
            found[ours(name, schema, where)] = tuple(value) if isinstance(value, list) else value
    return found


def short(key: str) -> str:
    """Upstream's name where there is one, for tables."""
    return UPSTREAM.get(key, key)
