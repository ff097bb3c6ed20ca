"""The transformer against Hugging Face's Llama, closed-form sizes and its own invariants."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from src.nanollama.config import ConfigError
from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.sizing import num_params, resolve
from src.nanollama.model.transformer import Transformer

SHAPES = {
    "plain": ModelConfig(vocab_size=37, emb_dim=64, nb_layers=3, nb_heads=4),
    "grouped": ModelConfig(vocab_size=37, emb_dim=64, nb_layers=2, nb_heads=4, nb_kv_heads=2, rope_theta=500.0),
    "one kv head, wide heads, tied": ModelConfig(
        vocab_size=37, emb_dim=48, nb_layers=2, nb_heads=3, nb_kv_heads=1, qk_head_dim=32, v_head_dim=32, tie_embeddings=True, ffn_dim=80
    ),
}


def hf_twin(model: Transformer) -> LlamaForCausalLM:
    """Hugging Face's model with our weights, tensor by tensor."""
    cfg = model.cfg
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.emb_dim,
            intermediate_size=cfg.ffn_dim,
            num_hidden_layers=cfg.nb_layers,
            num_attention_heads=cfg.nb_heads,
            num_key_value_heads=cfg.nb_kv_heads,
            head_dim=cfg.qk_head_dim,
            rms_norm_eps=cfg.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
            tie_word_embeddings=cfg.tie_embeddings,
        )
    )
    state = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    state["lm_head.weight"] = model.embed.weight if model.head is None else model.head.weight
    for i, layer in enumerate(model.layers):
        q, k, v = layer.mixer.qkv.weight.split(layer.mixer.sizes)
        gate, up = layer.ffn.gate_up.weight.chunk(2)
        named = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": layer.mixer.out.weight}
        named |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": layer.ffn.down.weight}
        named |= {"input_layernorm": layer.mixer_norm.weight, "post_attention_layernorm": layer.ffn_norm.weight}
        state |= {f"model.layers.{i}.{name}.weight": weight for name, weight in named.items()}
    hf.load_state_dict(state)
    return hf


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [5, 130])
def test_logits_and_gradients_equal_hugging_face(name: str, length: int) -> None:
    model = Transformer(SHAPES[name])
    model.init_weights(seed=1)
    hf = hf_twin(model)
    tokens = torch.randint(37, (3, length), generator=torch.Generator().manual_seed(0))
    ours, theirs = model(tokens), hf(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    embedding = hf.model.embed_tokens.weight.grad
    torch.testing.assert_close(model.embed.weight.grad, embedding, atol=1e-5, rtol=1e-4)
    for layer, twin in zip(model.layers, hf.model.layers, strict=True):
        qkv = torch.cat([twin.self_attn.q_proj.weight.grad, twin.self_attn.k_proj.weight.grad, twin.self_attn.v_proj.weight.grad])
        torch.testing.assert_close(layer.mixer.qkv.weight.grad, qkv, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.ffn.down.weight.grad, twin.mlp.down_proj.weight.grad, atol=1e-5, rtol=1e-4)
        gate_up = torch.cat([twin.mlp.gate_proj.weight.grad, twin.mlp.up_proj.weight.grad])
        torch.testing.assert_close(layer.ffn.gate_up.weight.grad, gate_up, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.mixer_norm.weight.grad, twin.input_layernorm.weight.grad, atol=1e-5, rtol=1e-4)


def test_query_and_value_heads_of_different_size() -> None:
    model = Transformer(ModelConfig(vocab_size=11, emb_dim=32, nb_layers=1, nb_heads=4, nb_kv_heads=2, qk_head_dim=6, v_head_dim=20))
    attention = model.layers[0].mixer
    assert attention.qkv.weight.shape == (4 * 6 + 2 * 6 + 2 * 20, 32)
    assert attention.out.weight.shape == (32, 4 * 20)
    assert model(torch.zeros(2, 9, dtype=torch.int64)).shape == (2, 9, 11)


def test_no_logit_sees_a_later_token() -> None:
    model = Transformer(SHAPES["grouped"])
    tokens = torch.randint(37, (2, 150), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 70:] = (changed[:, 70:] + 1) % 37
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :70], after[:, :70])
    assert not torch.allclose(before[:, 70:], after[:, 70:])


