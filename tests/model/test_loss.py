"""The chunked loss is cross-entropy, value and gradients, and never holds a full table of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop.model.loss import chunked_cross_entropy


def case(rows, width, vocabulary, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden_RD = scale * torch.randn(rows, width, generator=generator)
    weight_VD = torch.randn(vocabulary, width, generator=generator)
    targets_R = torch.randint(-1, vocabulary, (rows,), generator=generator)  # -1 is ignored
    return hidden_RD.requires_grad_(), weight_VD.requires_grad_(), targets_R


def exact(hidden_RD, weight_VD, targets_R):
    """Value and gradients in float64 through PyTorch's own cross-entropy."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden_RD, weight_VD))
    loss = F.cross_entropy(hidden @ weight.T, targets_R, ignore_index=-1, reduction="sum")
    loss.backward()
    return loss.item(), hidden.grad, weight.grad


def relative_error(a, b):
    return ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-300)).item()


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(2, 50), st.integers(1, 60), st.floats(0.1, 20.0))
def test_value_and_gradients_equal_cross_entropy_in_float64(rows, width, vocabulary, chunk, scale):
    hidden_RD, weight_VD, targets_R = case(rows, width, vocabulary, seed=rows, scale=scale)
    loss = chunked_cross_entropy(hidden_RD, weight_VD, targets_R, chunk_tokens=chunk)
    (3.0 * loss).backward()  # the incoming gradient must be passed on
    value, d_hidden, d_weight = exact(hidden_RD, weight_VD, targets_R)
    assert loss.item() == pytest.approx(value, rel=1e-5, abs=1e-5 * scale)
    if (targets_R >= 0).any():
        # A saturated softmax leaves gradients near 0, where only their size against the inputs means something.
        floor = 1e-6 * weight_VD.abs().max().item() * max(1.0, scale)
        assert (hidden_RD.grad / 3 - d_hidden).abs().max() <= 2e-5 * d_hidden.abs().max() + floor
        assert (weight_VD.grad / 3 - d_weight).abs().max() <= 2e-5 * d_weight.abs().max() + floor
    else:
        assert hidden_RD.grad.abs().max() == 0


def test_the_chunk_size_changes_nothing_but_rounding():
    hidden_RD, weight_VD, targets_R = case(64, 16, 100)
    losses = [chunked_cross_entropy(hidden_RD, weight_VD, targets_R, chunk_tokens=n).item() for n in (1, 7, 64, 999)]
    assert losses == pytest.approx([exact(hidden_RD, weight_VD, targets_R)[0]] * 4, rel=1e-6)


def test_without_gradients_the_value_is_the_same():
    hidden_RD, weight_VD, targets_R = case(30, 8, 40)
    trained = chunked_cross_entropy(hidden_RD, weight_VD, targets_R, chunk_tokens=8)
    with torch.no_grad():
        measured = chunked_cross_entropy(hidden_RD, weight_VD, targets_R, chunk_tokens=8)
    assert not measured.requires_grad
    assert measured.item() == pytest.approx(trained.item(), rel=1e-6)


def test_huge_logits_stay_finite():
    hidden_RD, weight_VD, targets_R = case(8, 4, 16, scale=1e4)
    loss = chunked_cross_entropy(hidden_RD, weight_VD, targets_R, chunk_tokens=4)
    loss.backward()
    assert loss.isfinite() and hidden_RD.grad.isfinite().all() and weight_VD.grad.isfinite().all()


def test_bfloat16_products_give_float32_loss_and_weight_gradient():
    hidden_RD, weight_VD, targets_R = case(64, 32, 100)
    narrow_RD = hidden_RD.detach().bfloat16().requires_grad_()
    loss = chunked_cross_entropy(narrow_RD, weight_VD, targets_R, chunk_tokens=16)
    loss.backward()
    value, d_hidden, d_weight = exact(hidden_RD, weight_VD, targets_R)
    assert loss.dtype == weight_VD.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-2)
    assert relative_error(narrow_RD.grad, d_hidden) < 3e-2
    assert relative_error(weight_VD.grad, d_weight) < 3e-2


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.n_elements = max([self.n_elements, *sizes])
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_operation_holds_more_than_one_chunk_of_logits(dtype):
    rows, width, vocabulary, chunk = 1024, 8, 2000, 64
    hidden_RD, weight_VD, targets_R = case(rows, width, vocabulary)
    narrow_RD = hidden_RD.detach().to(dtype).requires_grad_()
    with Largest() as largest:
        chunked_cross_entropy(narrow_RD, weight_VD, targets_R, chunk_tokens=chunk).backward()
    assert largest.n_elements == chunk * vocabulary  # 16 times less than all logits
    with Largest() as plain:
        F.cross_entropy(narrow_RD @ weight_VD.to(dtype).T, targets_R, ignore_index=-1, reduction="sum").backward()
    assert plain.n_elements == rows * vocabulary  # the measurement itself sees a full table
