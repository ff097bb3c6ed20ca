"""The decoder-only language model: pre-normalised blocks between an embedding and a linear head (Llama's shape)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from . import isometry, masks, rope
from .attention import Attention, Heads
from .collective import Collective
from .families import resolve
from .layers import Linear, RMSNorm, SwiGLU, compute_dtype
from .rope_scaling import inverse_frequencies, magnitude
from .sizing import ffn_widths, mixers, required
from .ssm import SSM
from .state import Cache, Context, LayerCache

MIXERS: dict[str, type[Attention] | type[SSM]] = {"attn": Attention, "ssm": SSM}


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)); without ``residual`` the sums are left out."""

    def __init__(self, cfg: ModelConfig, mixer: str, ffn_dim: int) -> None:
        super().__init__()
        self.residual = cfg.residual
        self.mixer_norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.mixer = MIXERS[mixer](cfg)
        self.ffn_norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.ffn = SwiGLU(cfg.emb_dim, ffn_dim)

    def forward(self, x: Tensor, at: Context, cache: LayerCache | None = None) -> Tensor:
        if not self.residual:
            return self.ffn(self.ffn_norm(self.mixer(self.mixer_norm(x), at, cache)))
        x = x + self.mixer(self.mixer_norm(x), at, cache)
        return x + self.ffn(self.ffn_norm(x))

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> LayerCache:
        """An empty cache for ``batch`` sequences of at most ``capacity`` tokens, with the dtype and device of ``like``."""
        return self.mixer.new_cache(batch, capacity, like)


def _layers(cfg: ModelConfig) -> Iterable[nn.Module]:
    if cfg.family == "collective":
        return [Collective(cfg)]
    return (Block(cfg, mixer, width) for mixer, width in zip(mixers(cfg), ffn_widths(cfg), strict=True))


def stream(seed: int, name: str) -> torch.Generator:
    """Random numbers for the part of a model that is called ``name``."""
    # torch's CPU generator reads only 32 bits of its seed, so seed and name are hashed into these.
    return torch.Generator("cpu").manual_seed(zlib.crc32(f"{seed} {name}".encode()))


class Transformer(nn.Module):
    """Next-token logits of token sequences.

    Example:
        >>> model = Transformer(ModelConfig(vocab_size=32))
        >>> model.init_weights(seed=0)
        >>> model(torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 7, 32])
    """

    inv_freq: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg = resolve(cfg)
        vocab = required(cfg.vocab_size)
        self.embed = nn.Embedding(vocab, cfg.emb_dim, _weight=torch.empty(vocab, cfg.emb_dim))
        self.layers = nn.ModuleList(_layers(cfg))
        self.norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        # A tied head has no parameter of its own: sharding and checkpoints then never meet the same tensor twice.
        self.head = None if cfg.tie_embeddings else Linear(cfg.emb_dim, vocab)
        self.register_buffer("inv_freq", inverse_frequencies(cfg), persistent=False)
        self.rope_magnitude = magnitude(cfg)
        self.narrowest = min((min(m.qk_dim, m.v_dim) for m in self.modules() if isinstance(m, Heads)), default=masks.FLEX_FROM)
        self.init_weights(seed=0)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter and buffer from ``seed``, whatever the device and the state of any global generator.

        Matrices are truncated normals of deviation ``init_std``, those that write into the residual stream divided by
        sqrt(2 * nb_layers) (Radford et al., 2019); norms are one. Each matrix draws from a stream of its own name, so that a model
        with one more layer keeps the others. Layers without skip connections start near the identity
        (``isometry``). On the meta device nothing happens.
        """
        if self.inv_freq.is_meta:
            return
        for name, param in self.named_parameters():
            if param.dim() == 1:
                param.fill_(1.0)
                continue
            std = self._init_std(name, param)
            draw = torch.empty(param.shape, device="cpu", dtype=torch.float32)
            param.copy_(nn.init.trunc_normal_(draw, std=std, a=-3 * std, b=3 * std, generator=stream(seed, name)))
        for module in self.modules():
            if isinstance(module, SSM):
                module.init_dynamics()
        if not self.cfg.residual:
            self._start_near_identity(seed)
        self.inv_freq.copy_(inverse_frequencies(self.cfg))

    def _start_near_identity(self, seed: int) -> None:
        for name, module in self.named_modules():
            generator = stream(seed, name)
            if isinstance(module, Heads):
                isometry.look_at_oneself(module)
            if isinstance(module, Attention):
                isometry.bring_back(module, generator)
            if isinstance(module, SwiGLU):
                isometry.look_linear(module, generator)

    def _init_std(self, name: str, param: Tensor) -> float:
        if name.endswith("mixer.conv"):
            return 0.5  # four taps: keeps the scale
        if not self.cfg.residual and name.startswith("layers."):
            return float(param.shape[-1] ** -0.5)  # nothing carries the signal past a matrix: each keeps its size
        std = self.cfg.init_std or self.cfg.emb_dim**-0.5
        return std * (2 * self.cfg.nb_layers) ** -0.5 if name.endswith(("mixer.out.weight", "ffn.down.weight")) else std

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """What ``to`` does to every tensor; frequencies stay in fp32, since their error grows with the position."""
        super()._apply(fn, recurse)
        if not self.inv_freq.is_meta:
            self.inv_freq = inverse_frequencies(self.cfg).to(self.inv_freq.device)
        return self

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """
        Args:
            tokens: (B, T) int64 in [0, vocab_size).
            documents: (B, T) integers, another one for every document of a sequence; documents do not see one another. None: one
                document a sequence.

        Returns:
            (B, T, vocab_size) logits of the next token.
        """
        x = self.embed(tokens)
        mask = masks.build(documents, self.cfg.window, self.cfg.masked_attention, tokens, self.narrowest)
        cos, sin = self._rotation(torch.arange(tokens.shape[1], device=x.device), x)
        at = Context(cos, sin, mask, documents)
        for layer in self.layers:
            x = layer(x, at)
        return self._logits(x)

    def extend(self, tokens: Tensor, cache: Cache, counts: Tensor) -> Tensor:
        """Read on from where ``cache`` stands, and move it on.

        Args:
            tokens: (B, T) int64, padded to the right; T more have to fit into every sequence's cache.
            cache: of ``new_cache``.
            counts: (B,) how many of the T tokens are meant; each 1 <= counts <= T.

        Returns:
            (B, vocab_size) logits that follow each sequence's last token.
        """
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = cache.lengths[:, None] + steps
        x = self.embed(tokens)
        cos, sin = self._rotation(positions, x)
        mask = masks.cached(positions, cache.capacity, self.cfg.window)
        at = Context(cos, sin, mask, positions=positions, valid=steps < counts[:, None])
        for layer, state in zip(self.layers, cache.layers, strict=True):
            x = layer(x, at, state)
        cache.lengths += counts
        return self._logits(x[torch.arange(len(x), device=x.device), counts - 1])

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for ``batch`` sequences of at most ``capacity`` tokens."""
        like = self.embed.weight.new_empty((), dtype=compute_dtype(self.embed.weight))
        layers = [layer.new_cache(batch, capacity, like) for layer in self.layers]  # type: ignore[operator]
        return Cache(layers, torch.zeros(batch, dtype=torch.int64, device=like.device), capacity)

    def _rotation(self, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return rope.rotation(positions, self.inv_freq, self.rope_magnitude, compute_dtype(x))

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embed.weight if self.head is None else self.head.weight)
