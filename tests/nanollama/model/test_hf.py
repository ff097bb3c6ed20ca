"""Llama checkpoints: written by us and read by Hugging Face, and the other way round."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from src.apps.gssm.train import train
from src.nanollama.checkpoint.opened import open_model
from src.nanollama.config import ConfigError, read_result
from src.nanollama.config.main import run_command
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


def test_in_half_precision_late_positions_are_as_exact_as_hugging_face_s(tmp_path: Path) -> None:
    model = Transformer(ModelConfig(vocab_size=37, emb_dim=64, nb_layers=1, nb_heads=4))
    with torch.no_grad():
        model.layers[0].mixer.qkv.weight[:128] *= 8  # queries and keys: attention that looks closely at angles
    hf.save(model, tmp_path)
    LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
    tokens = torch.randint(37, (1, 1500), generator=torch.Generator().manual_seed(0))
    exact = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(tokens).logits
    ours, theirs = hf.load(tmp_path), LlamaForCausalLM.from_pretrained(tmp_path)
    assert ours.embed.weight.dtype == theirs.dtype == torch.bfloat16
    errors = [(logits - exact)[:, -300:].abs().mean() for logits in (ours(tokens), theirs(tokens).logits)]
    assert errors[0] < 1.3 * errors[1]


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


YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}


@pytest.mark.parametrize("places", [{}, {"original_max_position_embeddings": 32}])
def test_a_trained_length_is_looked_for_where_hugging_face_does(places: dict, tmp_path: Path) -> None:
    shape = {"vocab_size": 37, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=64, rope_parameters=dict(YARN)))
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": YARN, **places}))
    expected = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(hf.load(tmp_path)(TOKENS), expected(TOKENS).logits, atol=1e-5, rtol=0)


UNREADABLE = [
    *({"model_type": "gpt2"}, {"attention_bias": True}, {"rope_parameters": {"rope_type": "longrope"}}),
    *({"quantization_config": {"quant_method": "fp8"}}, {"partial_rotary_factor": 0.5}, {"rope_parameters": {**YARN, "truncate": False}}),
]


@pytest.mark.parametrize("change", UNREADABLE)
def test_what_we_cannot_read(change: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**hf.to_llama_config(resolve(CONFIGS[0]), 64), **change}))
    with pytest.raises(ConfigError, match="only Llama"):
        hf.load(tmp_path)


def test_a_torn_or_missing_file_is_named(tmp_path: Path) -> None:
    hf.save(Transformer(CONFIGS[0]), tmp_path)
    weights = tmp_path / "model.safetensors"
    for content in (weights.read_bytes()[:1000], None):
        weights.write_bytes(content) if content else weights.unlink()
        with pytest.raises(ConfigError, match="not a whole Llama checkpoint"):
            hf.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="num_attention_heads"):
        hf.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"emb_dim": 32, "qk_head_dim": 16, "v_head_dim": 16}, ["model.emb_dim=32", "model.emb_dim=64"]),
        ({"nb_layers": 3}, ["model.nb_layers=3", "model.nb_layers=2"]),
        ({"nb_kv_heads": None}, ["model.nb_kv_heads=4", "model.nb_kv_heads=2"]),
        ({"vocab_size": 38}, ["model.vocab_size=38", "tokenizer"]),
        ({"ffn_dims": (96, 192)}, ["model.ffn_dim=null", "model.ffn_dim=192"]),
        ({"mixers": ("attn", "ssm")}, ['model.mixers=["attn", "ssm"]', 'model.mixers=["attn"]']),
        ({"rope_theta": 5e5, "tie_embeddings": True}, ["model.rope_theta=500000.0 ", "model.tie_embeddings=false"]),
        ({"rope_scaling": "llama3", "rope_length": 16}, ['model.rope_scaling="none"']),
    ],
)
def test_weights_of_another_model_are_refused_by_field(change: dict, fields: list[str], tmp_path: Path) -> None:
    hf.save(Transformer(CONFIGS[0]), tmp_path)
    with pytest.raises(ConfigError) as error:
        hf.load_into(Transformer(replace(CONFIGS[0], **change)), tmp_path)
    assert all(field in str(error.value) for field in fields)


class TestCommands:
    """A training's weights leave and come back through files, by commands and keys alone."""

    SMALL = (
        *("experiment=debug", "model.emb_dim=16", "model.nb_layers=2", "model.nb_heads=2", "model.nb_kv_heads=1", "data.seq_len=16"),
        *("data.batch_size=2", "eval.sequences=4", "metrics.tensorboard=false", "train.device=cpu"),
    )

    def run(self, folder: Path, *more: str) -> int:
        return run_command(train.entry, train.__wrapped__, [*self.SMALL, f"run_dir={folder}", *more])  # type: ignore[attr-defined]

    @pytest.fixture(scope="class")
    def exported(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("exported")
        assert self.run(folder / "run", "train.steps=3") == 0
        assert hf.main([str(folder / "run"), f"out={folder / 'llama'}"]) == 0
        return folder

    def test_transformers_reads_what_a_run_exports(self, exported: Path) -> None:
        model, _ = open_model(exported / "run")
        theirs = LlamaForCausalLM.from_pretrained(exported / "llama")
        tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-5, rtol=0)
        assert theirs.config.max_position_embeddings == 16

    def test_a_training_begins_with_the_weights(self, exported: Path, tmp_path: Path) -> None:
        init = f"checkpoint.init_from={exported / 'llama'}"
        assert self.run(tmp_path, init, "train.steps=1", "optim.lr=0") == 0  # a learning rate of zero leaves them as they were
        begun, parent = read_result(tmp_path), read_result(exported / "run")
        assert begun["loss"] == parent["loss"] and begun["steps"] == 1 and begun["tokens"] == 32  # type: ignore[index]

    def test_another_shape_is_an_error(self, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert self.run(tmp_path, f"checkpoint.init_from={exported / 'llama'}", "model.nb_layers=3") == 2
        assert "model.nb_layers=3 contradicts" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["{run}"], "out=FOLDER"),
            (["{run}", "out={llama}"], "is there already"),
            (["nowhere", "out={run}/new"], "neither a checkpoint nor a run folder"),
        ],
    )
    def test_wrong_input(self, argv: list[str], message: str, exported: Path, capsys: pytest.CaptureFixture) -> None:
        assert hf.main([arg.format(run=exported / "run", llama=exported / "llama") for arg in argv]) == 2
        assert message in capsys.readouterr().err
