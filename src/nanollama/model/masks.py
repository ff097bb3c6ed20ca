"""Which keys a query sees, said once for both kernels.

With documents [a a a b b] and a window of two (columns are keys, rows are queries):

        causal          documents       documents + window
        1 . . . .       1 . . . .       1 . . . .
        1 1 . . .       1 1 . . .       1 1 . . .
        1 1 1 . .       1 1 1 . .       . 1 1 . .
        1 1 1 1 .       . . . 1 .       . . . 1 .
        1 1 1 1 1       . . . 1 1       . . . 1 1
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # sequence, head, query, key -> whether the query sees the key
Mask = Tensor | BlockMask | None  # dense (B, 1, T, S), True where seen; sparse blocks; None: causal
FLEX_FROM = 16  # features of a head; FlexAttention's kernels on a GPU multiply no narrower matrices


def rule(documents: Tensor | None, window: int | None) -> Rule:
    """Causal, within the document of the query, at most ``window`` keys back (the query's own included).

    Args:
        documents: (B, T) integers, another one for every document of a sequence; or None.
        window: number of keys, or None.
    """

    def sees(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        if documents is not None:
            seen = seen & (documents[sequence, query] == documents[sequence, key])
        return seen

    return sees


def dense(sees: Rule, batch: int, length: int, device: torch.device) -> Tensor:
    """(B, 1, T, T) bool."""
    sequences = torch.arange(batch, device=device)[:, None, None, None]
    at = torch.arange(length, device=device)
    return sees(sequences, sequences.new_zeros(()), at[:, None], at).expand(batch, 1, length, length)


def sparse(sees: Rule, batch: int, length: int, device: torch.device) -> BlockMask:
    """The same for FlexAttention: whole blocks that nobody sees are skipped."""
    return create_block_mask(sees, B=batch, H=None, Q_LEN=length, KV_LEN=length, device=device.type)


def cached(positions: Tensor, capacity: int, window: int | None) -> Tensor:
    """(B, 1, T, capacity) bool for queries at ``positions`` (B, T) over a cache filled up to them."""
    keys = torch.arange(capacity, device=positions.device)
    seen = keys <= positions[..., None]
    if window is not None:
        seen = seen & (keys > positions[..., None] - window)
    return seen[:, None]


def build(documents: Tensor | None, window: int | None, kernel: str, tokens: Tensor, narrowest: int = FLEX_FROM) -> Mask:
    """The mask of one forward pass over (B, T) ``tokens``; None where plain causal attention will do.

    Args:
        kernel: ``ModelConfig.masked_attention``.
        narrowest: features of a head, the fewer of queries and values.
    """
    batch, length = tokens.shape
    if documents is None and (window is None or window >= length):
        return None
    make = sparse if by_blocks(kernel, tokens.device, narrowest) else dense
    return make(rule(documents, window), batch, length, tokens.device)


def by_blocks(kernel: str, device: torch.device, narrowest: int) -> bool:
    """Whether ``ModelConfig.masked_attention`` means FlexAttention on this device, with heads of at least ``narrowest`` features."""
    return kernel == "flex" or (kernel == "auto" and device.type == "cuda" and narrowest >= FLEX_FROM)
