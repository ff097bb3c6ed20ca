"""Sizes of a model as arithmetic on its config: derived fields, parameter count, and the shape that meets a given count.

Needs no torch, so that a launcher can check a config before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..config import ConfigError
from ..config.schema import ModelConfig

FFN_MULTIPLE = 32
SSM_WIDTH = 4  # taps of the convolution in a recurrent mixer


def resolve(cfg: ModelConfig) -> ModelConfig:
    """Fill every derived field. Idempotent; leaves ``vocab_size`` alone, which only the data can tell.

    Raises:
        ConfigError: sizes that do not divide, naming the fields.
    """
    heads = cfg.nb_heads
    if cfg.emb_dim % heads and None in (cfg.qk_head_dim, cfg.v_head_dim):
        raise ConfigError(
            f"model.emb_dim={cfg.emb_dim} is not a multiple of model.nb_heads={heads}: "
            "change one of them, or set both model.qk_head_dim and model.v_head_dim"
        )
    kv_heads = cfg.nb_kv_heads or heads
    if heads % kv_heads:
        raise ConfigError(f"model.nb_heads={heads} is not a multiple of model.nb_kv_heads={kv_heads}: queries are shared out evenly")
    qk_dim = cfg.qk_head_dim or cfg.emb_dim // heads
    if qk_dim % 2:
        field = "model.qk_head_dim" if cfg.qk_head_dim else f"model.emb_dim={cfg.emb_dim} / model.nb_heads={heads}"
        raise ConfigError(f"{field} = {qk_dim} is odd: rotary embeddings turn pairs of features, so it has to be even")
    if cfg.nb_layers % len(cfg.mixers):
        raise ConfigError(
            f"model.nb_layers={cfg.nb_layers} is not a multiple of the {len(cfg.mixers)} entries of model.mixers, a pattern that repeats"
        )
    if "ssm" in cfg.mixers and cfg.ssm_expand * cfg.emb_dim % heads:
        raise ConfigError(f"model.ssm_expand * model.emb_dim = {cfg.ssm_expand * cfg.emb_dim} is not a multiple of model.nb_heads={heads}")
    if cfg.rope_scaling in ("llama3", "yarn") and cfg.rope_length is None:
        raise ConfigError(f"model.rope_scaling={cfg.rope_scaling} needs model.rope_length, the length of the sequences of the training")
    return replace(
        cfg,
        nb_kv_heads=kv_heads,
        qk_head_dim=qk_dim,
        v_head_dim=cfg.v_head_dim or cfg.emb_dim // heads,
        ffn_dim=cfg.ffn_dim or _round_up(8 * cfg.emb_dim / 3, FFN_MULTIPLE),
        init_std=cfg.init_std or cfg.emb_dim**-0.5,
    )


def mixers(cfg: ModelConfig) -> Sequence[str]:
    """The mixer of every layer."""
    return [*cfg.mixers] * (cfg.nb_layers // len(cfg.mixers))


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, tied ones counted once. ``vocab_size`` has to be known."""
    cfg = resolve(cfg)
    d = cfg.emb_dim
    embeddings = required(cfg.vocab_size) * d * (1 if cfg.tie_embeddings else 2)
    layer = 3 * d * required(cfg.ffn_dim) + 2 * d
    return embeddings + cfg.nb_layers * layer + sum(_mixer_params(cfg, mixer) for mixer in mixers(cfg)) + d


def _mixer_params(cfg: ModelConfig, mixer: str) -> int:
    d = cfg.emb_dim
    if mixer == "attn":
        return d * (cfg.nb_heads + required(cfg.nb_kv_heads)) * (required(cfg.qk_head_dim) + required(cfg.v_head_dim))
    inner, heads, convolved = cfg.ssm_expand * d, cfg.nb_heads, cfg.ssm_expand * d + 2 * cfg.ssm_state
    return d * (inner + convolved + heads) + SSM_WIDTH * convolved + 3 * heads + inner + inner * d


def with_params(cfg: ModelConfig, target: int) -> ModelConfig:
    """The model of ``cfg``'s depth, heads and mixers whose number of parameters is as near to ``target`` as its widths allow.

    First the width: the largest ``emb_dim`` (a multiple of 2 * nb_heads and of 8) that stays within the target with the usual ratio of
    ``ffn_dim`` to ``emb_dim``; then ``ffn_dim``, in single steps of 3 * emb_dim * nb_layers parameters. Off by half of that at most.

    Raises:
        ConfigError: even the narrowest such model is larger, or ``vocab_size`` is not known.
    """
    step = math.lcm(8, 2 * cfg.nb_heads)

    def at(width: int) -> ModelConfig:
        return replace(cfg, emb_dim=width, ffn_dim=None, init_std=None)

    if num_params(at(step)) > target:
        raise ConfigError(
            f"{target} parameters are too few for model.nb_layers={cfg.nb_layers}, model.nb_heads={cfg.nb_heads}, "
            f"model.vocab_size={cfg.vocab_size}: the narrowest has {num_params(at(step))}"
        )
    low, high = 1, 2
    while num_params(at(high * step)) <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if num_params(at(middle * step)) <= target else (low, middle)
    found = resolve(at(low * step))
    missing = target - num_params(found)
    return replace(found, ffn_dim=required(found.ffn_dim) + round(missing / (3 * found.emb_dim * found.nb_layers)))


def required(value: int | None) -> int:
    """A derived size that has to be known by now."""
    if value is None:
        raise ConfigError("model.vocab_size is not known: set it, or give data that tells it")
    return value


def _round_up(value: float, multiple: int) -> int:
    return -int(-value // multiple) * multiple
