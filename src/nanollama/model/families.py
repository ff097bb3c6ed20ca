"""Families of architectures matched to one number of parameters, so that a comparison of shapes is not one of sizes.

The idea is that of plain and residual multilayer perceptrons of several depths against a collective of small networks; here every
family is a language model. A layer is a mixer and a gated feed-forward. ``emb_dim`` is the width between layers, so the width profile
of a family is that of its feed-forwards:

=====================  ======  =======================================  =====
family                 layers  hidden widths                            skips
=====================  ======  =======================================  =====
``shallow``            2-3     constant                                 no
``balanced``           4-5     halved from each layer to the next       no
``deep``               8-10    constant                                 no
``very_deep``          12-15   constant                                 no
``deep_resnet``        8-10    constant                                 yes
``very_deep_resnet``   12-15   constant                                 yes
``collective``         2       experts, then analysts (``collective``)  input
=====================  ======  =======================================  =====

Within its range of depths a family takes the one that keeps ``emb_dim / nb_layers`` nearest to its own, so that it grows in both. Heads,
mixers, tying and vocabulary are those of the config; without a family so are depth and skips, and only the widths are solved. Everything
is arithmetic on configs: nothing is built, no torch needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import ConfigError
from ..config.schema import ModelConfig
from . import sizing
from .sizing import required

TOLERANCE = 0.005  # of the target
RATIO = (2.0, 3.5)  # usual ffn_dim / emb_dim: 8/3 with room to meet a count
MULTIPLES = (8, 1)  # of a hidden width: what tensor cores like, else what it takes


@dataclass(frozen=True)
class Family:
    """Range of depths, the ``emb_dim / nb_layers`` in its middle, and what else makes the family."""

    depths: tuple[int, int]
    aspect: float
    residual: bool = False
    halving: bool = False


FAMILIES = {
    "collective": Family((2, 2), 1.0),
    "shallow": Family((2, 3), 160.0),
    "balanced": Family((4, 5), 60.0, halving=True),
    "deep": Family((8, 10), 22.0),
    "very_deep": Family((12, 15), 11.0),
    "deep_resnet": Family((8, 10), 22.0, residual=True),
    "very_deep_resnet": Family((12, 15), 11.0, residual=True),
}
WIDTHS = ("emb_dim", "ffn_dim", "ffn_dims", "qk_head_dim", "v_head_dim")
SOLVED = (*WIDTHS, "nb_layers", "residual")


def resolve(cfg: ModelConfig) -> ModelConfig:
    """``sizing.resolve``, after the shape of ``cfg.family``, or of a plain model, is solved for ``cfg.target_params``. Idempotent.

    Raises:
        ConfigError: no such shape within TOLERANCE (naming the nearest), or one was given beside it.
    """
    native = cfg.family == "collective" and cfg.match == "native"
    if cfg.match == "native" and not native:
        raise ConfigError(f"model.match=native is for model.family=collective, not {cfg.family}: only a collective has a size of its own")
    if native or (cfg.family is None and cfg.target_params is None):
        return sizing.resolve(cfg)
    if cfg.target_params is None:
        raise ConfigError(f"model.family={cfg.family} needs model.target_params, e.g. 1.8M")
    found = solve(cfg)
    for key in SOLVED if cfg.family else WIDTHS:
        _check_free(f"model.{key}", cfg, getattr(cfg, key), getattr(ModelConfig(), key), getattr(found, key))
    for key in ("width", "code_dim"):
        _check_free(f"model.collective.{key}", cfg, getattr(cfg.collective, key), None, getattr(found.collective, key))
    return found


def _check_free(key: str, cfg: ModelConfig, given: object, default: object, found: object) -> None:
    if given not in (default, found):
        asked = f"model.family={cfg.family} with " if cfg.family else ""
        raise ConfigError(f"{key}={given} contradicts {asked}model.target_params={cfg.target_params}, which gives {found}: leave it out")


def counted(cfg: ModelConfig) -> int:
    """The number of parameters that ``target_params`` is compared with."""
    return sizing.num_params(cfg) - (0 if cfg.match_embeddings else sizing.embedding_params(cfg))


def deviation(cfg: ModelConfig) -> float:
    """(counted - target) / target of a solved config."""
    return counted(cfg) / required(cfg.target_params) - 1


def solve(cfg: ModelConfig) -> ModelConfig:
    """The shape of the family, or of the given depth, nearest in proportion whose count is within TOLERANCE of the target, resolved.

    Raises:
        ConfigError: there is none with hidden widths in proportion; the message names the nearest.
    """
    family = FAMILIES[cfg.family] if cfg.family else Family((cfg.nb_layers, cfg.nb_layers), 1.0, residual=cfg.residual)
    depths = range(family.depths[0], family.depths[1] + 1)
    found = [min(_shapes(cfg, family, depth), key=_badness) for depth in depths]
    best = min(found, key=lambda shape: (not _fits(shape), _far(shape.emb_dim / shape.nb_layers, family.aspect)))
    if not _fits(best):
        tried = [shape for depth in depths for shape in _shapes(cfg, family, depth)]
        raise ConfigError(_unreachable(cfg, min(tried, key=lambda shape: (_disproportion(shape) > 2, abs(deviation(shape))))))
    return best


def _fits(shape: ModelConfig) -> bool:
    """Within tolerance, and in proportion: hidden widths at most twice as small or large as usual."""
    return abs(deviation(shape)) <= TOLERANCE and _disproportion(shape) <= 2


def _shapes(cfg: ModelConfig, family: Family, depth: int) -> Iterator[ModelConfig]:
    """Shapes of one depth, each with the hidden widths that bring it nearest to the target: the widest first, then down to where the
    hidden widths are twice as large as they should be."""
    step, target = math.lcm(8, 2 * cfg.nb_heads), required(cfg.target_params)
    frame = replace(cfg, nb_layers=depth, ffn_dim=1, ffn_dims=None, qk_head_dim=None, v_head_dim=None, residual=family.residual,
                    collective=replace(cfg.collective, width=None, code_dim=None))  # fmt: skip

    def bare(width: int) -> ModelConfig:
        return sizing.resolve(replace(frame, emb_dim=width * step))

    for width in range(max(1, sizing.largest(lambda width: counted(bare(width)) <= target)), 0, -1):
        shape = bare(width)
        hidden = 1 + max(0.0, (target - counted(shape)) / (3 * _joint_width(shape)))  # of each layer, on average
        for multiple in MULTIPLES:
            if family.halving:
                yield replace(shape, ffn_dim=None, ffn_dims=_halving(hidden * depth, depth, multiple))
            else:
                yield replace(shape, ffn_dim=_snap(hidden, multiple))
        if hidden > 2 * RATIO[1] * _base(shape):
            return


def _base(cfg: ModelConfig) -> int:
    """The width that a feed-forward reads: of the layer, or of one sub-network."""
    return required(cfg.collective.width) if cfg.family == "collective" else cfg.emb_dim


def _joint_width(cfg: ModelConfig) -> int:
    """That of all layers, or of all sub-networks, together."""
    return _base(cfg) * (cfg.collective.n_total if cfg.family == "collective" else cfg.nb_layers)


def _halving(total: float, depth: int, multiple: int) -> tuple[int, ...]:
    """Hidden widths that halve from layer to layer and sum up to ``total``, the first taking what rounding leaves."""
    shares = [2.0**-i for i in range(depth)]
    rest = [_snap(total * share / sum(shares), multiple) for share in shares[1:]]
    return (_snap(total - sum(rest), multiple), *rest)


def _snap(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def _badness(shape: ModelConfig) -> tuple[bool, float, bool, float]:
    """Out of tolerance, out of proportion, odd widths, distance from the target: in this order."""
    off = abs(deviation(shape))
    return off > TOLERANCE, _disproportion(shape), any(width % MULTIPLES[0] for width in sizing.ffn_widths(shape)), off


def _disproportion(shape: ModelConfig) -> float:
    """How far the mean hidden width is out of RATIO, as a factor; 1: inside."""
    widths = sizing.ffn_widths(shape)
    ratio = sum(widths) / len(widths) / _base(shape)
    return max(1.0, RATIO[0] / ratio, ratio / RATIO[1])


def _far(value: float, wanted: float) -> float:
    return abs(math.log(value / wanted))


def _unreachable(cfg: ModelConfig, nearest: ModelConfig) -> str:
    embeddings = sizing.embedding_params(nearest)
    share = f", {embeddings} of them in embedding and head" if cfg.match_embeddings else ""
    widths = ", ".join(map(str, dict.fromkeys(sizing.ffn_widths(nearest))))
    asked = f"model.family={cfg.family}" if cfg.family else f"model.nb_layers={cfg.nb_layers} with model.nb_heads={cfg.nb_heads}"
    text = (
        f"{asked} has no shape in proportion within {TOLERANCE:.1%} of model.target_params={cfg.target_params}: the "
        f"nearest has {counted(nearest)} parameters ({deviation(nearest):+.1%}{share}), nb_layers={nearest.nb_layers}, "
        f"emb_dim={nearest.emb_dim} and hidden widths {widths}"
    )
    return text + ("; model.tie_embeddings=true or model.match_embeddings=false may help" if share else "")
