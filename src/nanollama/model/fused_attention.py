"""Rotary embedding and causal attention, computed in fp32 on a CPU, as one operator, which torch.compile takes as it is.

Shapes: B sequences, T tokens, H query heads, K key/value heads (H = K * G), D features of a query or key, D_v of a value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import cpu
from .rope import rotate


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Tensor:
    """``plain_attend`` on a CPU in compiled passes that hold a strip of the score matrix at a time (``attention_native``).

    Half precision is computed in fp32 too: faster and more exact than SDPA in it. Keeps for the backward pass what flash attention does
    (Dao et al., 2022, arXiv:2205.14135): its input, its output, and the logarithm of each softmax's sum. Results do not depend on the
    number of threads.
    """
    out: Tensor = _attend(qkv.float(), cos.float(), sin.float(), heads, kv_heads)[0]
    return out.to(qkv.dtype)


def plain_attend(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Turn queries and keys, attend to the past.

    Args:
        qkv: (B, T, (H + K) * D + K * D_v), queries first, then keys, then values.
        cos, sin: (T, D / 2) of ``rope.rotation``.
        heads, kv_heads: H and K, a divisor of H.

    Returns:
        (B, T, H * D_v)
    """
    q, k, v = cpu.split_heads(qkv, heads, kv_heads, 2 * cos.shape[-1])
    y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=heads != kv_heads)
    return y.transpose(1, 2).flatten(2)


@torch.library.custom_op("nanollama::attend", mutates_args=())
def _attend(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    from . import attention_native, cpu_native

    batch, length, dim = *qkv.shape[:2], 2 * cos.shape[1]
    out = qkv.new_empty(batch, length, heads * (qkv.shape[2] - (heads + kv_heads) * dim) // kv_heads)
    log_sums = qkv.new_empty(batch, heads, length)
    tensors = (x.contiguous() for x in (qkv, cos, sin))
    cpu_native.over_rows(attention_native.attend, batch * kv_heads, *tensors, heads, kv_heads, out, log_sums)
    return out, log_sums


@_attend.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    v_dim = (qkv.shape[2] - (heads + kv_heads) * 2 * cos.shape[1]) // kv_heads
    return qkv.new_empty(*qkv.shape[:2], heads * v_dim), qkv.new_empty(qkv.shape[0], heads, qkv.shape[1])


@torch.library.custom_op("nanollama::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, out: Tensor, log_sums: Tensor
) -> Tensor:
    from . import attention_native, cpu_native

    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    tensors = [x.contiguous() for x in (qkv, cos, sin, out, log_sums, grad)]
    cpu_native.over_rows(attention_native.attend_backward, len(qkv) * kv_heads, *tensors[:3], heads, kv_heads, *tensors[3:], d_qkv)
    return d_qkv


@_attend_backward.register_fake
def _(grad: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, out: Tensor, log_sums: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, cos, sin, *ctx.heads = inputs
    ctx.save_for_backward(qkv, cos, sin, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    qkv, cos, sin, out, log_sums = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        with sdpa_kernel(SDPBackend.MATH):  # the one that can be differentiated once more
            plain = plain_attend(qkv, cos, sin, *ctx.heads)
        return torch.autograd.grad(plain, qkv, grad, create_graph=True)[0], *[None] * 4
    return _attend_backward(grad, qkv, cos, sin, *ctx.heads, out, log_sums), *[None] * 4


_attend.register_autograd(_differentiate, setup_context=_keep)
