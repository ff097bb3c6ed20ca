"""Sizes of a model as arithmetic on its config: derived fields and the number of parameters (``families`` solves for a given one).

Needs no torch, so that a launcher can check a config before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..config import ConfigError
from ..config.schema import ModelConfig

FFN_MULTIPLE = 32
SSM_WIDTH = 4  # taps of the convolution in a recurrent mixer


def resolve(cfg: ModelConfig) -> ModelConfig:
    """Fill every derived field. Idempotent; leaves ``vocab_size`` alone, which only the data can tell.

    Raises:
        ConfigError: sizes that do not divide, naming the fields.
    """
    if cfg.family == "collective":
        return _resolve_collective(cfg)
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
    if cfg.ffn_dims is not None and (cfg.ffn_dim is not None or len(cfg.ffn_dims) != cfg.nb_layers):
        raise ConfigError(
            f"model.ffn_dims = {list(cfg.ffn_dims)} has to name one width for each of model.nb_layers={cfg.nb_layers} layers, "
            f"and model.ffn_dim={cfg.ffn_dim} has to be left out beside it"
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
        ffn_dim=None if cfg.ffn_dims else cfg.ffn_dim or _round_up(8 * cfg.emb_dim / 3, FFN_MULTIPLE),
        init_std=cfg.init_std or cfg.emb_dim**-0.5,
    )


def mixers(cfg: ModelConfig) -> Sequence[str]:
    """The mixer of every layer."""
    return [*cfg.mixers] * (cfg.nb_layers // len(cfg.mixers))


def ffn_widths(cfg: ModelConfig) -> Sequence[int]:
    """The hidden width of every layer's feed-forward, for a resolved config."""
    return cfg.ffn_dims or [required(cfg.ffn_dim)] * cfg.nb_layers


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, tied ones counted once. ``vocab_size`` has to be known."""
    cfg = resolve(cfg)
    d = cfg.emb_dim
    if cfg.family == "collective":
        experts, analysts = stages(cfg)
        inside = d + experts.outputs + sum(stage.num_params(required(cfg.ffn_dim)) for stage in (experts, analysts))
    else:
        inside = 3 * d * sum(ffn_widths(cfg)) + 2 * d * cfg.nb_layers + sum(_mixer_params(cfg, mixer) for mixer in mixers(cfg))
    return embedding_params(cfg) + inside + d


def embedding_params(cfg: ModelConfig) -> int:
    """Number of parameters in the embedding and the head."""
    return required(cfg.vocab_size) * cfg.emb_dim * (1 if cfg.tie_embeddings else 2)


def _mixer_params(cfg: ModelConfig, mixer: str) -> int:
    d = cfg.emb_dim
    if mixer == "attn":
        return d * (cfg.nb_heads + required(cfg.nb_kv_heads)) * (required(cfg.qk_head_dim) + required(cfg.v_head_dim))
    inner, heads, convolved = cfg.ssm_expand * d, cfg.nb_heads, cfg.ssm_expand * d + 2 * cfg.ssm_state
    return d * (inner + convolved + heads) + SSM_WIDTH * convolved + 3 * heads + inner + inner * d


# --- the family ``collective`` ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of a collective: ``count`` sub-networks of one ``width`` read ``inputs`` features and are joined to ``outputs``."""

    count: int
    width: int
    inputs: int
    outputs: int

    @property
    def bottleneck(self) -> int:
        """Width between the two maps that join the sub-networks: the geometric mean of what goes in and what comes out."""
        return math.isqrt(self.count * self.width * self.outputs)

    def heads(self, cfg: ModelConfig) -> ModelConfig:
        """The shape of all sub-networks' attention heads together."""
        heads = self.count * cfg.nb_heads
        return replace(cfg, family=None, emb_dim=self.inputs, nb_heads=heads, nb_kv_heads=heads)

    def num_params(self, ffn_dim: int) -> int:
        """Of the heads, the feed-forwards and their norm, and the bottleneck."""
        joint = self.count * self.width
        return 3 * self.inputs * joint + self.width + 3 * joint * ffn_dim + self.bottleneck * (joint + self.outputs)


def stages(cfg: ModelConfig) -> tuple[Stage, Stage]:
    """Experts and analysts of a resolved collective."""
    parts, d = cfg.collective, cfg.emb_dim
    experts, width, code = required(parts.n_experts), required(parts.width), required(parts.code_dim)
    return Stage(experts, width, d, code), Stage(parts.n_total - experts, width, d + code, d)


def _resolve_collective(cfg: ModelConfig) -> ModelConfig:
    """As ``resolve``: nb_heads are those of each sub-network, ffn_dim is the hidden width of each."""
    parts = cfg.collective
    if set(cfg.mixers) != {"attn"} or cfg.ffn_dims is not None or cfg.nb_kv_heads not in (None, cfg.nb_heads):
        raise ConfigError(
            "model.family=collective has attention heads that share nothing: leave out model.mixers, model.ffn_dims and model.nb_kv_heads"
        )
    width = parts.width or max(1, round(cfg.emb_dim / 2 / (2 * cfg.nb_heads))) * 2 * cfg.nb_heads
    if width % (2 * cfg.nb_heads):
        raise ConfigError(f"model.collective.width={width} is not a multiple of 2 * model.nb_heads = {2 * cfg.nb_heads}")
    experts = parts.n_experts or min(parts.n_total - 1, max(1, round(parts.n_total * parts.expert_ratio)))
    if experts >= parts.n_total:
        raise ConfigError(f"model.collective.n_experts={experts} leaves no analyst among n_total={parts.n_total} sub-networks")
    code = parts.code_dim or max(1, round(parts.c_expert * experts * width))
    return replace(
        cfg,
        nb_layers=2,
        nb_kv_heads=cfg.nb_heads,
        qk_head_dim=width // cfg.nb_heads,
        v_head_dim=width // cfg.nb_heads,
        ffn_dim=cfg.ffn_dim or _round_up(8 * width / 3, FFN_MULTIPLE),
        init_std=cfg.init_std or cfg.emb_dim**-0.5,
        residual=False,
        collective=replace(parts, width=width, n_experts=experts, code_dim=code),
    )


def largest(fits: Callable[[int], bool]) -> int:
    """The largest positive integer that fits, where all below it do too; 0 if none does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def required(value: int | None) -> int:
    """A derived size that has to be known by now."""
    if value is None:
        raise ConfigError("model.vocab_size is not known: set it, or give data that tells it")
    return value


def _round_up(value: float, multiple: int) -> int:
    return -int(-value // multiple) * multiple
