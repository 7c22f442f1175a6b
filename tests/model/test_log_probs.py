"""Fused log-probabilities against log_softmax of the whole table, and against finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.model.log_probs import head_log_probs, token_log_probs
from isoflop.numerics.linear import Linear, MatmulBackend


def make(n_rows=23, d_model=16, n_vocab=101, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n_rows, d_model, generator=generator, dtype=dtype)
    weight = torch.randn(n_vocab, d_model, generator=generator, dtype=dtype)
    targets = torch.randint(0, n_vocab, (n_rows,), generator=generator)
    targets[::5] = -1
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden, weight, targets, temperature=1.0):
    log_p = (hidden @ weight.T / temperature).log_softmax(-1)
    counted = targets >= 0
    return log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0] * counted, -(log_p.exp() * log_p).sum(-1) * counted


@given(st.integers(1, 130), st.sampled_from([0.5, 1.0, 1.7]), st.integers(0, 5))
def test_values_and_gradients_equal_the_whole_table(chunk, temperature, seed):
    ours, reference = make(seed=seed), make(seed=seed)
    weights = torch.randn(2, 23, generator=torch.Generator().manual_seed(9))
    found = token_log_probs(*ours, chunk_vocab=chunk, temperature=temperature)
    expected = plain(*reference, temperature)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    (torch.stack(found) * weights).sum().backward()
    (torch.stack(expected) * weights).sum().backward()
    for a, b in zip(ours[:2], reference[:2]):
        assert (a.grad - b.grad).abs().max() < 1e-5 * b.grad.abs().max()


def test_gradients_equal_finite_differences():
    hidden, weight, targets = make(5, 3, 17, torch.float64)
    function = lambda h, w: token_log_probs(h, w, targets, chunk_vocab=6, temperature=0.8)
    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_far_logits_neither_overflow_nor_vanish():
    hidden, weight, targets = make()
    found, entropy = token_log_probs(hidden * 200, weight, targets, chunk_vocab=10)
    expected, _ = plain(hidden * 200, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    assert torch.isfinite(entropy).all() and (entropy >= -1e-3).all()


def test_chunks_of_bfloat16_rows_are_added_up_in_float32():
    hidden, weight, targets = make(64, 32, 4001)
    narrow = hidden.detach().bfloat16().requires_grad_()
    whole = token_log_probs(narrow, weight.bfloat16().float(), targets, chunk_vocab=4001)[0]
    chunked = token_log_probs(narrow, weight, targets, chunk_vocab=100)[0]
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(whole, chunked, rtol=1e-5, atol=1e-5)


class Doubled(MatmulBackend):
    def forward(self, x, weight, part=0):
        return torch.nn.functional.linear(x, 2 * weight)


@pytest.mark.parametrize("product", [None, Doubled()])
def test_a_head_with_a_number_format_is_asked_itself(product):
    hidden, weight, targets = make()
    head = Linear(16, 101)
    head.weight.data.copy_(weight.detach())
    head.numerics = product
    found = head_log_probs(head, hidden, targets, chunk_rows=7)
    scaled = weight.detach() * (1 if product is None else 2)
    for a, b in zip(found, plain(hidden, scaled, targets)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    found[0].sum().backward()
    assert head.weight.grad is not None and hidden.grad is not None
