"""Completions of prompts of different lengths at once, with a static cache.

Prompts are padded to the right. Padding is never seen: a causal mask hides it from the prompt before it, and generated tokens are
written over it, each sequence at its own position. So every sequence gets what it would get alone.

        prompts     prefill       first step    second step
        a b c       a b c         a b c C       a b c C C
        d           d . .         d D . .       d D D . .
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from .transformer import Transformer

Sampler = Callable[[Tensor, Tensor], Tensor]  # (B, V) logits, (B,) uniform numbers -> (B,) tokens


def sampler(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Sampler:
    """How the next token follows from logits.

    Args:
        temperature: 0 takes the most likely token.
        top_k: only the k most likely tokens.
        top_p: only the most likely tokens that together reach this probability (Holtzman et al., 2019, arXiv:1904.09751).

    Raises:
        ValueError: a setting out of its range.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(f"temperature={temperature}, top_k={top_k}, top_p={top_p}: needs temperature >= 0, top_k >= 1 and 0 < top_p <= 1")

    def sample(logits: Tensor, uniform: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        below = logits.float() - logits.amax(-1, keepdim=True)  # a small temperature cannot overflow
        p, tokens = (below / temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        if top_k is not None:
            p[:, top_k:] = 0
        if top_p is not None:
            before = p.cumsum(-1) - p  # the most likely token always stays
            p = p.masked_fill(before >= top_p * p.sum(-1, keepdim=True), 0)
        total = p.cumsum(-1)
        chosen = torch.searchsorted(total, (uniform.float() * total[:, -1])[:, None], right=True)
        last = (p > 0).sum(-1, keepdim=True) - 1  # rounding may carry the search past the last candidate
        return tokens.gather(-1, torch.minimum(chosen, last))[:, 0]

    return sample


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    *,
    sample: Sampler | None = None,
    stop: Collection[int] = (),
    seed: int = 0,
    backend: str | None = None,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        model: any mixture of mixers.
        prompts: tokens, at least one each.
        max_new: most tokens to add to each.
        sample: of ``sampler``; None: the most likely token.
        stop: tokens that end a completion; the one that did is its last token.
        seed: prompt i draws from the stream of ``seed + i``, so that it gets the same alone with that seed.
        backend: of torch.compile, for the step that adds one token (``inductor`` pays on a GPU for long completions); None: eager.

    Returns:
        the completions, without their prompts.

    Raises:
        ValueError: an empty prompt, or a token the model does not know.
    """
    vocab = model.cfg.vocab_size or 0
    for i, prompt in enumerate(prompts):
        if not prompt or not all(0 <= token < vocab for token in prompt):
            raise ValueError(f"prompt {i} needs at least one token, each from 0 to {vocab - 1}, got {list(prompt)[:10]}")
    if not prompts or max_new < 1:
        return [[] for _ in prompts]
    device, sample = model.embed.weight.device, sample or sampler(temperature=0)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(len(prompt) for prompt in prompts)
    padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    streams = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    uniform = torch.stack([torch.rand(max_new, generator=stream) for stream in streams], 1).to(device)
    cache = model.new_cache(len(prompts), longest + max_new)
    one = torch.ones_like(lengths)
    extend = torch.compile(model.extend, backend=backend, dynamic=False) if backend else model.extend
    stops = torch.tensor(sorted(stop), device=device, dtype=torch.int64)

    token = sample(model.extend(padded, cache, lengths), uniform[0])
    tokens, done = [token], torch.isin(token, stops)
    for i in range(1, max_new):
        if stop and done.all():
            break
        token = sample(extend(token[:, None], cache, one), uniform[i])
        tokens.append(token)
        done |= torch.isin(token, stops)
    return [_until(row, stop) for row in torch.stack(tokens, 1).tolist()]


def _until(tokens: list[int], stop: Collection[int]) -> list[int]:
    """Up to and with the first stop token."""
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[: end + 1]
