"""Generation with a cache against the full forward pass, together against alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.generate import generate, sampler
from src.nanollama.model.transformer import Transformer

CONFIGS = {
    "attn": ModelConfig(vocab_size=23, emb_dim=32, nb_layers=2, nb_heads=4, nb_kv_heads=2),
    "window": ModelConfig(vocab_size=23, emb_dim=32, nb_layers=2, nb_heads=4, window=4),
    "ssm": ModelConfig(vocab_size=23, emb_dim=32, nb_layers=2, nb_heads=4, mixers=("ssm",), ssm_state=8),
    "hybrid": ModelConfig(vocab_size=23, emb_dim=32, nb_layers=4, nb_heads=4, mixers=("attn", "ssm", "ssm", "attn"), ssm_state=8),
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 0, 2], [11, 12, 13, 14, 15]]


def build(name: str) -> Transformer:
    """In double precision, so that no tie is broken by rounding."""
    model = Transformer(CONFIGS[name]).double()
    model.init_weights(seed=7)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_logits_equal_the_full_forward(name: str) -> None:
    model = build(name)
    tokens = torch.randint(23, (3, 20), generator=torch.Generator().manual_seed(0))
    full = model(tokens)
    cache = model.new_cache(3, 20)
    lengths = torch.tensor([4, 9, 1])
    with torch.no_grad():
        logits = model.extend(tokens[:, :9], cache, lengths)
        rows = torch.arange(3)
        for _ in range(10):
            torch.testing.assert_close(logits, full[rows, cache.lengths - 1], atol=1e-5, rtol=1e-4)
            logits = model.extend(tokens[rows, cache.lengths][:, None], cache, torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_together_equals_one_by_one(name: str, settings: dict) -> None:
    model, sample = build(name), sampler(**settings)
    together = generate(model, PROMPTS, 12, sample=sample, seed=5)
    alone = [generate(model, [prompt], 12, sample=sample, seed=5 + i)[0] for i, prompt in enumerate(PROMPTS)]
    assert together == alone


@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_equals_eager_token_for_token(name: str) -> None:
    model, sample = build(name), sampler(temperature=0.7, top_k=9)
    torch.compiler.reset()
    counters.clear()
    # Graph capture as with any backend, without the minute of code generation.
    compiled = generate(model, PROMPTS, 12, sample=sample, seed=5, backend="aot_eager")
    assert compiled == generate(model, PROMPTS, 12, sample=sample, seed=5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]  # all steps replay one graph


def test_greedy_equals_rerunning_the_model() -> None:
    model = build("hybrid")
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, 8), strict=True):
        tokens = list(prompt)
        for _ in range(8):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        assert completion == tokens[len(prompt) :]


def test_stop_tokens_end_a_completion() -> None:
    model = build("attn")
    free = generate(model, PROMPTS, 12)
    stop = {free[0][3], free[2][1]}
    stopped = generate(model, PROMPTS, 12, stop=stop)
    for a, b in zip(free, stopped, strict=True):
        end = next((i for i, token in enumerate(a) if token in stop), 11)
        assert b == a[: end + 1]
    assert len(stopped[0]) <= 4


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.1, 2.0, -1.0, 1.0]).expand(40_000, -1)
    drawn = sampler(temperature=0.5)(logits, torch.rand(40_000, generator=torch.Generator().manual_seed(0)))
    expected = (logits[0] / 0.5).softmax(-1)
    frequency = torch.bincount(drawn, minlength=4) / 40_000
    assert (frequency - expected).abs().max() < 5 * 0.5 / 200  # five standard errors at most


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.integers(1, 9), st.floats(0.05, 1.0), st.floats(0, 0.999))
def test_only_candidates_are_drawn(logits: list[float], top_k: int, top_p: float, uniform: float) -> None:
    row, u = torch.tensor([logits]), torch.tensor([uniform])
    p = row[0].softmax(-1)
    by_k = sampler(top_k=top_k)(row, u).item()
    assert (p > p[by_k]).sum() < top_k
    by_p = sampler(top_p=top_p)(row, u).item()
    assert p[p > p[by_p]].sum() < top_p + 1e-6
    assert p[sampler(top_k=1)(row, u).item()] == p.max()


def test_the_smallest_temperatures_take_the_most_likely_token() -> None:
    logits = torch.tensor([[0.1, 2.0, -1.0, 1.0]])
    assert [sampler(temperature=t)(logits, torch.tensor([0.99])).item() for t in (1e-4, 1e-30, 1e-42)] == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match="needs"):
        sampler(**wrong)


@pytest.mark.parametrize("prompts", [[[1], []], [[23]], [[-1]]])
def test_prompts_must_be_known_tokens(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        generate(build("attn"), prompts, 2)
