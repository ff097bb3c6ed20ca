"""Matched families: counts without building, shapes as the families say, and models that train without skip connections."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from src.nanollama.config import ConfigError
from src.nanollama.config.schema import CollectiveConfig, ModelConfig
from src.nanollama.model import families, sizing
from src.nanollama.model.generate import generate
from src.nanollama.model.transformer import Transformer
from src.nanollama.profiler import flops
from src.nanollama.train.resolve import resolve_training

TARGETS = ("1.8M", "2.85M", "3.95M", "5M", "6.1M", "7.15M")


def family(name: str, target: str | int = "200k", **more) -> ModelConfig:
    return families.resolve(ModelConfig(vocab_size=64, family=name, target_params=target, **more))


def built(cfg: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(cfg).parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_all_sizes_are_met_and_counted_as_built(name: str, tied: bool) -> None:
    rule = families.FAMILIES[name]
    depths = set()
    for target in TARGETS:
        cfg = family(name, target, tie_embeddings=tied)
        assert built(cfg) == sizing.num_params(cfg) == families.counted(cfg)
        assert abs(families.deviation(cfg)) <= 0.005
        assert rule.depths[0] <= cfg.nb_layers <= rule.depths[1]
        assert cfg.residual == rule.residual
        assert not any(width % 8 for width in sizing.ffn_widths(cfg))
        assert families.resolve(cfg) == cfg  # a resolved config can be read again
        depths.add(cfg.nb_layers)
    assert len(depths) > 1 or name == "collective"  # the range of depths is used, not only its first


@settings(max_examples=40, deadline=None)
@given(st.integers(20_000, 50_000_000), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.sampled_from(["attn", "ssm"]))
def test_a_model_without_a_family_keeps_its_depth(target: int, layers: int, heads: int, tied: bool, mixer: str) -> None:
    more = {"nb_layers": layers, "nb_heads": heads, "tie_embeddings": tied, "mixers": (mixer,), "ssm_state": 16}
    asked = ModelConfig(vocab_size=32, target_params=target, **more)
    try:
        cfg = families.resolve(asked)
    except ConfigError as error:
        assert "the nearest has" in str(error)
        return
    assert built(cfg) == sizing.num_params(cfg) == pytest.approx(target, rel=0.005)
    assert (cfg.nb_layers, cfg.nb_heads, cfg.residual) == (layers, heads, True)
    assert families.resolve(cfg) == cfg


@pytest.mark.parametrize("layers", [2, 4, 12])
def test_sizes_without_a_family_are_met(layers: int) -> None:
    for target in TARGETS:
        cfg = families.resolve(ModelConfig(vocab_size=64, target_params=target, nb_layers=layers))
        assert abs(families.deviation(cfg)) <= 0.005 and 2 <= sizing.required(cfg.ffn_dim) / cfg.emb_dim <= 3.5


def test_profiles() -> None:
    widths = sizing.ffn_widths(family("balanced", "5M"))
    assert all(abs(wide / narrow - 2) < 0.1 for wide, narrow in pairwise(widths))
    assert len({*sizing.ffn_widths(family("deep", "5M"))}) == 1
    shapes = {name: family(name, "5M") for name in families.FAMILIES if name != "collective"}
    depths = [shapes[name].nb_layers for name in ("shallow", "balanced", "deep", "very_deep")]
    dims = [shapes[name].emb_dim for name in ("shallow", "balanced", "deep", "very_deep")]
    assert depths == sorted(depths) and dims == sorted(dims, reverse=True)
    plain, skips = shapes["deep"], shapes["deep_resnet"]
    assert replace(skips, family="deep", residual=False) == plain  # only the skips differ


def test_embeddings_in_or_out() -> None:
    out = family("deep", "1.8M", match_embeddings=False)
    assert sizing.num_params(out) - 2 * 64 * out.emb_dim == pytest.approx(1.8e6, rel=0.005)
    large = ModelConfig(vocab_size=50304, family="very_deep", target_params="1.8M")
    with pytest.raises(ConfigError, match=r"no shape in proportion within 0.5%.*has \d+ parameters .* in embedding and head.*match_embed"):
        families.resolve(large)
    assert families.resolve(replace(large, match_embeddings=False))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([*families.FAMILIES]),
    target=st.integers(1000, 3 * 10**7),
    heads=st.sampled_from([1, 2, 3, 4, 8]),
    tied=st.booleans(),
)
def test_any_target_is_met_or_named_unreachable(name: str, target: int, heads: int, tied: bool) -> None:
    try:
        cfg = family(name, target, nb_heads=heads, tie_embeddings=tied)
    except ConfigError as error:
        assert "the nearest has" in str(error)
        return
    assert built(cfg) == sizing.num_params(cfg)
    assert abs(sizing.num_params(cfg) / target - 1) <= 0.005


def test_the_share_of_experts_matters() -> None:
    counts = [family("collective", "1.8M", collective=CollectiveConfig(6, ratio)).collective.n_experts for ratio in (0.1, 0.3, 0.5, 0.7)]
    assert counts == [1, 2, 3, 4]


def test_native_collective_ignores_the_target() -> None:
    given = ModelConfig(vocab_size=64, family="collective", match="native", emb_dim=64, target_params="7M")
    cfg = families.resolve(given)
    assert sizing.num_params(cfg) == built(cfg) < 10**6
    more = families.resolve(replace(given, collective=CollectiveConfig(n_total=12)))
    assert sizing.num_params(more) > sizing.num_params(cfg)
    assert families.resolve(cfg) == cfg


@pytest.mark.parametrize("target", ["1.8M", "1800k", 1_800_000, 1.8e6, "1.8e6", "0.0018B"])
def test_ways_to_write_a_size(target: str | int | float) -> None:
    assert ModelConfig(target_params=target).target_params == 1_800_000


@pytest.mark.parametrize("target", ["1.8", "many", "-3M", True, "1.23456789k", 0, "M", "1..8M"])
def test_no_sizes(target: object) -> None:
    with pytest.raises(ValueError, match="target_params"):
        ModelConfig(target_params=target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ModelConfig(vocab_size=64, family="deep"), "needs model.target_params"),
        (ModelConfig(vocab_size=64, target_params="1M", emb_dim=64), "model.emb_dim=64 contradicts model.target_params=1000000, which"),
        (ModelConfig(vocab_size=50304, target_params="1M", nb_layers=6), "model.nb_layers=6 with model.nb_heads=4 has no shape"),
        (ModelConfig(vocab_size=64, family="deep", target_params="1M", match="native"), "only a collective"),
        (ModelConfig(vocab_size=64, family="deep", target_params="1M", nb_layers=6), "nb_layers=6 contradicts model.family=deep"),
        (ModelConfig(vocab_size=64, family="collective", target_params="1M", collective=CollectiveConfig(width=8)), "collective.width=8"),
        (ModelConfig(vocab_size=64, family="collective", target_params="1M", mixers=("ssm",)), "share nothing"),
        (ModelConfig(vocab_size=64, family="deep", target_params=5000), "the nearest has"),
        (ModelConfig(vocab_size=64, ffn_dims=(8, 8)), "one width for each of model.nb_layers=4"),
    ],
)
def test_contradictions(given: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        families.resolve(given)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_flops_are_those_of_the_products(name: str) -> None:
    cfg, length = family(name), 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Transformer(cfg)(torch.zeros(1, length, dtype=torch.int64))
    ours = flops.forward(cfg, length, causal=False)
    products = sum(value for part, value in ours.items() if part != "attention.scores")  # fused attention is no product on a CPU
    assert counter.get_total_flops() / length == products
    heads = sum(part.nb_heads * part.v_dim for part in Transformer(cfg).modules() if hasattr(part, "qkv"))
    assert ours["attention.scores"] == 2 * 2 * heads * length


@pytest.mark.parametrize("name", ["collective", "balanced", "very_deep"])
def test_causal_and_cached_generation_agree(name: str) -> None:
    model = Transformer(family(name)).eval()
    tokens = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        changed = tokens.clone()
        changed[0, 8:] = 5
        assert torch.equal(model(changed)[:, :8], whole[:, :8])
        wanted = tokens[0].tolist()
        for _ in range(4):
            wanted.append(int(model(torch.tensor([wanted]))[0, -1].argmax()))
    found = generate(model, [tokens[0].tolist()], 4)
    assert found[0][-4:] == wanted[-4:]


def test_deep_layers_without_skips_train_because_of_their_start() -> None:
    """Each token determines the next one: what is seen at a position has to come through all layers."""

    def loss_after_training(model: Transformer) -> float:
        generator = torch.Generator().manual_seed(0)
        successor = torch.randperm(64, generator=generator)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(80):
            tokens = torch.randint(64, (4, 32), generator=generator)
            loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), successor[tokens].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    cfg = family("deep")
    drawn = Transformer(cfg)
    generator = torch.Generator().manual_seed(1)
    for parameter in drawn.layers.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    assert loss_after_training(Transformer(cfg)) < 1.0 < 3.0 < loss_after_training(drawn)


@pytest.mark.parametrize("name", ["collective", "deep", "deep_resnet"])
def test_half_precision_stays_near(name: str) -> None:
    model, tokens = Transformer(family(name)), torch.arange(24)[None]
    with torch.no_grad():
        full = model(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(tokens)
    assert float((half.float() - full).square().mean()) < 0.02 * float(full.var())


def test_skips_make_the_same_model_as_before() -> None:
    """Widths given layer by layer and one by one for all are the same model."""
    one = ModelConfig(vocab_size=32, emb_dim=16, nb_layers=2, nb_heads=2, ffn_dim=40)
    model, other = Transformer(one), Transformer(replace(one, ffn_dim=None, ffn_dims=(40, 40)))
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens), other(tokens))


def test_training_configs_solve_their_family() -> None:
    from src.apps.mixbo.config import TRAIN
    from src.nanollama.config import compose

    for family in (["model.family=balanced"], ["model.nb_layers=6"]):
        cfg = compose(TRAIN, [*family, "model.target_params=500k"])
        assert sizing.num_params(cfg.model) == pytest.approx(500_000, rel=0.005)
        assert resolve_training(cfg, 256, "bytes") == cfg
    assert cfg.model.nb_layers == 6
    with pytest.raises(ConfigError, match="did you mean very_deep"):
        compose(TRAIN, ["model.family=verydeep", "model.target_params=500k"])
