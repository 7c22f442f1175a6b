"""Spans of documents: what they are, and on a GPU that they mean the same as the mask."""

import pytest
import torch
from interop_models import FAMILIES, build

from isoflop.model.attention import SPANS_MULTIPLE, attend, document_mask, document_spans

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_spans_begin_where_the_number_or_the_row_changes():
    spans = document_spans(torch.tensor([[0, 0, 1, -1], [1, 1, 2, 2]]))
    assert spans.starts[:6].tolist() == [0, 2, 3, 4, 6, 8] and spans.longest == 4
    assert len(spans.starts) == SPANS_MULTIPLE and set(spans.starts[5:].tolist()) == {8}
    assert spans.starts.dtype == torch.int32


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("n_kv_heads", "scale"), [(4, None), (2, 0.3)])
def test_spans_mean_the_same_as_the_mask(n_kv_heads, scale):
    generator = torch.Generator("cuda").manual_seed(0)
    documents = torch.randint(0, 2, (3, 128), generator=generator, device="cuda").cumsum(1)
    found = []
    for spans in (True, False):
        generator.manual_seed(1)
        q, k, v = (
            torch.randn(3, heads, 128, 64, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
            for heads in (4, n_kv_heads, n_kv_heads)
        )
        mixed = attend(q, k, v, scale, document_spans(documents) if spans else document_mask(documents))
        mixed.float().square().sum().backward()
        found.append([mixed, q.grad, k.grad, v.grad])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.gpu
@needs_gpu
def test_a_model_on_a_gpu_keeps_packed_samples_apart():
    from dataclasses import replace

    model = build(replace(FAMILIES["gqa"], d_head=16)).cuda()
    model.dtype = torch.bfloat16
    tokens = torch.arange(96, device="cuda")[None] % 150
    documents = (torch.arange(96, device="cuda") >= 40).long()[None]
    with torch.no_grad():
        together = model.logits(tokens)
        alone = model.head(model(tokens[:, 40:]))
        packed = model.head(model(tokens, documents_BT=documents))
    assert (packed[:, 40:] - alone).abs().max() < 0.05 * alone.abs().max()
    assert (together[:, 40:] - alone).abs().max() > 0.2 * alone.abs().max()
