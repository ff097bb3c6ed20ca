"""What the probe sees, and that it leaves nothing behind."""

import math
from dataclasses import replace

import pytest
import torch

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.probe import probe
from src.nanollama.model.transformer import Transformer

CFG = ModelConfig(vocab_size=13, emb_dim=32, nb_layers=2, nb_heads=4, nb_kv_heads=2)
TOKENS = torch.randint(13, (2, 70), generator=torch.Generator().manual_seed(0))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_activations_and_gradients_by_name() -> None:
    model = Transformer(CFG)
    plain = model(TOKENS)
    with probe(model, "layers.*.ffn", "norm", gradients=True) as seen:
        logits = model(TOKENS)
        logits.sum().backward()
    assert torch.equal(logits, plain)
    assert set(seen.activations) == set(seen.gradients) == {"layers.0.ffn", "layers.1.ffn", "norm"}
    torch.testing.assert_close(seen.activations["norm"] @ model.head.weight.T, plain)
    torch.testing.assert_close(seen.gradients["norm"], model.head.weight.sum(0).expand(2, 70, -1))


def test_nothing_stays_behind_even_after_an_error() -> None:
    model = Transformer(CFG)
    with pytest.raises(RuntimeError), probe(model, gradients=True, entropy=True):
        assert hooks(model) == 2
        raise RuntimeError
    assert hooks(model) == 0


def test_entropy_of_uniform_attention() -> None:
    model = Transformer(CFG)
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.qkv.weight[: (4 + 2) * 8] = 0  # all scores zero: query t spreads evenly over t + 1 keys
    with probe(model, "layers.*.mixer", activations=False, entropy=True) as seen:
        model(TOKENS)
    expected = torch.arange(1, 71).log().expand(2, 4, -1)
    assert list(seen.entropy) == ["layers.0.mixer", "layers.1.mixer"]
    torch.testing.assert_close(seen.entropy["layers.1.mixer"], expected, atol=1e-5, rtol=1e-5)
    assert not seen.activations


def test_entropy_in_half_precision_is_that_of_the_rounded_queries_and_keys() -> None:
    model, seen_by = Transformer(CFG), {}
    mixer = model.layers[0].mixer
    with torch.no_grad():
        mixer.qkv.weight[: (4 + 2) * 8] *= 6  # peaked: bf16 scores would be off by .03

    def keep(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen_by["heads"] = mixer.heads(output, seen_by["at"])

    mixer.register_forward_pre_hook(lambda module, inputs: seen_by.update(at=inputs[1]))
    mixer.qkv.register_forward_hook(keep)
    with probe(model, "layers.0.mixer", entropy=True) as seen, torch.autocast("cpu", torch.bfloat16):
        model(TOKENS)
    q, k, _ = (x.detach().double() for x in seen_by["heads"])
    scores = q @ k.repeat_interleave(2, dim=1).mT * 8**-0.5
    p = scores.masked_fill(~torch.ones(70, 70).tril().bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(seen.entropy["layers.0.mixer"].double(), torch.special.entr(p).sum(-1), atol=1e-5, rtol=1e-5)


def test_entropy_respects_documents() -> None:
    model = Transformer(CFG)
    documents = torch.arange(70).expand(2, -1)
    with probe(model, "layers.0.mixer", entropy=True) as seen:
        model(TOKENS, documents)
    assert seen.entropy["layers.0.mixer"].abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
def test_entropy_of_either_kernel() -> None:
    found = []
    for kernel in ("sdpa", "flex"):
        model = Transformer(replace(CFG, emb_dim=64, window=20, masked_attention=kernel))
        with torch.no_grad(), probe(model, "layers.0.mixer", entropy=True) as seen:
            model(TOKENS)
        found.append(seen.entropy["layers.0.mixer"])
    assert torch.equal(*found) and found[0].max() <= math.log(20)


def test_entropy_of_both_stages_of_a_collective() -> None:
    model = Transformer(ModelConfig(vocab_size=13, emb_dim=32, nb_heads=1, family="collective", match="native"))
    with torch.no_grad(), probe(model, "*.heads", activations=False, entropy=True) as seen:
        model(TOKENS)
    assert {name: x.shape[1] for name, x in seen.entropy.items()} == {"layers.0.experts.heads": 2, "layers.0.analysts.heads": 6}


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"layers\.9"), probe(Transformer(CFG), "layers.9"):
        pass
