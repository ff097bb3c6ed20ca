"""Document and window masks: by definition, by both kernels, in the model."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import attention, masks
from src.nanollama.model.transformer import Transformer

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2], [5, 5, 5, 5, 5, 5]])


def test_rule_by_definition() -> None:
    seen = masks.dense(masks.rule(DOCUMENTS, window=2), 2, 6, torch.device("cpu"))
    assert seen.shape == (2, 1, 6, 6)
    for z in range(2):
        for q in range(6):
            for k in range(6):
                same = bool(DOCUMENTS[z, q] == DOCUMENTS[z, k])
                assert seen[z, 0, q, k] == (k <= q and q - k < 2 and same)


def test_no_mask_where_causal_attention_will_do() -> None:
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    assert masks.build(None, None, "auto", tokens) is None
    assert masks.build(None, 8, "auto", tokens) is None
    assert masks.build(None, 7, "auto", tokens) is not None


@pytest.mark.parametrize("window", [None, 3, 200])
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
def test_both_kernels_agree(window: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 256, 16, generator=draw) for _ in range(3))
    documents = torch.randint(2, (2, 256), generator=draw).cumsum(-1) // 40
    sees = masks.rule(documents, window)
    with torch.no_grad():
        by_sdpa = F.scaled_dot_product_attention(q, k, v, attn_mask=masks.dense(sees, 2, 256, q.device))
        by_flex = flex_attention(q, k, v, block_mask=masks.sparse(sees, 2, 256, q.device))
    torch.testing.assert_close(by_sdpa, by_flex, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("head_dim", "device", "flex"), [(8, "cuda", False), (16, "cuda", True), (24, "cuda", True), (24, "cpu", False)])
def test_heads_too_narrow_for_flex_attention_do_without_it(head_dim: int, device: str, flex: bool) -> None:
    model = Transformer(ModelConfig(vocab_size=5, emb_dim=2 * head_dim, nb_heads=2, nb_layers=1))
    assert masks.by_blocks("auto", torch.device(device), model.narrowest) == flex
    assert masks.by_blocks("flex", torch.device(device), model.narrowest) and not masks.by_blocks("sdpa", torch.device(device), 64)


def test_packed_documents_get_what_they_would_get_alone() -> None:
    model = Transformer(ModelConfig(vocab_size=19, emb_dim=32, nb_layers=2, nb_heads=4, nb_kv_heads=2))
    first, second = torch.randint(19, (2, 30), generator=torch.Generator().manual_seed(0))
    logits = model(torch.cat([first, second])[None], torch.arange(2).repeat_interleave(30)[None])
    torch.testing.assert_close(logits[0, :30], model(first[None])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[0, 30:], model(second[None])[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("documents", [None, (torch.arange(60) // 25).expand(2, -1)])
def test_keys_and_values_repeated_for_every_query_head_give_the_same(documents: torch.Tensor | None, monkeypatch) -> None:
    """As on a GPU in fp32."""
    model = Transformer(ModelConfig(vocab_size=19, emb_dim=32, nb_layers=2, nb_heads=6, nb_kv_heads=2, qk_head_dim=8, v_head_dim=12))
    tokens = torch.randint(19, (2, 60), generator=torch.Generator().manual_seed(0))
    results, shared = [], []
    sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **rest: shared.append(rest["enable_gqa"]) or sdpa(*args, **rest))
    for answer in (True, False):
        monkeypatch.setattr(attention, "shares_heads", lambda q, v, answer=answer: answer)
        logits = model(tokens, documents)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))])
    assert shared == [True, True, False, False]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("device", "dtype", "v_dim", "shared"),
    [
        ("cuda", torch.bfloat16, 8, True),
        ("cuda", torch.bfloat16, 4, False),
        ("cuda", torch.float32, 8, False),
        ("cpu", torch.float32, 4, True),
    ],
)
def test_which_kernels_let_query_heads_share(device: str, dtype: torch.dtype, v_dim: int, shared: bool) -> None:
    with FakeTensorMode():  # a tensor without numbers can be on any device
        q, v = (torch.empty(1, 2, 3, dim, device=device, dtype=dtype) for dim in (8, v_dim))
        assert attention.shares_heads(q, v) == shared


def test_a_window_reaches_one_layer_further_per_layer() -> None:
    model = Transformer(ModelConfig(vocab_size=19, emb_dim=32, nb_layers=2, nb_heads=4, window=5))
    tokens = torch.randint(19, (1, 40), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 19
    differs = (model(tokens) != model(changed)).any(-1)[0]
    assert differs[10:19].all()
    assert not differs[:10].any()
    assert not differs[19:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_agree_on_a_gpu_forward_and_backward() -> None:
    tokens = torch.randint(19, (2, 256), device="cuda")
    documents = (torch.arange(256, device="cuda") // 50).expand(2, -1)
    results = []
    for kernel in ("sdpa", "flex"):
        cfg = ModelConfig(vocab_size=19, emb_dim=64, nb_layers=2, nb_heads=4, nb_kv_heads=2, window=60, masked_attention=kernel)
        model = Transformer(cfg).cuda()
        logits = model(tokens, documents)
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
