"""FLOPs counted from the shape, and utilisation by two named conventions. Pure arithmetic.

One multiply-add is two FLOPs; a backward pass costs twice its forward. ``causal`` counts the half of the attention scores that a causal
model needs; ``palm`` counts them all, as Chowdhery et al. (2022, appendix B) and most published figures do.
"""

from __future__ import annotations

from typing import Protocol


class Shape(Protocol):
    """A resolved model config."""

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


# Dense peaks in FLOP/s from the makers' data sheets, without sparsity. A device that is not listed has none: never a guess.
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250e12, "fp32": 75e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "L4": {"bf16": 121e12, "fp32": 30.3e12},
    "RTX 4090": {"bf16": 165.2e12, "fp32": 82.6e12},
}


def device_peak(name: str, precision: str) -> float | None:
    """Peak FLOP/s of the device torch calls ``name`` at ``precision`` (fp32 without TF32), or None if it is not in the table."""
    words = name.replace("-", " ")
    key = next((key for key in PEAKS if f" {key} " in f" {words} "), None)
    return PEAKS[key].get(precision) if key else None


def matmul_params(cfg: Shape) -> int:
    """Weights that multiply activations: everything but the embedding table (a look-up) and the norms; a tied head counts."""
    d, heads, kv = cfg.emb_dim, cfg.nb_heads, cfg.nb_kv_heads or cfg.nb_heads
    qk, v = cfg.qk_head_dim or d // heads, cfg.v_head_dim or d // heads
    assert cfg.vocab_size is not None and cfg.ffn_dim is not None, "a resolved config is needed"
    layer = d * (heads * (qk + v) + kv * (qk + v)) + 3 * d * cfg.ffn_dim
    return cfg.nb_layers * layer + d * cfg.vocab_size


def train_flops_per_token(cfg: Shape, seq_len: int) -> dict[str, float]:
    """FLOPs of forward and backward per token at context ``seq_len``, by convention."""
    heads = cfg.nb_heads
    qk, v = cfg.qk_head_dim or cfg.emb_dim // heads, cfg.v_head_dim or cfg.emb_dim // heads
    attention = 6.0 * cfg.nb_layers * heads * (qk + v) * seq_len
    weights = 6.0 * matmul_params(cfg)
    return {"causal": weights + attention / 2, "palm": weights + attention}


def utilisation(flops_per_token: dict[str, float], tokens_per_s: float, peak: float | None, devices: int) -> dict[str, float | None]:
    """Model FLOPs utilisation ``mfu_causal`` and ``mfu_palm`` as shares of the devices' peak; None where the peak is unknown."""
    return {f"mfu_{name}": None if peak is None else flops * tokens_per_s / (peak * devices) for name, flops in flops_per_token.items()}
