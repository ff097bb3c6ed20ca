"""Fused fp32 attention against the textbook form in fp64: errors below 3e-6 of the largest entry, some 25 roundings."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import attention, cpu, rope
from src.nanollama.model.fused_attention import attend, plain_attend
from src.nanollama.model.rope_scaling import inverse_frequencies
from src.nanollama.model.transformer import Transformer

SHAPES = [(4, 4, 32, 32), (6, 2, 8, 12), (3, 1, 24, 20), (2, 2, 48, 64), (2, 1, 6, 5), (1, 1, 128, 16)]  # H, K, D, D_v


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def rotation(length: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rope.rotation(torch.arange(length), inverse_frequencies(ModelConfig(qk_head_dim=dim)), 1.0, dtype)


def textbook(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Rotate complex numbers, repeat keys and values, one full score matrix."""
    dim = 2 * cos.shape[1]
    parts = qkv.split([heads * dim, kv_heads * dim, qkv.shape[-1] - (heads + kv_heads) * dim], -1)
    q, k, v = (x.unflatten(-1, (n, -1)) for x, n in zip(parts, (heads, kv_heads, kv_heads), strict=True))
    angle = torch.complex(cos, sin)[:, None]
    q, k = (torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * angle for x in (q, k))
    q, k = (torch.cat([x.real, x.imag], -1) for x in (q, k))
    k, v = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / dim**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(future, -torch.inf).softmax(-1), v).flatten(2)


def inputs(length: int, heads: int, kv_heads: int, dim: int, v_dim: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """qkv and the gradient of what comes out."""
    return draw(batch, length, (heads + kv_heads) * dim + kv_heads * v_dim) * 2, draw(batch, length, heads * v_dim)


def with_gradient(function, qkv: Tensor, grad: Tensor, heads: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    leaf = qkv.clone().requires_grad_()
    out = function(leaf, *rotation(qkv.shape[1], dim, qkv.dtype), heads, kv_heads)
    return out.detach(), torch.autograd.grad(out, leaf, grad)[0]


def assert_close(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], tolerance: float = 3e-6) -> None:
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "v_dim"), SHAPES)
def test_forward_and_backward(length: int, heads: int, kv_heads: int, dim: int, v_dim: int) -> None:
    qkv, grad = inputs(length, heads, kv_heads, dim, v_dim)
    ours = with_gradient(attend, qkv, grad, heads, kv_heads, dim)
    assert_close(ours, with_gradient(textbook, qkv.double(), grad.double(), heads, kv_heads, dim))
    assert ours[0].dtype == ours[1].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_less_than_sdpa_in_it(dtype: torch.dtype) -> None:
    qkv, grad = (x.to(dtype) for x in inputs(256, 4, 2, 32, 32))
    exact = with_gradient(textbook, qkv.double(), grad.double(), 4, 2, 32)
    ours, sdpa = (with_gradient(function, qkv, grad, 4, 2, 32) for function in (attend, plain_attend))
    for a, b, c in zip(ours, sdpa, exact, strict=True):
        assert a.dtype == dtype
        assert (a.double() - c).norm() < (b.double() - c).norm()


def test_scores_of_any_size() -> None:
    """exp neither overflows nor loses what matters: scores of some thousands, where one key gets all the weight."""
    qkv, grad = inputs(100, 2, 2, 16, 16)
    qkv[..., :64] *= 30
    # The scores are so large that their rounding alone is 1e-4.
    assert_close(with_gradient(attend, qkv, grad, 2, 2, 16), with_gradient(textbook, qkv.double(), grad.double(), 2, 2, 16), tolerance=5e-3)


def test_the_future_changes_no_bit_of_the_past() -> None:
    qkv, _ = inputs(200, 4, 2, 16, 16)
    other = qkv.clone()
    other[:, 150:] = 100.0
    rotated = rotation(200, 16, torch.float32)
    assert torch.equal(attend(qkv, *rotated, 4, 2)[:, :150], attend(other, *rotated, 4, 2)[:, :150])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen_from_there_on(bad: float) -> None:
    qkv, _ = inputs(100, 1, 1, 8, 8)
    qkv[:, 70, 12] = bad  # a key
    out = attend(qkv, *rotation(100, 8, torch.float32), 1, 1)
    assert out[:, :70].isfinite().all() and out[:, 70:].isnan().any(-1).any(-1).all()


def test_threads_change_no_bit() -> None:
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(with_gradient(attend, *inputs(130, 6, 3, 16, 16), 6, 3, 16))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_second_derivatives() -> None:
    """By the plain formula, which autograd can follow."""

    def penalty_gradient(function, qkv: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        leaf = qkv.clone().requires_grad_()
        out = function(leaf, *rotation(40, 8, qkv.dtype), 4, 2)
        (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    qkv, _ = inputs(40, 4, 2, 8, 8)
    assert_close((penalty_gradient(attend, qkv),), (penalty_gradient(textbook, qkv.double()),), tolerance=1e-5)


def test_plain_form() -> None:
    qkv, grad = inputs(33, 6, 2, 8, 12)
    ours, exact = (with_gradient(function, qkv.double(), grad.double(), 6, 2, 8) for function in (plain_attend, textbook))
    assert_close(ours, exact, tolerance=1e-12)


def test_operator() -> None:
    """torch's own check: shapes on fake tensors, strides, registration of the gradient."""
    args = (inputs(20, 4, 2, 8, 8)[0].requires_grad_(), *rotation(20, 8, torch.float32), 4, 2)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.nanollama.attend.default, args, test_utils=checks)


def test_compiled_model_uses_it_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(ModelConfig(vocab_size=11, emb_dim=64, nb_layers=2, nb_heads=4, nb_kv_heads=2))
    tokens = torch.randint(11, (8, 65), generator=torch.Generator().manual_seed(0))
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]):  # type: ignore[no-untyped-def]
        graphs.append(graph.code)
        return graph.forward

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        loss = nn.functional.cross_entropy(run(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    eager = gradients(model)
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    gradients(torch.compile(model, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    monkeypatch.setattr(attention, "NATIVE_UP_TO", 0)
    plain = gradients(model)
    assert len(graphs) == 1 and graphs[0].count("nanollama.attend") == 2
    for a, b, c in zip(eager, compiled, plain, strict=True):
        assert (a - c).norm() < 1e-5 * c.norm() and (b - c).norm() < 1e-5 * c.norm()


def test_which_kernel() -> None:
    long = attention.NATIVE_UP_TO + 1
    for shape, dtype, expected in [
        ((2, 256, 192), torch.float32, "native"),
        ((1, 8, 192), torch.float32, "sdpa"),  # too little to load the compiler for
        ((1, long, 192), torch.float32, "sdpa"),
        ((2, 256, 192), torch.float64, "sdpa"),
        ((2, 256, 192), torch.bfloat16, "native"),
        ((2, 256, 192), torch.float16, "native"),
    ]:
        assert attention.fastest(torch.zeros(shape, dtype=dtype)) == expected
    assert attention.fastest(torch.zeros(2, 256, 192, device="meta")) == "sdpa"
    assert not cpu.compilable(nn.Parameter(torch.zeros(256, 256)))
