"""The compiled passes, in fp32, against the plain formulas in fp64."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import cpu, cpu_native, rope
from src.nanollama.model.layers import SwiGLU
from src.nanollama.model.rope_scaling import inverse_frequencies
from src.nanollama.model.transformer import Transformer

Function = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def split_and_turn(qkv: Tensor) -> tuple[Tensor, ...]:
    """4 query and 2 key heads of 6 features, 2 value heads of 10."""
    cos, sin = rotation(qkv.dtype)
    q, k, v = (x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in zip(qkv.split([24, 12, 20], -1), (4, 2, 2), strict=True))
    pairs = (torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.complex(cos, sin) for x in (q, k))
    return *(torch.cat([x.real, x.imag], -1) for x in pairs), v


def rotation(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rope.rotation(torch.arange(5), inverse_frequencies(ModelConfig(qk_head_dim=6)), 1.0, dtype)


# name: the compiled function, the plain one, shapes of the inputs; rows that neither threads nor blocks divide
CASES: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "swiglu": (lambda x: (cpu.swiglu(x),), lambda x: (swiglu(x),), [(67, 5, 38)]),
    "rms_norm": (lambda x, w: (cpu.rms_norm(x, w, 1e-5),), lambda x, w: (rms_norm(x, w),), [(67, 5, 12), (12,)]),
    "feed_forward": (
        lambda x, w, v: (cpu.feed_forward(x, w, v),),
        lambda x, w, v: (swiglu(x @ w.T) @ v.T,),
        [(2, 5, 59, 8), (22, 8), (9, 11)],
    ),
    "split_and_turn": (lambda x: cpu.split_and_turn(x, *rotation(x.dtype), 4, 2, 6), split_and_turn, [(67, 5, 56)]),
}


def with_gradients(function: Function, dtype: torch.dtype, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(*leaves)
    return [*out, *torch.autograd.grad(out, leaves, [draw(*y.shape).to(dtype) for y in out])]


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name: str, threads: int) -> None:
    native, plain, shapes = CASES[name]
    inputs = [draw(*shape).float().double() for shape in shapes]
    for ours, exact in zip(with_gradients(native, torch.float32, inputs), with_gradients(plain, torch.float64, inputs), strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert ours.dtype == torch.float32
        assert error < 1e-6


# feed_forward's rows pass through swiglu's kernels; its products are the BLAS's, whose sums hang on the threads on some processors
@pytest.mark.parametrize("name", [name for name in CASES if name != "feed_forward"])
def test_threads_change_no_bit(name: str) -> None:
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(with_gradients(CASES[name][0], torch.float32, [draw(*shape) for shape in CASES[name][2]]))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str) -> None:
    """By the plain formulas, instead of silently without the part that the compiled pass hides from autograd."""

    def penalty_gradient(function: Function, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [draw(*shape).to(dtype).requires_grad_() for shape in CASES[name][2]]
        out = sum(y.square().sum() for y in function(*leaves))
        assert isinstance(out, Tensor)
        grads = torch.autograd.grad(out, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)  # type: ignore[arg-type]

    native, plain, _ = CASES[name]
    for ours, exact in zip(penalty_gradient(native, torch.float32), penalty_gradient(plain, torch.float64), strict=True):
        assert (ours.double() - exact).abs().max() / exact.abs().max() < 1e-5


def test_silu_is_exact_to_two_millionths_everywhere() -> None:
    gate = torch.linspace(-80, 200, 100_001)
    y = cpu.swiglu(torch.stack([gate, torch.ones_like(gate)], -1)).squeeze(-1)
    torch.testing.assert_close(y.double(), F.silu(gate.double()), rtol=2e-6, atol=0)


def test_silu_of_what_is_not_finite() -> None:
    gate = torch.tensor([torch.nan, torch.inf, -1e4])
    y = cpu.swiglu(torch.stack([gate, torch.ones(3)], -1)).squeeze(-1)
    assert y[0].isnan() and y[1] == torch.inf and y[2].abs() < 1e-30


def test_fusible() -> None:
    x = torch.zeros(256, 256)
    assert cpu.fusible(x)
    for other in (x[:8], x.double(), x.bfloat16(), x[:, ::2], x.to("meta"), torch.nn.Parameter(x)):
        assert not cpu.fusible(other)


def test_model_gives_the_same_loss_and_gradients_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(ModelConfig(vocab_size=11, emb_dim=64, nb_layers=2, nb_heads=4, nb_kv_heads=2))
    tokens = torch.randint(11, (8, 65), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[Tensor]:
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    fused = gradients()
    monkeypatch.setattr(cpu, "FUSE_FROM", 2**40)
    for a, b in zip(fused, gradients(), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_hooks_inside_a_feed_forward_layer_are_called() -> None:
    layer, x, seen = SwiGLU(32, 64), draw(4, 256, 32).float(), []
    torch.nn.init.normal_(layer.gate_up.weight), torch.nn.init.normal_(layer.down.weight)
    without = layer(x)
    handle = layer.down.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer(x), without, rtol=1e-5, atol=1e-4)
    assert len(seen) == 1
    handle.remove()
    layer(x)
    assert len(seen) == 1


def test_autocast_reaches_a_feed_forward_layer() -> None:
    layer = SwiGLU(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(4, 256, 32)).dtype == torch.bfloat16


def test_importing_the_model_does_not_load_the_compiler() -> None:
    code = "import sys, src.nanollama.model.transformer; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("own", [False, True])
def test_rows_are_shared_out_once_and_errors_reach_the_caller(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if own:
        monkeypatch.setattr(cpu_native, "_openmp", lambda: None)  # as where torch brings no GNU OpenMP
    threads = torch.get_num_threads()
    torch.set_num_threads(3)

    def count(seen: np.ndarray, start: int, stop: int) -> None:
        seen[start:stop] += 1
        if stop == len(seen) and seen[0] < 0:
            raise ArithmeticError("the last part")

    try:
        for rows in (1, 2, 7):
            seen = torch.zeros(rows)
            cpu_native.over_rows(count, rows, seen)
            assert seen.tolist() == [1.0] * rows
        with pytest.raises(ArithmeticError, match="the last part"):
            cpu_native.over_rows(count, 7, torch.full((7,), -5.0))
    finally:
        torch.set_num_threads(threads)
