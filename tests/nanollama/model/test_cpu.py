"""The CPU's functions against the plain formulas they replace."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import cpu, rope
from src.nanollama.model.rope_scaling import inverse_frequencies


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, draw(*out.shape))]


def assert_same(ours: list[Tensor], plain: list[Tensor]) -> None:
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


def rotation(length: int, dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return rope.rotation(torch.arange(length), inverse_frequencies(ModelConfig(qk_head_dim=dim)), 1.0, dtype)


def plain_attention(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dim: int) -> Tensor:
    """Textbook form: rotate by the definition, repeat keys and values, one full score matrix."""
    q, k, v = qkv.split([heads * dim, kv_heads * dim, qkv.shape[-1] - (heads + kv_heads) * dim], -1)
    q, k, v = (x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    full_cos, full_sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    q, k = (x * full_cos + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * full_sin for x in (q, k))
    k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) / dim**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_attention(length: int, heads: int, kv_heads: int) -> None:
    cos, sin = rotation(length, 8)
    qkv = draw(2, length, (heads + kv_heads) * 8 + kv_heads * 12)
    args = (cos, sin, heads, kv_heads, 8)
    assert_same(with_gradients(lambda x: cpu.attention(x, *args), qkv), with_gradients(lambda x: plain_attention(x, *args), qkv))


def test_rotation() -> None:
    cos, sin = rotation(9, 6)
    x = draw(2, 3, 9, 6)

    def plain(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.complex(cos, sin)
        return torch.cat([pairs.real, pairs.imag], -1)

    assert_same(with_gradients(lambda x: rope.rotate(x, cos, sin), x), with_gradients(plain, x))


def test_bf16_chunks_err_at_most_twice_as_much_as_the_fused_kernel() -> None:
    heads, dim, length = 4, 32, 256
    qkv = draw(2, length, 3 * heads * dim) * 2
    exact = plain_attention(qkv, *rotation(length, dim), heads, heads, dim)
    cos, sin = rotation(length, dim, torch.bfloat16)
    q, k, v = (x.unflatten(-1, (heads, dim)).transpose(1, 2) for x in qkv.bfloat16().chunk(3, -1))
    fused = F.scaled_dot_product_attention(rope.turn(q, cos, sin), rope.turn(k, cos, sin), v, is_causal=True).transpose(1, 2).flatten(2)
    chunked = cpu.attention(qkv.bfloat16(), cos, sin, heads, heads, dim)
    error = [(x.double() - exact).square().mean().sqrt() for x in (chunked, fused)]
    assert error[0] < 2 * error[1]
