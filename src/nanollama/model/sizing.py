"""Sizes of a model as arithmetic on its config: derived fields, parameter count, and the shape that meets a given count.

Needs no torch, so that a launcher can check a config before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import ConfigError
from ..config.schema import ModelConfig

FFN_MULTIPLE = 32


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
    return replace(
        cfg,
        nb_kv_heads=kv_heads,
        qk_head_dim=qk_dim,
        v_head_dim=cfg.v_head_dim or cfg.emb_dim // heads,
        ffn_dim=cfg.ffn_dim or _round_up(8 * cfg.emb_dim / 3, FFN_MULTIPLE),
        init_std=cfg.init_std or cfg.emb_dim**-0.5,
    )


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, tied ones counted once. ``vocab_size`` has to be known."""
    cfg = resolve(cfg)
    d, vocab = cfg.emb_dim, required(cfg.vocab_size)
    embeddings = vocab * d * (1 if cfg.tie_embeddings else 2)
    return embeddings + cfg.nb_layers * _layer_params(cfg) + d


def _layer_params(cfg: ModelConfig) -> int:
    d, qk, v, kv_heads = cfg.emb_dim, required(cfg.qk_head_dim), required(cfg.v_head_dim), required(cfg.nb_kv_heads)
    attention = d * (cfg.nb_heads * (qk + v) + kv_heads * (qk + v))
    return attention + 3 * d * required(cfg.ffn_dim) + 2 * d


def required(value: int | None) -> int:
    """A derived size that has to be known by now."""
    if value is None:
        raise ConfigError("model.vocab_size is not known: set it, or give data that tells it")
    return value


def _round_up(value: float, multiple: int) -> int:
    return -int(-value // multiple) * multiple
