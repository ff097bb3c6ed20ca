"""Llama checkpoints: written by us and read by Hugging Face, and the other way round."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from src.nanollama.config import ConfigError
from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import hf
from src.nanollama.model.sizing import resolve
from src.nanollama.model.transformer import Transformer

TOKENS = torch.randint(37, (2, 50), generator=torch.Generator().manual_seed(0))
CONFIGS = [
    ModelConfig(vocab_size=37, emb_dim=64, nb_layers=2, nb_heads=4, nb_kv_heads=2),
    ModelConfig(vocab_size=37, emb_dim=48, nb_layers=2, nb_heads=3, qk_head_dim=32, v_head_dim=32, tie_embeddings=True),
    ModelConfig(vocab_size=37, emb_dim=64, nb_layers=1, nb_heads=4, rope_scaling="llama3", rope_factor=8.0, rope_length=16),
    ModelConfig(vocab_size=37, emb_dim=64, nb_layers=1, nb_heads=4, rope_scaling="yarn", rope_factor=4.0, rope_length=16),
    ModelConfig(vocab_size=37, emb_dim=64, nb_layers=1, nb_heads=4, rope_scaling="linear", rope_factor=2.0),
]


@pytest.mark.parametrize("cfg", CONFIGS)
def test_hugging_face_reads_what_we_write(cfg: ModelConfig, tmp_path: Path) -> None:
    model = Transformer(cfg)
    model.init_weights(seed=3)
    hf.save(model, tmp_path, max_length=64)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS), atol=1e-5, rtol=0)
    again = hf.load(tmp_path)
    assert again.cfg == model.cfg or again.cfg == resolve(cfg)
    assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_we_read_what_hugging_face_writes(tmp_path: Path, shard: str) -> None:
    theirs = LlamaForCausalLM(
        LlamaConfig(vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    )
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    torch.testing.assert_close(hf.load(tmp_path)(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=0)


def test_the_older_form_of_the_config() -> None:
    config = hf.to_llama_config(resolve(CONFIGS[2]), 64)
    rope = config.pop("rope_parameters")
    old = {**config, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    assert resolve(hf.from_llama_config(old)) == resolve(CONFIGS[2])


FOREIGN = [ModelConfig(mixers=("ssm",)), ModelConfig(window=5), ModelConfig(v_head_dim=8), ModelConfig(rope_scaling="ntk")]


@pytest.mark.parametrize("cfg", FOREIGN)
def test_what_llama_cannot_express(cfg: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Llama has"):
        hf.to_llama_config(resolve(cfg), 64)


@pytest.mark.parametrize("change", [{"model_type": "gpt2"}, {"attention_bias": True}, {"rope_parameters": {"rope_type": "longrope"}}])
def test_what_we_cannot_read(change: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**hf.to_llama_config(resolve(CONFIGS[0]), 64), **change}))
    with pytest.raises(ConfigError, match="only Llama"):
        hf.load(tmp_path)
