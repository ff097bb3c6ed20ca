"""Floating-point operations of a model, counted module by module, and what share of a device's peak they use.

A multiply-add counts as two. A training step counts three times its forward pass (the backward pass makes two products where the
forward makes one). Everything is per token. With N weights in matrix products, L layers of H heads of D features and T tokens of
context, for plain attention:

- ``causal``: 6 N + 6 L T H D, the useful work: a query sees T / 2 keys on average;
- ``palm``: 6 N + 12 L T H D (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): as if every query saw all T keys;
- ``hardware``: 6 N + 7 L T H D, what is really computed when the score matrix is not kept but computed again in the backward pass, as
  fused attention does.

Imports nothing of ours, nor torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

PEAK_FLOPS = {  # dense bf16 operations per second, from the vendors' data sheets; the first whose words the device's name has counts
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


class Shape(Protocol):
    """A resolved ``ModelConfig``, or anything with its fields."""

    @property
    def vocab_size(self) -> int | None: ...
    @property
    def emb_dim(self) -> int: ...
    @property
    def nb_layers(self) -> int: ...
    @property
    def nb_heads(self) -> int: ...
    @property
    def nb_kv_heads(self) -> int | None: ...
    @property
    def qk_head_dim(self) -> int | None: ...
    @property
    def v_head_dim(self) -> int | None: ...
    @property
    def ffn_dim(self) -> int | None: ...
    @property
    def ffn_dims(self) -> Sequence[int] | None: ...
    @property
    def mixers(self) -> Sequence[str]: ...
    @property
    def ssm_state(self) -> int: ...
    @property
    def ssm_expand(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def family(self) -> str | None: ...
    @property
    def collective(self) -> SubNetworks: ...


class SubNetworks(Protocol):
    """Sizes of the family ``collective``."""

    @property
    def n_total(self) -> int: ...
    @property
    def n_experts(self) -> int | None: ...
    @property
    def width(self) -> int | None: ...
    @property
    def code_dim(self) -> int | None: ...


SSM_CHUNK = 64  # positions a recurrent mixer treats at once; the mixer takes it from here


def forward(shape: Shape, seq_len: int, *, causal: bool = True) -> dict[str, float]:
    """Operations per token of one forward pass, by module, all layers together.

    Args:
        shape: every field known.
        seq_len: T.
        causal: count the keys a query sees on average (T / 2, less with a window); else T (or the window).

    Returns:
        ``embedding`` (a look-up: 0), ``attention.projections``, ``attention.scores``, ``ssm.projections``, ``ssm.scan`` (without the
        joining of the chunks' states), ``ffn``, ``head``;
        of a collective ``attention.projections``, ``attention.scores``, ``ffn``, ``bottleneck``, ``head``.
    """
    if shape.family == "collective":
        return _collective(shape, seq_len, causal=causal)
    d, heads, layers = shape.emb_dim, shape.nb_heads, shape.nb_layers
    ssm_layers = layers * list(shape.mixers).count("ssm") // len(shape.mixers)
    attn_layers = layers - ssm_layers
    head_dims = _known(shape.qk_head_dim) + _known(shape.v_head_dim)
    inner, state = shape.ssm_expand * d, shape.ssm_state
    within = SSM_CHUNK * (state + inner)  # scores of a chunk and their product with the values
    carried = 2 * state * inner  # into the state at the end of a chunk, and out of it in the next
    return {
        "embedding": 0.0,
        "attention.projections": 2.0 * attn_layers * d * (heads + _known(shape.nb_kv_heads)) * head_dims,
        "attention.scores": 2.0 * attn_layers * heads * head_dims * visible_keys(seq_len, shape.window, causal=causal),
        "ssm.projections": 2.0 * ssm_layers * d * (3 * inner + 2 * state + heads),
        "ssm.scan": 2.0 * ssm_layers * (within + carried),
        "ffn": 2.0 * 3 * d * (sum(shape.ffn_dims) if shape.ffn_dims else layers * _known(shape.ffn_dim)),
        "head": 2.0 * d * _known(shape.vocab_size),
    }


def _collective(shape: Shape, seq_len: int, *, causal: bool) -> dict[str, float]:
    """Experts read the embedding, analysts read it and the experts' code; a bottleneck of two maps joins each of the two stages."""
    parts, d = shape.collective, shape.emb_dim
    width, code, experts = _known(parts.width), _known(parts.code_dim), _known(parts.n_experts)
    stages = ((experts * width, d, code), ((parts.n_total - experts) * width, d + code, d))  # joint width, inputs, outputs
    joint = parts.n_total * width
    return {
        "embedding": 0.0,
        "attention.projections": sum(2.0 * inputs * 3 * wide for wide, inputs, _ in stages),
        "attention.scores": 2.0 * 2 * joint * visible_keys(seq_len, shape.window, causal=causal),
        "ffn": 2.0 * 3 * joint * _known(shape.ffn_dim),
        "bottleneck": sum(2.0 * math.isqrt(wide * outputs) * (wide + outputs) for wide, _, outputs in stages),
        "head": 2.0 * d * _known(shape.vocab_size),
    }


def visible_keys(seq_len: int, window: int | None, *, causal: bool) -> float:
    """Keys a query sees, averaged over the sequence in the limit of many tokens: T / 2, or W - W^2 / 2T with a window of W < T."""
    width = seq_len if window is None else min(window, seq_len)
    return width - width * width / (2 * seq_len) if causal else float(width)


def training(shape: Shape, seq_len: int, *, causal: bool = True) -> float:
    """Operations per token of one training step."""
    return 3 * sum(forward(shape, seq_len, causal=causal).values())


def hardware(shape: Shape, seq_len: int) -> float:
    """Operations per token that a training step really makes: the products of queries and keys once more in the backward pass."""
    parts = forward(shape, seq_len)
    share = _known(shape.qk_head_dim) / (_known(shape.qk_head_dim) + _known(shape.v_head_dim))
    return 3 * sum(parts.values()) + parts["attention.scores"] * share


def peak(device_name: str, precision: str = "bf16") -> float | None:
    """Peak dense operations per second of a device by its name (``torch.cuda.get_device_name``); None: not known.

    The table is of bf16, in which fp16 runs at the same rate on all of these. What fp32 reaches depends on whether its products go
    through TF32, so no share of a peak is given for it.
    """
    if precision not in ("bf16", "fp16") or "MIG" in device_name:  # a slice has a share of it that its name does not tell
        return None
    return next((flops for name, flops in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def mfu_causal(shape: Shape, seq_len: int, tokens_per_s: float, peak_flops: float | None) -> float | None:
    """Model FLOP utilisation, useful work only. ``tokens_per_s`` and ``peak_flops`` for the same devices; None: peak not known."""
    return _share(training(shape, seq_len), tokens_per_s, peak_flops)


def mfu_palm(shape: Shape, seq_len: int, tokens_per_s: float, peak_flops: float | None) -> float | None:
    """Model FLOP utilisation as torchtitan, nanoGPT and PaLM report it."""
    return _share(training(shape, seq_len, causal=False), tokens_per_s, peak_flops)


def hfu(shape: Shape, seq_len: int, tokens_per_s: float, peak_flops: float | None) -> float | None:
    """Hardware FLOP utilisation: recomputed work counts as well."""
    return _share(hardware(shape, seq_len), tokens_per_s, peak_flops)


def _share(flops_per_token: float, tokens_per_s: float, peak_flops: float | None) -> float | None:
    return None if peak_flops is None else flops_per_token * tokens_per_s / peak_flops


def _known(value: int | None) -> int:
    if value is None:
        raise ValueError("a size of the model is None: count FLOPs of a resolved config with its vocab_size")
    return value