def test_initialisation_depends_on_the_seed_alone() -> None:
    first, second, other = (Transformer(SHAPES["plain"]) for _ in range(3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first.init_weights(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second.init_weights(seed=3)
    other.init_weights(seed=4)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name


def test_initialisation_scales() -> None:
    model = Transformer(ModelConfig(vocab_size=64, emb_dim=128, nb_layers=8, nb_heads=4))
    std, truncated = 128**-0.5, 0.9866  # of a normal cut at three deviations
    block = model.layers[2]
    assert block.mixer.qkv.weight.std().item() == pytest.approx(std * truncated, rel=0.02)
    assert block.ffn.down.weight.std().item() == pytest.approx(std * truncated / 4, rel=0.02)
    assert block.mixer.out.weight.std().item() == pytest.approx(std * truncated / 4, rel=0.02)
    assert block.mixer.qkv.weight.abs().max() <= 3 * std
    assert torch.equal(model.norm.weight, torch.ones(128))


def test_a_deeper_model_keeps_the_matrices_of_the_shallower_one() -> None:
    shallow = Transformer(ModelConfig(vocab_size=16, emb_dim=32, nb_layers=2, nb_heads=2))
    deep = Transformer(ModelConfig(vocab_size=16, emb_dim=32, nb_layers=3, nb_heads=2))
    assert torch.equal(shallow.layers[1].ffn.gate_up.weight, deep.layers[1].ffn.gate_up.weight)


COUNTED = [
    *SHAPES.values(),
    ModelConfig(vocab_size=11, emb_dim=32, nb_layers=1, nb_heads=4, nb_kv_heads=2, qk_head_dim=6, v_head_dim=20),
    ModelConfig(vocab_size=11, emb_dim=32, nb_layers=6, nb_heads=4, mixers=("attn", "ssm", "ssm"), ssm_state=5, ssm_expand=3),
]


@pytest.mark.parametrize("cfg", COUNTED)
def test_number_of_parameters_on_the_meta_device(cfg: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(cfg)
    assert num_params(cfg) == sum(p.numel() for p in model.parameters())


def test_a_meta_model_becomes_real() -> None:
    with torch.device("meta"):
        model = Transformer(SHAPES["plain"])
    model.to_empty(device="cpu")
    model.init_weights(seed=1)
    real = Transformer(SHAPES["plain"])
    real.init_weights(seed=1)
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens), real(tokens))


def test_resolve_fills_every_derived_size() -> None:
    cfg = resolve(ModelConfig(emb_dim=288, nb_heads=6))
    assert (cfg.nb_kv_heads, cfg.qk_head_dim, cfg.v_head_dim, cfg.ffn_dim) == (6, 48, 48, 768)
    assert resolve(cfg) == cfg


@pytest.mark.parametrize(
    ("cfg", "fields"),
    [
        (ModelConfig(emb_dim=100, nb_heads=3), ("model.emb_dim=100", "model.nb_heads=3")),
        (ModelConfig(emb_dim=64, nb_heads=4, nb_kv_heads=3), ("model.nb_heads=4", "model.nb_kv_heads=3")),
        (ModelConfig(emb_dim=36, nb_heads=4), ("model.emb_dim=36", "even")),
        (ModelConfig(qk_head_dim=5), ("model.qk_head_dim", "even")),
        (ModelConfig(nb_layers=4, mixers=("attn", "ssm", "ssm")), ("model.nb_layers=4", "model.mixers")),
        (ModelConfig(emb_dim=24, nb_heads=9, qk_head_dim=2, v_head_dim=2, mixers=("ssm",)), ("model.ssm_expand", "model.nb_heads=9")),
    ],
)
def test_sizes_that_do_not_fit_are_named(cfg: ModelConfig, fields: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(cfg)
    assert all(field in str(error.value) for field in fields)


def test_a_model_needs_a_vocabulary() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        Transformer(ModelConfig())
