"""One step: precision, non-finite gradients, Muon against torch's, compiled against eager."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from toy_training import Counting, ToyConfig, run_toy

from src.nanollama.checkpoint.find import numbered
from src.nanollama.config import ConfigError, RunFailed
from src.nanollama.distributed import Ranks
from src.nanollama.metrics.sinks import read_jsonl
from src.nanollama.model.transformer import Transformer
from src.nanollama.train import scale
from src.nanollama.train.muon import Muon
from src.nanollama.train.state import TrainState
from src.nanollama.train.step import Step, check_mode

HERE = Ranks(0, 1, torch.device("cpu"))
TOKENS = torch.from_numpy(Counting().batch("train", 0, 4)).long()


def build(cfg: ToyConfig) -> tuple[TrainState, Step]:
    model = Transformer(cfg.model)
    model.init_weights(0)
    state = TrainState(model, cfg.train, cfg.optim, HERE)
    return state, Step(state, cfg.train, cfg.optim, HERE)


def copies(state: TrainState) -> list[torch.Tensor]:
    moments = [t.clone() for o in state.optimizers for s in o.state.values() for t in s.values()]
    return [p.detach().clone() for p in state.model.parameters()] + moments


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_with_a_non_finite_gradient_changes_nothing_and_is_counted(name: str) -> None:
    cfg = ToyConfig(optim=replace(ToyConfig().optim, name=name))
    state, step = build(cfg)
    step(5, TOKENS)
    weight = state.model.norm.weight
    before, kept = copies(state), weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.inf)
    step(6, TOKENS)
    with torch.no_grad():
        weight.copy_(kept)
    assert equal(copies(state), before)
    assert (int(state.tally.steps), int(state.tally.skipped), int(state.tally.in_a_row)) == (1, 1, 1)
    assert state.tally.loss.isfinite()
    step(7, TOKENS)
    assert not equal(copies(state), before)
    assert (int(state.tally.steps), int(state.tally.skipped), int(state.tally.in_a_row)) == (2, 1, 0)


def test_muon_is_torch_muon_with_the_scale_of_adamw() -> None:
    torch.manual_seed(0)
    start = [torch.randn(6, 10), torch.randn(12, 4), torch.randn(5, 5)]
    ours = [torch.nn.Parameter(w.clone()) for w in start]
    theirs = [torch.nn.Parameter(w.clone()) for w in start]
    a = Muon(ours, torch.tensor(0.02), 0.1, 0.95)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn_like(x)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for x, y, w in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(x, w, atol=1e-3)


def test_muon_takes_the_matrices_inside_and_leaves_the_rest_to_adamw() -> None:
    state, _ = build(ToyConfig(optim=replace(ToyConfig().optim, name="muon")))
    names = {id(p): name for name, p in state.model.named_parameters()}
    muon, adamw = ([sorted(names[id(p)] for p in group["params"]) for group in o.param_groups] for o in state.optimizers)
    assert all("mixer." in n or "ffn." in n for n in muon[0]) and len(muon[0]) == 4
    assert adamw == [["head.weight"], sorted(n for n in names.values() if "norm" in n or "embed" in n)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_filters_of_a_recurrent_mixer_are_no_matrix(name: str) -> None:
    """Nor are its rates: only what it multiplies with is decayed, and orthogonalised by Muon."""
    model = replace(ToyConfig().model, nb_layers=2, mixers=("attn", "ssm"), ssm_state=8)
    state, _ = build(ToyConfig(model=model, optim=replace(ToyConfig().optim, name=name)))
    names = {id(p): n for n, p in state.model.named_parameters()}
    groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
    free = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    recurrent = {n for n in names.values() if n.startswith("layers.1.mixer.")}
    assert recurrent - free == {"layers.1.mixer.project.weight", "layers.1.mixer.out.weight"}
    assert "layers.1.mixer.conv" in recurrent and free - recurrent == {n for n in names.values() if "embed" in n or "norm" in n} - recurrent


def test_loss_scale_follows_grad_scaler(monkeypatch) -> None:
    monkeypatch.setattr(scale, "INTERVAL", 3)
    ours = scale.LossScale("fp16", torch.device("cpu"))
    theirs = torch.amp.GradScaler("cpu", init_scale=scale.START, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for finite in [1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]:
        theirs.scale(weight.sum()).backward()
        weight.grad = torch.ones(1) if finite else torch.full((1,), torch.inf)
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(bool(finite)))
        assert float(ours.value) == theirs.get_scale()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_half_precision_follows_fp32(precision: str, name: str, tmp_path) -> None:
    cfg = ToyConfig(optim=replace(ToyConfig().optim, name=name))
    for key in ("fp32", precision):
        run_toy(tmp_path / key, replace(cfg, train=replace(cfg.train, precision=key)))
    full, half = ([r["loss"] for r in read_jsonl(tmp_path / key / "metrics.jsonl")] for key in ("fp32", precision))
    assert half == pytest.approx(full, rel=2e-2) and half != full


def test_fp16_finds_its_scale_again_after_an_overflow() -> None:
    cfg = ToyConfig(train=replace(ToyConfig().train, precision="fp16"))
    state, step = build(cfg)
    state.scale.value.fill_(2.0**40)
    for i in range(30):
        step(i, TOKENS)
    assert 5 < int(state.tally.skipped) < 25 and int(state.tally.in_a_row) == 0
    _, other = build(replace(cfg, train=replace(cfg.train, precision="fp32")))
    for i in range(int(state.tally.skipped), 30):
        other(i, TOKENS)
    assert float(step.norm) == pytest.approx(float(other.norm), rel=0.2)


@pytest.mark.parametrize(("steps", "limit"), [(30, 5), (9, 25)])  # five in a row by the limit, or since that is half of all
def test_too_many_skipped_steps_end_the_run_with_the_last_good_weights(steps: int, limit: int, tmp_path) -> None:
    cfg = ToyConfig(optim=replace(ToyConfig().optim, lr=1e30, clip=None, warmup=0))
    with pytest.raises(RunFailed, match="not finite") as caught:
        run_toy(tmp_path, replace(cfg, train=replace(cfg.train, steps=steps, max_skipped=limit), eval=replace(cfg.eval, period=0)))
    assert caught.value.status == "nan"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert last["loss"] is None and last["grad_norm"] is None and last["skipped_steps"] == 5


def test_cudagraph_is_refused_without_cuda(tmp_path) -> None:
    cfg = ToyConfig(train=replace(ToyConfig().train, mode="cudagraph"))
    with pytest.raises(ConfigError, match="CUDA"):
        run_toy(tmp_path, cfg)


@pytest.mark.parametrize(("window", "refused"), [(None, False), (12, False), (5, True)])
def test_flex_attention_is_refused_on_a_cpu_where_there_are_masks(window: int | None, refused: bool) -> None:
    model = replace(ToyConfig().model, masked_attention="flex", window=window)
    with pytest.raises(ConfigError, match="no backward pass on a CPU") if refused else nullcontext():
        check_mode(ToyConfig(model=model), HERE)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks and hides the warning, but not from "error"
def test_compiled_steps_equal_eager_ones(tmp_path) -> None:
    cfg = ToyConfig()
    for mode in ("eager", "compile"):
        run_toy(tmp_path / mode, replace(cfg, train=replace(cfg.train, mode=mode)))
    for mode in ("eager", "compile"):  # what a compiled model saved is continued by a plain one
        run_toy(tmp_path / mode, replace(cfg, train=replace(cfg.train, steps=15)))
    eager, compiled = ([r["loss"] for r in read_jsonl(tmp_path / mode / "metrics.jsonl")] for mode in ("eager", "compile"))
    assert compiled == pytest.approx(eager, rel=1e-4) and len(compiled) > 8
    assert numbered(tmp_path / "compile" / "checkpoints") == [12, 15]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_single_numbers_decide_is_the_same_compiled(precision: str) -> None:
    """A GPU runs it as a few kernels instead of two dozen."""
    found = []
    for compiled in (False, True):
        cfg = ToyConfig(train=replace(ToyConfig().train, precision=precision))
        state, step = build(cfg)
        settle = torch.compile(step.settle) if compiled else step.settle
        for norm, loss in ((3.0, 1.0), (torch.nan, 2.0), (torch.inf, torch.nan), (65536 * 7.0, 4.0)):
            factor, skip = settle(torch.tensor(norm), torch.tensor(loss))
            found.append([factor, skip, step.norm, *state.tally.tensors().values(), *state.scale.tensors().values()])
            found[-1] = [float(number) for number in found[-1]]
    torch.testing.assert_close(found[4:], found[:4], rtol=1e-6, atol=0, equal_nan=True)
    skipped = [row[1] for row in found[:4]]
    assert skipped == [0, 1, 1, 0] and found[3][3:7] == [5.0, 2, 2, 0]


def test_a_captured_step_is_timed_as_a_whole(monkeypatch) -> None:
    monkeypatch.setattr("src.nanollama.train.step.Captured", lambda work: work)  # without CUDA nothing can be captured
    cfg, laps = ToyConfig(), []
    train = replace(cfg.train, mode="cudagraph", micro_batch=2)
    step = Step(TrainState(Transformer(cfg.model), train, cfg.optim, HERE), train, cfg.optim, HERE, laps.append)
    step.forward = step.objective  # uncompiled
    step(0, TOKENS)
    assert laps == ["graph"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_models_trained_one_after_another_are_all_compiled_for_their_own_shape() -> None:
    cfg = ToyConfig(train=replace(ToyConfig().train, mode="compile"))
    with torch._dynamo.config.patch(recompile_limit=2):
        counters.clear()
        for emb_dim in (4, 8, 12):
            build(replace(cfg, model=replace(cfg.model, emb_dim=emb_dim)))[1](0, TOKENS)
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode", "ignore:TensorFloat32 tensor cores")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_captured_steps_equal_eager_ones_and_nothing_waits_for_the_device(name: str) -> None:
    device = torch.device("cuda")
    here, tokens, norms = Ranks(0, 1, device), TOKENS.to(device), {}
    for mode in ("eager", "cudagraph"):
        cfg = ToyConfig(optim=replace(ToyConfig().optim, name=name))
        model = Transformer(cfg.model).to(device)
        train = replace(cfg.train, mode=mode, micro_batch=2)
        state = TrainState(model, train, cfg.optim, here)
        step = Step(state, train, cfg.optim, here)
        found = []
        try:
            for i in range(12):
                torch.cuda.set_sync_debug_mode("error" if i > 5 else "default")
                step(i, tokens)
                found.append(step.norm.clone())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        norms[mode] = torch.stack(found).tolist()
    assert norms["cudagraph"] == pytest.approx(norms["eager"], rel=1e-2)
