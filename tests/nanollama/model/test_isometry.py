"""How layers without skip connections start: what each remedy promises, measured on what the layers put out."""

import pytest
import torch

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.attention import Attention
from src.nanollama.model.isometry import orthogonal
from src.nanollama.model.layers import SwiGLU
from src.nanollama.model.transformer import Transformer


def plain(**shape) -> Transformer:
    model = Transformer(ModelConfig(vocab_size=11, emb_dim=32, nb_layers=2, nb_heads=4, residual=False, **shape))
    model.init_weights(0)
    return model


def parts(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("rows, columns", [(6, 9), (9, 6), (7, 7)])
def test_orthogonal(rows, columns):
    drawn = orthogonal(rows, columns, torch.Generator().manual_seed(0))
    assert drawn.shape == (rows, columns)
    gram = drawn @ drawn.T if rows <= columns else drawn.T @ drawn
    torch.testing.assert_close(gram, torch.eye(min(rows, columns)))


@pytest.mark.parametrize("nb_kv_heads", [4, 2])
def test_a_token_that_sees_itself_alone_comes_back_as_far_as_the_values_hold_it(nb_kv_heads):
    for attention in parts(plain(nb_kv_heads=nb_kv_heads), Attention):
        _, _, v = attention.qkv.weight.split(attention.sizes)
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
        read = (x @ v.T).unflatten(1, (nb_kv_heads, -1)).repeat_interleave(4 // nb_kv_heads, dim=1).flatten(1)
        back = attention.out(read)
        torch.testing.assert_close(back, x @ v.T @ v)  # the projection on what the values read: with as many heads, all of it
        if nb_kv_heads == 4:
            torch.testing.assert_close(back, x)


def test_queries_are_the_keys_of_their_group():
    for attention in parts(plain(nb_kv_heads=2), Attention):
        q, k, _ = attention.qkv.weight.split(attention.sizes)
        torch.testing.assert_close(q.unflatten(0, (2, 2, -1)), k.unflatten(0, (2, 1, -1)).expand(-1, 2, -1, -1))


def test_the_feed_forward_layer_has_no_even_part():
    for ffn in parts(plain(), SwiGLU):
        x = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
        there = ffn(x)
        assert there.abs().max() > 1e-3
        torch.testing.assert_close(ffn(-x), -there)
