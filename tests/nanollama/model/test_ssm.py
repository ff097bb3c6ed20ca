"""The recurrent mixer: parallel form, recurrent step, documents."""

import pytest
import torch
from torch import Tensor

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.ssm import recurrence, scan
from src.nanollama.model.transformer import Transformer

HYBRID = ModelConfig(vocab_size=19, emb_dim=32, nb_layers=4, nb_heads=4, mixers=("attn", "ssm"), ssm_state=8)


def inputs(length: int, batch: int = 2, heads: int = 3, features: int = 4, state: int = 5) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, heads, features, generator=draw, dtype=torch.float64)
    dt = torch.rand(batch, length, heads, generator=draw, dtype=torch.float64)
    rate = -torch.rand(heads, generator=draw, dtype=torch.float64) * 8
    b, c = (torch.randn(batch, length, state, generator=draw, dtype=torch.float64) for _ in range(2))
    return [x, dt, rate, b, c]


def step_by_step(
    x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, state: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    out = []
    for t in range(x.shape[1]):
        if documents is not None and t:
            state = state * (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        y, state = recurrence(x[:, t], dt[:, t], rate, b[:, t], c[:, t], state)
        out.append(y)
    return torch.stack(out, 1), state


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_scan_equals_the_recurrence(length: int) -> None:
    args = inputs(length)
    start = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for state in (None, start):
        y, last = scan(*args, state)
        expected, expected_last = step_by_step(*args, torch.zeros_like(start) if state is None else state)
        torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(last, expected_last, atol=1e-10, rtol=1e-8)


def test_documents_start_from_nothing() -> None:
    args = inputs(200)
    documents = torch.zeros(2, 200, dtype=torch.int64)
    documents[0, 10:] = 1
    documents[0, 64:] = 2
    documents[0, 150:] = 3
    documents[1, 130:] = 7
    y, last = scan(*args, documents=documents)
    expected, expected_last = step_by_step(*args, torch.zeros(2, 3, 4, 5, dtype=torch.float64), documents)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(last, expected_last, atol=1e-10, rtol=1e-8)


def test_fast_forgetting_neither_overflows_nor_loses_its_gradient() -> None:
    x, dt, rate, b, c = (t.float().requires_grad_() for t in inputs(200))
    y, _ = scan(x, dt * 100, rate, b, c)
    y.sum().backward()
    for t in (x, dt, rate, b, c):
        assert torch.isfinite(t.grad).all()


def test_a_hybrid_keeps_documents_apart_and_is_causal() -> None:
    model = Transformer(HYBRID)
    model.init_weights(seed=2)
    first, second = torch.randint(19, (2, 40), generator=torch.Generator().manual_seed(0))
    packed = torch.cat([first, second])[None]
    documents = torch.cat([torch.zeros(40), torch.ones(40)])[None].long()
    logits = model(packed, documents)
    torch.testing.assert_close(logits[0, :40], model(first[None])[0], atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(logits[0, 40:], model(second[None])[0], atol=2e-6, rtol=1e-4)
    changed = first.clone()
    changed[25:] = (changed[25:] + 1) % 19
    torch.testing.assert_close(model(first[None])[:, :25], model(changed[None])[:, :25], atol=2e-6, rtol=1e-4)


def test_a_hybrid_learns() -> None:
    """Copying the token before the last needs memory; a few steps must bring the loss well under that of guessing."""
    model = Transformer(HYBRID)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        tokens = torch.randint(19, (8, 33), generator=draw)
        tokens[:, 2:] = tokens[:, torch.arange(31) % 2]
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[:, 2:].flatten(0, 1), tokens[:, 3:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
