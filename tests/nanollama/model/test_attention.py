"""Every way to compute attention gives the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.nanollama.model.attention import chunked_attention


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_chunked_equals_sdpa_forward_and_backward(length: int, heads: int, kv_heads: int) -> None:
    inputs = [draw(2, heads, length, 8), draw(2, kv_heads, length, 8), draw(2, kv_heads, length, 12)]
    grad = draw(2, heads, length, 12)

    def run(function, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    chunked = run(chunked_attention, *inputs)
    sdpa = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), *inputs)
    for ours, theirs in zip(chunked, sdpa, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_bf16_chunks_are_no_worse_than_twice_the_fused_kernel() -> None:
    q, k, v = (draw(2, 4, 256, 32) * scale for scale in (2, 2, 1))
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    low = [t.bfloat16() for t in (q, k, v)]
    fused = (F.scaled_dot_product_attention(*low, is_causal=True).double() - exact).square().mean().sqrt()
    chunked = (chunked_attention(*low).double() - exact).square().mean().sqrt()
    assert chunked < 2 * fused
