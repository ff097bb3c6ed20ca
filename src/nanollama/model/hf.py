"""Write a run's model as a Llama checkpoint of Hugging Face, which ``LlamaForCausalLM.from_pretrained`` reads.

    python -m src.nanollama.model.hf RUN out=FOLDER

RUN is a run folder, or one of its checkpoints; FOLDER gets ``config.json``, ``model.safetensors`` and the tokenizer the run had, if any.
A training that begins with the weights of such a folder names it in checkpoint.init_from. Needs safetensors (pip install safetensors),
not transformers; nothing is unpickled. Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from ..config import ConfigError
from ..config.schema import ModelConfig
from ..config.tool import run_tool, split
from .sizing import required, resolve
from .transformer import Transformer

ROPE_NAMES = {"none": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
# What weights of Llama's shape have to agree on with a model that takes them over; ``rope_length`` only where the scaling reads it.
SHARED = (
    *("vocab_size", "emb_dim", "nb_layers", "nb_heads", "nb_kv_heads", "qk_head_dim", "v_head_dim", "ffn_dim", "ffn_dims", "residual"),
    *("tie_embeddings", "mixers", "window", "norm_eps", "rope_theta", "rope_scaling", "rope_factor"),
)


def is_llama(folder: Path) -> bool:
    """Whether ``folder`` looks like a checkpoint of Hugging Face."""
    return (folder / "config.json").is_file()


def save(model: Transformer, folder: str | Path, max_length: int = 2048) -> None:
    """Write ``model`` as a Llama checkpoint.

    Args:
        max_length: longest sequence it is meant for, which Hugging Face's config has to name.

    Raises:
        ConfigError: a model that Llama cannot express.
    """
    _require()
    from safetensors.torch import save_file

    folder = Path(folder)
    config = to_llama_config(model.cfg, max_length)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in to_llama(model).items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: str | Path) -> Transformer:
    """Read a Llama checkpoint, in one file or in several, in its own precision.

    Raises:
        ConfigError: not such a checkpoint, another architecture, or a feature of Llama's config that this model does not have.
    """
    cfg, state = _read(Path(folder))
    with torch.device("meta"):
        model = Transformer(cfg)
    model.to_empty(device="cpu")
    model.init_weights(seed=0)
    model.to(state["embed.weight"].dtype)
    model.load_state_dict(state)
    return model


def load_into(model: Transformer, folder: Path) -> None:
    """Give ``model``, sharded or not, the weights of a Llama checkpoint, in its own precision. Errors as of ``load``, and:

    Raises:
        ConfigError: the checkpoint is of another model; names every field to change.
    """
    cfg, state = _read(folder)
    shared = (*SHARED, "rope_length") if cfg.rope_scaling in ("llama3", "yarn") else SHARED
    differing = [key for key in shared if getattr(model.cfg, key) != getattr(cfg, key)]
    if differing:
        here, there = (" ".join(f"model.{key}={json.dumps(getattr(of, key))}" for key in differing) for of in (model.cfg, cfg))
        hint = "; the vocabulary is that of the data, so its tokenizer has to be the checkpoint's" if "vocab_size" in differing else ""
        raise ConfigError(f"{here} contradicts {folder}, which needs {there}{hint}")
    set_model_state_dict(model, {name: x.float() for name, x in state.items()}, options=StateDictOptions(full_state_dict=True))


def end_tokens(folder: Path) -> list[int]:
    """The tokens at which Hugging Face's ``generate`` ends a text of this checkpoint. Raises ConfigError for a file that cannot be read."""
    file = folder / "generation_config.json"
    file = file if file.is_file() else folder / "config.json"
    try:
        found = json.loads(file.read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({error!r})") from error
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The resolved config of a Llama checkpoint and its weights under our names."""
    _require()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        cfg = resolve(from_llama_config(json.loads((folder / "config.json").read_text())))
        index = folder / "model.safetensors.index.json"
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
        weights: dict[str, Tensor] = {}
        for file in files:
            weights |= load_file(folder / Path(file).name)
        return cfg, from_llama(weights, cfg)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{folder} is not a whole Llama checkpoint, config.json and safetensors ({error!r})") from error


def to_llama(model: Transformer) -> dict[str, Tensor]:
    """Weights under Llama's names; fused matrices are split."""
    named = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    if model.head is not None:
        named["lm_head.weight"] = model.head.weight
    state = model.state_dict()
    for i in range(model.cfg.nb_layers):
        for ours, (theirs, sizes) in _layer_names(model.cfg).items():
            parts = state[f"layers.{i}.{ours}"].split(sizes) if sizes else [state[f"layers.{i}.{ours}"]]
            named |= {f"model.layers.{i}.{name}.weight": part for name, part in zip(theirs, parts, strict=True)}
    return {name: tensor.detach() for name, tensor in named.items()}


def from_llama(weights: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """A state dict of ``Transformer`` from weights under Llama's names."""
    state = {"embed.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
    if not cfg.tie_embeddings:
        state["head.weight"] = weights["lm_head.weight"]
    for i in range(cfg.nb_layers):
        for ours, (theirs, _) in _layer_names(cfg).items():
            state[f"layers.{i}.{ours}"] = torch.cat([weights[f"model.layers.{i}.{name}.weight"] for name in theirs])
    return state


def _layer_names(cfg: ModelConfig) -> dict[str, tuple[list[str], list[int]]]:
    """Our parameter -> Llama's, in the order in which they are stacked, and the rows of each (none: one matrix)."""
    qk, v = required(cfg.qk_head_dim), required(cfg.v_head_dim)
    kv_heads, ffn = required(cfg.nb_kv_heads), required(cfg.ffn_dim)
    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    return {
        "mixer_norm.weight": (["input_layernorm"], []),
        "mixer.qkv.weight": (qkv, [cfg.nb_heads * qk, kv_heads * qk, kv_heads * v]),
        "mixer.out.weight": (["self_attn.o_proj"], []),
        "ffn_norm.weight": (["post_attention_layernorm"], []),
        "ffn.gate_up.weight": (["mlp.gate_proj", "mlp.up_proj"], [ffn, ffn]),
        "ffn.down.weight": (["mlp.down_proj"], []),
    }


def to_llama_config(cfg: ModelConfig, max_length: int) -> dict[str, Any]:
    """Hugging Face's ``config.json`` for a resolved config."""
    if cfg.family == "collective" or not cfg.residual or cfg.ffn_dims:
        raise ConfigError(
            "Llama has skip connections and feed-forwards of one width; this model has "
            f"model.family={cfg.family}, model.residual={cfg.residual}, model.ffn_dims={cfg.ffn_dims}"
        )
    if set(cfg.mixers) != {"attn"} or cfg.window is not None or cfg.qk_head_dim != cfg.v_head_dim or cfg.rope_scaling not in ROPE_NAMES:
        raise ConfigError(
            "Llama has attention in every layer, no window, query and value heads of one size and rope_scaling "
            f"{', '.join(ROPE_NAMES)}; this model has model.mixers={list(cfg.mixers)}, model.window={cfg.window}, "
            f"model.qk_head_dim={cfg.qk_head_dim}, model.v_head_dim={cfg.v_head_dim}, model.rope_scaling={cfg.rope_scaling}"
        )
    rope: dict[str, Any] = {"rope_type": ROPE_NAMES[cfg.rope_scaling], "rope_theta": cfg.rope_theta}
    if cfg.rope_scaling != "none":
        rope["factor"] = cfg.rope_factor
    if cfg.rope_scaling in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = cfg.rope_length
    if cfg.rope_scaling == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.emb_dim,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.nb_layers,
        "num_attention_heads": cfg.nb_heads,
        "num_key_value_heads": cfg.nb_kv_heads,
        "head_dim": cfg.qk_head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": max_length,
        "bos_token_id": None,  # left out, Hugging Face takes both to be there: 1 and 2
        "eos_token_id": None,
    }


def from_llama_config(config: Mapping[str, Any]) -> ModelConfig:
    """Our config for Hugging Face's ``config.json``, in its present form and the older one (``rope_theta``, ``rope_scaling``)."""
    outside = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    rope = {**outside, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = {theirs: ours for ours, theirs in ROPE_NAMES.items()}
    published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32, "beta_slow": 1, "truncate": True}
    published |= {"partial_rotary_factor": 1.0}
    other = [f"{key}={rope[key]}" for key, value in published.items() if rope.get(key) not in (None, value)]
    other += [f"{key}={config[key]}" for key in ("attention_bias", "mlp_bias", "quantization_config") if config.get(key)]
    other += [f"{key}={rope[key]}" for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None]
    if config.get("model_type") != "llama" or config.get("hidden_act", "silu") != "silu" or kind not in known or other:
        raise ConfigError(
            f"only Llama checkpoints can be read (model_type=llama, hidden_act=silu, rope_type one of {', '.join(known)}); this one has "
            f"model_type={config.get('model_type')}, hidden_act={config.get('hidden_act')}, rope_type={kind} {' '.join(other)}"
        )
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return ModelConfig(
        vocab_size=config["vocab_size"],
        emb_dim=config["hidden_size"],
        nb_layers=config["num_hidden_layers"],
        nb_heads=heads,
        nb_kv_heads=config.get("num_key_value_heads") or heads,
        qk_head_dim=head_dim,
        v_head_dim=head_dim,
        ffn_dim=config["intermediate_size"],
        tie_embeddings=config.get("tie_word_embeddings", False),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        rope_scaling=known[kind],  # type: ignore[arg-type]
        rope_factor=rope.get("factor", 1.0),
        rope_length=_trained_length(config, rope) if kind in ("llama3", "yarn") else None,
    )


def _trained_length(config: Mapping[str, Any], rope: Mapping[str, Any]) -> int | None:
    """Where Hugging Face looks for it, in its order."""
    key = "original_max_position_embeddings"
    return config.get(key) or rope.get(key) or config.get("max_position_embeddings")


def _require() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise ConfigError("this needs Hugging Face safetensors, an optional dependency: pip install safetensors") from None


def export(argv: Sequence[str]) -> None:
    """Write the checkpoint that ``argv`` names into a new folder."""
    from ..checkpoint.opened import open_model
    from ..data.tokenizer import read_tokenizer

    paths, options = split(argv, ("out",))
    if len(paths) != 1 or "out" not in options:
        raise ConfigError(f"name one run folder and out=FOLDER, got {' '.join(argv)}")
    out = Path(options["out"]).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} is there already: name a new folder")
    model, config = open_model(Path(paths[0]).expanduser())
    tokenizer = config["data"].get("tokenizer")
    words = json.loads(read_tokenizer(Path(tokenizer).expanduser())) if tokenizer else None
    save(model, out, config["data"]["seq_len"])
    if words is not None:
        words["post_processor"] = None  # the run saw texts without special tokens around them
        (out / "tokenizer.json").write_text(json.dumps(words))
        (out / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')  # as it is, not made Llama's
    print(f"{out}: {sum(p.numel() for p in model.parameters())} parameters, for sequences of up to {config['data']['seq_len']} tokens")


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    return run_tool(argv, __doc__, export)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
