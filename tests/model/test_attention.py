"""One attention call: causal from the end, grouped heads repeated."""

import pytest
import torch

from isoflop.model.attention import attend


def explicit(q_BHTC, k_BGSC, v_BGSC, scale=None):
    """Softmax attention in float64 where query t sees keys up to S - T + t."""
    q, k, v = (x.double() for x in (q_BHTC, k_BGSC, v_BGSC))
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    n_new, n_seen = q.shape[2], k.shape[2]
    unseen_TS = torch.arange(n_seen)[None, :] > torch.arange(n_new)[:, None] + n_seen - n_new
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(unseen_TS, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("n_new", "n_seen"), [(9, 9), (1, 9), (4, 9)])
@pytest.mark.parametrize("d_head", [6, 16])
def test_attention_equals_explicit_softmax(groups, n_new, n_seen, d_head):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, n_new, d_head, generator=generator)
    k, v = torch.randn(2, 2, groups, n_seen, d_head, generator=generator)
    exact = explicit(q, k, v)
    assert ((attend(q, k, v) - exact).abs().max() / exact.abs().max()).item() < 1e-6


@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize(("n_new", "n_seen"), [(9, 9), (1, 9), (4, 9)])
def test_values_may_have_other_channels_and_the_scale_may_be_given(groups, n_new, n_seen):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, n_new, 12, generator=generator)
    k = torch.randn(2, groups, n_seen, 12, generator=generator)
    v = torch.randn(2, groups, n_seen, 8, generator=generator)
    exact = explicit(q, k, v, scale=0.7)
    assert ((attend(q, k, v, 0.7) - exact).abs().max() / exact.abs().max()).item() < 1e-6
