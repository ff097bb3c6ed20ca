"""Analytic counts against torch's counter, against the published formulas, and on devices known and unknown."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.sizing import num_params, resolve
from src.nanollama.model.transformer import Transformer
from src.nanollama.profiler import flops

BIG = resolve(ModelConfig(vocab_size=32, emb_dim=288, nb_layers=12, nb_heads=12))


@pytest.mark.parametrize(
    "cfg",
    [
        ModelConfig(vocab_size=40, emb_dim=64, nb_layers=3, nb_heads=4, nb_kv_heads=2),
        ModelConfig(vocab_size=40, emb_dim=32, nb_layers=2, nb_heads=4, qk_head_dim=6, v_head_dim=20, tie_embeddings=True),
    ],
)
def test_equals_torchs_counter(cfg: ModelConfig) -> None:
    """The counter sees no fused attention on CPUs, so attention runs in its plain form here (fp64): full T x T scores, as in palm."""
    cfg, batch, length = resolve(cfg), 2, 600
    model = Transformer(cfg).double()
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(tokens).sum().backward()
    assert counter.get_total_flops() == pytest.approx(batch * length * flops.training(cfg, length, causal=False), rel=1e-9)


@pytest.mark.parametrize("mixers", [("ssm",), ("attn", "ssm")])
def test_a_hybrid_equals_torchs_counter(mixers: tuple[str, ...]) -> None:
    cfg = resolve(ModelConfig(vocab_size=40, emb_dim=64, nb_layers=2, nb_heads=4, mixers=mixers, ssm_state=16))
    batch, length, chunks = 2, 256, 4
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        Transformer(cfg).double()(tokens).sum().backward()
    layers = 2 * mixers.count("ssm") // len(mixers)
    joining = 6 * layers * (chunks + 1) ** 2 * 16 * 2 * 64  # of the first state and the chunks', which the count leaves out
    expected = batch * (length * flops.training(cfg, length, causal=False) + joining)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-9)


def test_published_formulas() -> None:
    length, d, layers = 2048, 288, 12
    weights = num_params(BIG) - 32 * d - (2 * layers + 1) * d  # matrices: without the embedding and the norms
    assert flops.training(BIG, length) == 6 * weights + 6 * layers * length * d
    assert flops.training(BIG, length, causal=False) == 6 * weights + 12 * layers * length * d
    assert flops.hardware(BIG, length) == 6 * weights + 7 * layers * length * d
    assert flops.training(BIG, length) == pytest.approx(114.2e6, rel=1e-3)


def test_values_are_not_multiplied_once_more_in_the_backward_pass() -> None:
    cfg = resolve(ModelConfig(vocab_size=40, emb_dim=32, nb_layers=2, nb_heads=4, qk_head_dim=6, v_head_dim=20))
    assert flops.hardware(cfg, 100) - flops.training(cfg, 100) == pytest.approx(2 * 2 * 4 * 6 * 50)  # layers, heads, features, keys


def test_utilisations() -> None:
    peak = flops.peak("NVIDIA H200")
    assert flops.mfu_causal(BIG, 2048, 1.38e6, peak) == pytest.approx(0.159, abs=1e-3)
    assert flops.mfu_palm(BIG, 2048, 1.38e6, peak) == pytest.approx(0.218, abs=1e-3)
    assert flops.hfu(BIG, 2048, 1.38e6, peak) == pytest.approx(0.169, abs=1e-3)


def test_a_window_is_counted_exactly_for_long_sequences() -> None:
    length, window = 4096, 300
    exact = sum(min(i + 1, window) for i in range(length)) / length
    assert flops.visible_keys(length, window, causal=True) == pytest.approx(exact, rel=1e-2)
    assert flops.visible_keys(length, window, causal=False) == window
    assert flops.visible_keys(length, 10_000, causal=True) == flops.visible_keys(length, None, causal=True) == length / 2


def test_a_recurrent_layer_costs_the_same_at_any_length() -> None:
    cfg = resolve(ModelConfig(vocab_size=40, emb_dim=64, nb_heads=4, mixers=("ssm",)))
    assert flops.training(cfg, 100) == flops.training(cfg, 10_000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA GH200 480GB", 989e12)],
)
def test_known_devices(name: str, expected: float) -> None:
    assert flops.peak(name) == expected


@pytest.mark.parametrize(
    "name", ["cpu", "NVIDIA GeForce GTX 1080", "AMD Instinct MI300X", "NVIDIA GB200", "NVIDIA A10", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_an_unknown_device_is_never_guessed(name: str) -> None:
    assert flops.peak(name) is None
    assert flops.mfu_causal(BIG, 2048, 1e6, flops.peak(name)) is None


def test_there_is_no_peak_for_fp32() -> None:
    assert flops.peak("NVIDIA H200", "fp16") == flops.peak("NVIDIA H200", "bf16") and flops.peak("NVIDIA H200", "fp32") is None


def test_an_unresolved_config_is_an_error() -> None:
    with pytest.raises(ValueError, match="resolved"):
        flops.forward(ModelConfig(), 16)
