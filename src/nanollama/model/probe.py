"""Look inside a model on demand: activations, gradients, attention entropies.

Works by hooks that exist only inside the ``with`` block, so that a model nobody looks at does nothing extra.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from ..config import ConfigError
from . import masks
from .attention import Heads


@dataclass
class Record:
    """What was seen, by module name; the latest forward and backward pass win.

    ``entropy`` holds (B, H, T) nats for every matching attention layer, the mean over keys of -log weight under the weights.
    """

    activations: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    entropy: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def probe(model: nn.Module, *patterns: str, activations: bool = True, gradients: bool = False, entropy: bool = False) -> Iterator[Record]:
    """Record the outputs of the modules whose name matches a pattern (``layers.*.mixer``, ``layers.3.ffn``, ``*``).

    Args:
        model: eager, not compiled (compiled code does not call hooks that came later).
        patterns: shell-style patterns of module names; none: every block, ``layers.*``.
        activations: keep outputs, detached.
        gradients: keep the gradient of the loss with respect to the outputs.
        entropy: keep attention entropies; the score matrix is computed once more for them.

    Raises:
        ConfigError: no module has such a name.

    Example:
        >>> with probe(model, "layers.*.mixer", entropy=True) as seen:
        ...     model(tokens)
        >>> seen.entropy["layers.0.mixer"].mean()
    """
    record = Record()
    wanted = matching(model, patterns or ("layers.*",))
    if not patterns:
        wanted = {name: module for name, module in wanted.items() if name.count(".") == 1}
    handles = [module.register_forward_hook(_hook(record, name, activations, gradients, entropy)) for name, module in wanted.items()]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def matching(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose name matches a pattern. Raises ConfigError for a pattern that none does."""
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in modules):
            raise ConfigError(f"no module is called {pattern}; there are {', '.join(list(modules)[:11])}, ...")
    return {name: module for name, module in modules.items() if any(fnmatch(name, pattern) for pattern in patterns)}


def _hook(record: Record, name: str, activations: bool, gradients: bool, entropy: bool) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if activations:
            record.activations[name] = output.detach()
        if gradients and output.requires_grad:
            output.register_hook(lambda gradient: record.gradients.__setitem__(name, gradient.detach()))
        if entropy and isinstance(module, Heads):
            record.entropy[name] = attention_entropy(module, *inputs[:2])

    return hook


@torch.no_grad()
def attention_entropy(layer: Heads, x: Tensor, at: Any) -> Tensor:
    """Entropy in nats of every query's distribution over its keys: (B, H, T). ``x`` and ``at`` as the layer gets them, without a cache."""
    mask = masks.dense(at.mask.mask_mod, x.shape[0], x.shape[1], x.device) if isinstance(at.mask, BlockMask) else at.mask
    q, k, _ = layer.heads(layer.qkv(x), at)
    k = k.repeat_interleave(layer.nb_heads // layer.kv_heads, dim=1)
    with torch.autocast(x.device.type, enabled=False):  # kernels keep scores in fp32 too
        scores = q.float() @ k.float().transpose(-1, -2) * layer.qk_dim**-0.5
    length = scores.shape[-1]
    seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril() if mask is None else mask
    log_p = scores.masked_fill(~seen, -torch.inf).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(~seen, 0)).sum(-1)


def statistics(record: Record) -> dict[str, float]:
    """A record in numbers: ``rms/MODULE`` of activations, ``grad_rms/MODULE`` of gradients, ``entropy/MODULE/HEAD`` in nats, the mean over
    sequences and positions."""
    kinds = {"rms": record.activations, "grad_rms": record.gradients}
    found = {f"{kind}/{name}": float(x.float().square().mean().sqrt()) for kind, seen in kinds.items() for name, x in seen.items()}
    for name, entropy in record.entropy.items():
        found |= {f"entropy/{name}/{head}": value for head, value in enumerate(entropy.mean((0, 2)).tolist())}
    return found
