"""The shared parts of every training config.

Plain frozen dataclasses, checked by pydantic, without torch, so that a launcher can validate a config in well under a second.
An app's own config is a dataclass that has these as fields beside its own. ``None`` means "derived in ``resolve``".
"""

from __future__ import annotations

import re
from dataclasses import field
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")


def _number(value: Any) -> Any:
    """Refuse ``true`` where a number is meant; text such as ``1e-3`` (which YAML 1.1 does not read as a number) passes on."""
    if isinstance(value, bool):
        raise ValueError("a number is meant here, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0), BeforeValidator(_number)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Several = Annotated[int, Field(ge=2), BeforeValidator(_number)]  # as many as a standard error needs
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
Momentum = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def _parameters(value: Any) -> Any:
    """A count written for people: ``1.8M``, ``500k``, ``1e6``."""
    found = re.fullmatch(r"([\d.]+(?:[eE]\+?\d+)?)\s*([kMB]?)", str(value))
    try:
        count = Decimal(found[1]) * SUFFIXES[found[2]] if found and not isinstance(value, bool) else None
    except InvalidOperation:
        count = None
    if count is None or count != count.to_integral_value():
        raise ValueError("a whole number of parameters is meant, such as 1800000, 1.8M or 500k")
    return int(count)


Parameters = Annotated[int, Field(ge=1), BeforeValidator(_parameters)]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def config(cls: type[T]) -> type[T]:
    """Class decorator of every config: a frozen dataclass whose fields are checked when it is built; unknown keys are errors."""
    return cast(type[T], dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls))


FAMILIES = ("collective", "shallow", "balanced", "deep", "very_deep", "deep_resnet", "very_deep_resnet")
Family = Literal["collective", "shallow", "balanced", "deep", "very_deep", "deep_resnet", "very_deep_resnet"]


@config
class CollectiveConfig:
    """Sub-networks of the family ``collective``: experts read the token's embedding, analysts read it and the experts' joint code."""

    n_total: Annotated[int, Field(ge=2), BeforeValidator(_number)] = 8  # experts and analysts together
    expert_ratio: Annotated[float, Field(gt=0, lt=1), BeforeValidator(_number)] = 0.25  # share of the experts: at least one of each kind
    c_expert: PositiveFloat = 0.25  # size of the code / joint width of the experts
    width: Positive | None = None  # of each sub-network; None: emb_dim / 2
    n_experts: Positive | None = None  # None: from expert_ratio
    code_dim: Positive | None = None  # None: from c_expert


@config
class ModelConfig:
    """Shape of a decoder-only transformer."""

    vocab_size: Positive | None = None  # derived from the data
    emb_dim: Positive = 128
    nb_layers: Positive = 4
    nb_heads: Positive = 4
    nb_kv_heads: Positive | None = None  # None: nb_heads (no grouped-query attention)
    qk_head_dim: Positive | None = None  # None: emb_dim / nb_heads
    v_head_dim: Positive | None = None  # None: emb_dim / nb_heads
    ffn_dim: Positive | None = None  # None: 8/3 emb_dim, rounded up to a multiple of 32
    ffn_dims: tuple[Positive, ...] | None = None  # one for each layer, in place of ffn_dim
    residual: bool = True  # false: no skip connections, each layer's output replaces its input
    tie_embeddings: bool = False
    rope_theta: PositiveFloat = 10000.0
    norm_eps: PositiveFloat = 1e-5
    init_std: PositiveFloat | None = None  # None: emb_dim ** -0.5
    mixers: tuple[Literal["attn", "ssm"], ...] = ("attn",)  # pattern of the layers, repeated until nb_layers
    ssm_state: Positive = 64  # ssm: numbers remembered per inner feature
    ssm_expand: Positive = 2  # ssm: inner width / emb_dim
    window: Positive | None = None  # attn: tokens a query sees, itself included; None: all before it
    masked_attention: Literal["auto", "sdpa", "flex"] = "auto"  # kernel for document and window masks; auto: flex on GPUs
    rope_scaling: Literal["none", "linear", "ntk", "llama3", "yarn"] = "none"  # for sequences longer than those of the training
    rope_factor: PositiveFloat = 1.0  # how many times longer
    rope_length: Positive | None = None  # llama3 and yarn: length of the training's sequences
    family: Family | None = None  # depth, widths and skips of a named family, solved for target_params (see model/families.py)
    target_params: Parameters | None = None  # e.g. 1.8M; without a family the widths are solved, for nb_layers and nb_heads as given
    match: Literal["target", "native"] = "target"  # native: the collective's own keys give its size, and it ignores target_params
    match_embeddings: bool = True  # whether target_params counts embedding and head
    collective: CollectiveConfig = field(default_factory=CollectiveConfig)


@config
class DataConfig:
    """Sequences per optimiser step, over all devices, and tokens predicted per sequence."""

    seq_len: Positive = 256
    batch_size: Positive = 16


