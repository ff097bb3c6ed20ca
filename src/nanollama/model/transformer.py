"""The decoder-only transformer: pre-normalised blocks between an embedding and a linear head (Llama's shape)."""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from . import rope
from .attention import Attention, Positions
from .layers import Linear, RMSNorm, SwiGLU, compute_dtype
from .sizing import required, resolve


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.mixer = Attention(cfg)
        self.ffn_norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.ffn = SwiGLU(cfg.emb_dim, required(cfg.ffn_dim))

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), at)
        return x + self.ffn(self.ffn_norm(x))


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
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.nb_layers))
        self.norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        # A tied head has no parameter of its own: sharding and checkpoints then never meet the same tensor twice.
        self.head = None if cfg.tie_embeddings else Linear(cfg.emb_dim, vocab)
        self.register_buffer("inv_freq", rope.inverse_frequencies(cfg), persistent=False)
        self.init_weights(seed=0)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter and buffer from ``seed``, whatever the device and the state of any global generator.

        Matrices are truncated normals of deviation ``init_std``, those that write into the residual stream divided by
        sqrt(2 * nb_layers) (Radford et al., 2019); norms are one. Each matrix draws from a stream of its own name, so that a model
        with one more layer keeps the others. On the meta device nothing happens.
        """
        cfg, std = self.cfg, self.cfg.init_std or self.cfg.emb_dim**-0.5
        for name, param in self.named_parameters():
            if param.is_meta:
                continue
            if param.dim() == 1:
                param.fill_(1.0)
                continue
            scale = std * (2 * cfg.nb_layers) ** -0.5 if name.endswith(("mixer.out.weight", "ffn.down.weight")) else std
            # torch's CPU generator reads only 32 bits of its seed, so seed and name are hashed into these.
            generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            draw = torch.empty(param.shape, device="cpu", dtype=torch.float32)
            param.copy_(nn.init.trunc_normal_(draw, std=scale, a=-3 * scale, b=3 * scale, generator=generator))
        self.inv_freq.copy_(rope.inverse_frequencies(cfg))

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Args:
            tokens: (B, T) int64 in [0, vocab_size).

        Returns:
            (B, T, vocab_size) logits of the next token.
        """
        x = self.embed(tokens)
        cos, sin = rope.rotation(torch.arange(tokens.shape[1], device=x.device), self.inv_freq, compute_dtype(x))
        at = Positions(cos, sin)
        for layer in self.layers:
            x = layer(x, at)
        return F.linear(self.norm(x), self.embed.weight if self.head is None else self.head.weight)
