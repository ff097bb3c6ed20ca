"""Frequencies of rotary embeddings for sequences longer than those of the training.

D is the size of a head, theta_i = theta^(-2i/D) the angle per position of pair i, s = ``rope_factor`` the extension and L =
``rope_length`` the length trained on; a pair makes L theta_i / 2 pi turns over it.

- linear (Chen et al., 2023, arXiv:2306.15595): every theta_i / s.
- ntk (bloc97, 2023; fixed base as in arXiv:2309.00071, eq. 16): theta becomes theta * s^(D / (D - 2)), so that the slowest pair is
  slowed down by s and the fastest not at all.
- llama3 (Llama 3.1, arXiv:2407.21783): pairs of more than 4 turns stay, those of less than 1 are slowed down by s, linear between.
- yarn (Peng et al., 2023, arXiv:2309.00071): pairs of more than 32 turns stay, those of less than 1 are slowed down by s, a linear ramp
  over the index between; queries and keys both grow by 0.1 ln s + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.schema import ModelConfig
from .sizing import required

LLAMA3_TURNS = (1.0, 4.0)
YARN_TURNS = (1.0, 32.0)


def inverse_frequencies(cfg: ModelConfig) -> Tensor:
    """Angle per position of every feature pair: (D/2,) float32."""
    dim, factor = required(cfg.qk_head_dim), cfg.rope_factor
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    theta = cfg.rope_theta
    if cfg.rope_scaling == "ntk" and dim > 2:
        theta *= factor ** (dim / (dim - 2))
    freq = 1.0 / theta**exponents
    if cfg.rope_scaling == "linear":
        return freq / factor
    if cfg.rope_scaling == "llama3":
        low, high = LLAMA3_TURNS
        keep = (freq * _trained_length(cfg) / (2 * math.pi) - low) / (high - low)
    elif cfg.rope_scaling == "yarn":
        first, last = (_pair_with_turns(turns, cfg) for turns in reversed(YARN_TURNS))
        first, last = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
        keep = 1 - (torch.arange(dim // 2) - first) / max(last - first, 0.001)
    else:
        return freq
    keep = keep.clamp(0, 1)
    return freq * keep + freq / factor * (1 - keep)


def magnitude(cfg: ModelConfig) -> float:
    """Factor on rotated queries and on rotated keys."""
    return 0.1 * math.log(cfg.rope_factor) + 1 if cfg.rope_scaling == "yarn" and cfg.rope_factor > 1 else 1.0


def _trained_length(cfg: ModelConfig) -> int:
    return cfg.rope_length or 0


def _pair_with_turns(turns: float, cfg: ModelConfig) -> float:
    """The (fractional) index i for which theta_i makes so many turns over the trained length."""
    return required(cfg.qk_head_dim) * math.log(_trained_length(cfg) / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))