@config
class OptimConfig:
    """Optimiser and schedule (warm-up, then constant, linear, cosine or warm-up-stable-decay)."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: for matrices, scaled so that lr and weight_decay mean what they do for AdamW
    lr: Rate = 1e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: Rate = 0.1
    clip: PositiveFloat | None = 1.0  # None: no clipping (the norm is logged all the same)
    momentum: Momentum = 0.95  # muon
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup: Count = 20  # steps
    decay: Fraction = 0.2  # wsd: last share of the steps
    min_ratio: Fraction = 0.1  # linear, cosine and wsd end at min_ratio * lr


@config
class TrainConfig:
    """Length, seed and numerics of a training."""

    steps: Positive = 200
    seed: Int = 0
    micro_batch: Positive | None = None  # sequences per device and forward pass; None: derived
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of activations; parameters and optimiser stay in fp32
    mode: Literal["eager", "compile", "cudagraph"] = "eager"  # cudagraph: compiled, and the whole step replayed as one graph
    parallel: Literal["ddp", "fsdp"] = "ddp"  # how the ranks of torchrun share the model: whole copies, or shards of it
    max_skipped: Positive = 25  # steps with a non-finite gradient are skipped; so many in a row, or half of train.steps, end the run
    log_period: Positive = 10  # steps


@config
class EvalConfig:
    """Held-out evaluation: every ``period`` steps and at the end, always on the same sequences."""

    period: Count = 100  # 0: only at the end
    sequences: Positive = 64
    asynchronous: bool = False  # periodic evaluations save and leave the work to others
    launcher: Literal["process", "sbatch"] = "process"  # asynchronous: to a process on this machine, or to a Slurm job
    checkpoint: str | None = None  # do not train: evaluate this checkpoint folder
    probe: tuple[str, ...] = ()  # modules to look into at every evaluation, e.g. [layers.*.mixer]: rms of outputs, entropy of attention
    probe_gradients: bool = False  # and the rms of the loss's gradient at these outputs


@config
class CheckpointConfig:
    """When to save, how many to keep, where to start from."""

    period: Count = 0  # steps; 0: only at the end and when stopped
    keep: Positive = 2  # the newest ones
    keep_best: bool = False  # and the one of the lowest held-out loss (mean of all splits): saves at every evaluation
    asynchronous: bool = False  # copy, then write while training goes on
    init_from: str | None = None  # checkpoint folder to continue (model, optimiser, data position), or Hugging Face Llama folder (weights)


@config
class TraceConfig:
    """torch.profiler over a few steps, into ``traces/`` (TensorBoard's plugin and Perfetto read them) and a table in TensorBoard."""

    active: bool = False
    wait: Count = 10  # steps of this process before the recording
    steps: Positive = 3  # recorded
    repeat: Positive = 1  # times; waits again in between
    memory: bool = False  # CUDA: also every allocation, as a snapshot for https://docs.pytorch.org/memory_viz


@config
class ProfilerConfig:
    """``light.csv``: a row of phase times, speed and memory at every log step."""

    light: bool = True
    trace: TraceConfig = field(default_factory=TraceConfig)


@config
class WandbConfig:
    """Weights & Biases; ``WANDB_MODE`` is respected, and without it nothing is sent."""

    active: bool = False
    project: str = "nanollama"
    entity: str | None = None
    group: str | None = None  # runs of one study


@config
class MetricsConfig:
    """Sinks beside ``metrics.jsonl``, which is always written."""

    tensorboard: bool = True
    wandb: WandbConfig = field(default_factory=WandbConfig)


def _text_time(value: Any) -> Any:
    """YAML reads an unquoted 24:00:00 as the number 86400."""
    if isinstance(value, int):
        raise ValueError("write the time in quotes, as '24:00:00' or '2-00:00:00'")
    return value


def _text(value: Any) -> Any:
    """YAML and Hydra read digits as a number also where a text is meant: an account, megabytes, the value of a variable."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text)]
Word = Annotated[str, Field(pattern=r"^[^\s'\"\\`$;#]+$"), BeforeValidator(_text)]  # goes into a line of a batch script
Memory = Annotated[str, Field(pattern=r"^\d+[KMGT]?$"), BeforeValidator(_text)]
WallTime = Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$"), BeforeValidator(_text_time)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


@config
class ClusterConfig:
    """Where and how the launcher starts a run; the run itself does not read it."""

    script: str | None = None  # module to run, e.g. src.apps.gssm.train
    launcher: Literal["bash", "sbatch"] | None = None  # None: sbatch where Slurm answers, else bash
    torchrun: bool = False
    nproc: Positive | None = None  # processes per node under torchrun; None: one per GPU, or 1 without any
    nodes: Positive = 1
    cpus: Positive = 2  # per process
    gpus: Count = 0  # per node
    mem: Memory | None = None  # per node, e.g. 16G; a bare number is megabytes, 0 all that the node has
    time: WallTime = "24:00:00"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    signal_delay: Positive = 120  # seconds between the warning signal and the end
    slots: Positive | None = None  # tasks of a grid that run at once; None: all on Slurm, as many as fit on this machine with bash
    env: dict[VariableName, Text] = field(default_factory=dict)
