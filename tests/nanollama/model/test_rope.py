"""Frequencies of every extrapolation against Hugging Face's; the turn itself against complex numbers."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from src.nanollama.config import ConfigError
from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import rope
from src.nanollama.model.rope_scaling import inverse_frequencies, magnitude
from src.nanollama.model.sizing import resolve

HF_PARAMETERS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    # Their base follows the length at hand; at a factor of 1 it is the fixed formula with (length / trained length) for the factor.
    "ntk": {"rope_type": "dynamic", "factor": 1.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
}


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("kind", HF_PARAMETERS)
def test_extrapolation_equals_hugging_face(kind: str, dim: int) -> None:
    theta = 10000.0
    parameters = {**HF_PARAMETERS[kind], "rope_theta": theta}
    hf = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, max_position_embeddings=512, rope_parameters=parameters)
    theirs, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](hf, device=torch.device("cpu"), seq_len=4 * 512)
    cfg = ModelConfig(qk_head_dim=dim, rope_theta=theta, rope_scaling=kind, rope_factor=4.0, rope_length=512)
    torch.testing.assert_close(inverse_frequencies(cfg), theirs, rtol=1e-5, atol=0)
    assert magnitude(cfg) == pytest.approx(scale)
    plain = inverse_frequencies(ModelConfig(qk_head_dim=dim, rope_theta=theta))
    assert not torch.allclose(inverse_frequencies(cfg), plain)


def test_plain_frequencies() -> None:
    freq = inverse_frequencies(ModelConfig(qk_head_dim=8, rope_theta=100.0))
    assert freq.tolist() == pytest.approx([100.0 ** (-2 * i / 8) for i in range(4)])


def test_ntk_keeps_the_fastest_and_slows_the_slowest_by_the_factor() -> None:
    plain, ntk = (inverse_frequencies(ModelConfig(qk_head_dim=32, rope_scaling=kind, rope_factor=8.0)) for kind in ("none", "ntk"))
    assert ntk[0] == plain[0]
    assert (plain[-1] / ntk[-1]).item() == pytest.approx(8.0, rel=1e-4)


def test_trained_length_is_needed() -> None:
    with pytest.raises(ConfigError, match="rope_length"):
        resolve(ModelConfig(rope_scaling="yarn", rope_factor=2.0))


def test_turn_is_a_complex_product_forward_and_backward() -> None:
    cos, sin = rope.rotation(torch.arange(9), inverse_frequencies(ModelConfig(qk_head_dim=6)), 1.0, torch.float64)
    draw = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 3, 9, 6, generator=draw, dtype=torch.float64) for _ in range(2))

    def plain(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.complex(cos, sin)
        return torch.cat([pairs.real, pairs.imag], -1)

    results = []
    for function in (lambda x: rope.rotate(x, cos, sin), plain):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        results.append((out, *torch.autograd.grad(out, leaf, grad)))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_turned_heads_of_a_token_lie_side_by_side(compiled: bool) -> None:
    """Attention kernels lay out their result like the queries: then it goes to the output projection, and gradients back, uncopied."""
    cos, sin = rope.rotation(torch.arange(5), torch.tensor([1.0, 0.1]), 1.0, torch.float32)
    heads = torch.randn(2, 5, 3, 4).transpose(1, 2).requires_grad_()
    turn = torch.compile(rope.rotate, backend="aot_eager") if compiled else rope.rotate
    turned = turn(heads, cos, sin)
    # ``grad`` and not ``backward``, which gives a leaf's gradient the layout of the leaf
    (grad,) = torch.autograd.grad(turned, heads, torch.ones_like(turned, memory_format=torch.contiguous_format))
    assert turned.transpose(1, 2).is_contiguous() and grad.transpose(1, 2).is_contiguous()
