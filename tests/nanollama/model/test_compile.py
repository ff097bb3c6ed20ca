"""The model traced by torch.compile without a break gives what it gives eagerly."""

import pytest
import torch
from torch import Tensor

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.transformer import Transformer

CFG = ModelConfig(vocab_size=19, emb_dim=32, nb_layers=2, nb_heads=4, nb_kv_heads=2, mixers=("attn", "ssm"), ssm_state=8)
TOKENS = torch.randint(19, (2, 80), generator=torch.Generator().manual_seed(0))


def logits_and_gradients(compiled: bool, low: bool, packed: bool) -> list[Tensor]:
    model = Transformer(CFG)
    model.init_weights(seed=1)
    # Graph capture and differentiation as in every compiled run, without the minutes of code generation.
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        logits = run(TOKENS, (torch.arange(80) // 30).expand(2, -1) if packed else None)
    logits.float().square().mean().backward()
    return [logits.detach().float(), *(p.grad for p in model.parameters())]


def relative_errors(values: list[Tensor], reference: list[Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(values, reference, strict=True)]


@pytest.mark.parametrize("packed", [False, True])
def test_traced_equals_eager(packed: bool) -> None:
    eager = logits_and_gradients(False, False, packed)
    assert max(relative_errors(logits_and_gradients(True, False, packed), eager)) < 1e-5


def test_traced_bf16_errs_no_more_than_eager_bf16() -> None:
    exact = logits_and_gradients(False, False, False)
    eager, traced = (relative_errors(logits_and_gradients(compiled, True, False), exact) for compiled in (False, True))
    assert eager[0] < 0.03  # the logits
    for a, b in zip(traced, eager, strict=True):
        assert a < 2 * b


def test_bf16_follows_fp32() -> None:
    """Activations in bf16 change the loss of a short training by less than 1 %."""
    losses = []
    for low in (False, True):
        model = Transformer(ModelConfig(vocab_size=19, emb_dim=32, nb_layers=2, nb_heads=4))
        model.init_weights(seed=1)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        draw = torch.Generator().manual_seed(0)
        for _ in range(40):
            tokens = torch.randint(19, (8, 1), generator=draw) + torch.arange(40) * torch.randint(1, 4, (8, 1), generator=draw)
            tokens = tokens % 19
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logits = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[0] < 1.5
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
