"""On a GPU: every kernel of a step against its plain form in float64, and whole steps against steps without kernels."""

import pytest
import torch
from on_gpu import waiting_for_the_device_is_an_error
from torch.nn import functional as F

from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics import heads, joined
from isoflop.numerics.embedding import Embedding, add_rows
from isoflop.numerics.error import relative_error
from isoflop.numerics.step_weights import step_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def randn(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=generator).to(dtype)


def gradients(call, operands):
    """Results and gradients of the operands, for gradients of the results that bf16 holds exactly."""
    leaves = [x.detach().clone().requires_grad_() for x in operands]
    results = call(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    d_results = [randn(*y.shape, seed=7 + i).to(y.dtype) for i, y in enumerate(results)]
    torch.autograd.backward(list(results), d_results)
    return [y.detach() for y in results] + [x.grad for x in leaves]


ANGLES = [torch.rand(48, 32, device="cuda") * 3 for _ in range(2)] if torch.cuda.is_available() else []


def angles(x, channels):
    return [
        angle[: x.shape[1], :channels].to(x.dtype if x.dtype == torch.float64 else torch.float32) for angle in ANGLES
    ]


CONTRACT = {
    "swiglu": (joined.swiglu, lambda: [randn(3, 7, 2 * 264)]),
    "swiglu of a long row": (joined.swiglu, lambda: [randn(5, 2 * 5504)]),
    "swiglu with weights": (joined.swiglu, lambda: [randn(33, 2 * 1160), randn(33, 1, dtype=torch.float32)]),
    "turned heads": (lambda x: heads.turned_heads(x, 5, 5, *angles(x, 32)), lambda: [randn(2, 48, 15, 64)]),
    "turned grouped heads": (lambda x: heads.turned_heads(x, 6, 2, *angles(x, 20)), lambda: [randn(2, 40, 10, 40)]),
    "latent heads": (
        lambda q, kv, k: heads.turned_latent_heads(q, kv, k[..., 8:], 48, *angles(q, 16)),
        lambda: [randn(2, 40, 5, 80), randn(2, 40, 5, 112), randn(2, 40, 40)],
    ),
    "norm": (lambda x, w: joined.rms_norm(x, w, 1e-6), lambda: [randn(2, 600, 768), randn(768, dtype=torch.float32)]),
    "norm of the stream": (
        lambda x, w: joined.normed(x, None, w, 1e-6),
        lambda: [randn(3, 160), randn(160, dtype=torch.float32)],
    ),
    "float32 scores": (joined.wide_product, lambda: [randn(512, 256), randn(64, 256, dtype=torch.float32)]),
    "norm of the stream and an update": (
        lambda x, u, w: joined.normed(x, u, w, 1e-6),
        lambda: [randn(700, 2048), randn(700, 2048, seed=1), randn(2048, dtype=torch.float32)],
    ),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_kernels_compute_what_their_plain_forms_do_in_float64(name):
    call, operands = CONTRACT[name]
    operands = operands()
    with waiting_for_the_device_is_an_error():
        found = gradients(call, operands)
    exact = gradients(call, [x.double() for x in operands])
    rounded = gradients(call, [x.float() for x in operands])
    for kernel, plain, reference in zip(found, rounded, exact, strict=True):
        assert kernel.shape == reference.shape and torch.isfinite(kernel).all()
        limit = 6e-3 if kernel.dtype == torch.bfloat16 else 1e-5 if name == "float32 scores" else 4e-3
        assert relative_error(kernel, reference) < limit, name
        assert relative_error(plain, reference) < 1e-5, "the reference is one"


def test_rows_of_a_token_are_summed_in_float32():
    rows, places = randn(600, 1160), torch.randint(600, (200, 6), device="cuda")
    plus, exact = randn(200, 1160, seed=1), rows.double()[places].sum(1)
    assert relative_error(joined.summed_rows(rows, places), exact) < 3e-3
    assert relative_error(joined.summed_rows(rows, places, plus), exact + plus.double()) < 3e-3


@pytest.mark.parametrize("width", [1160, 1])
def test_rows_are_spread_to_all_places_of_their_token(width):
    x, slot_of_row = randn(200, width), torch.randperm(1200, device="cuda")
    row_of_slot = torch.empty_like(slot_of_row).scatter_(0, slot_of_row, torch.arange(1200, device="cuda"))
    token_of_row = slot_of_row // 6
    assert torch.equal(joined.spread_rows(x, token_of_row, row_of_slot.view(200, 6)), x[token_of_row])


def test_bf16_is_added_to_float32_exactly():
    total, x = randn(70, 1001, dtype=torch.float32), randn(70, 1001, seed=1)
    expected = total + x.float()
    joined.add_to(total, x)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("width", [2048, 1160, 1])
def test_rows_of_an_embedding_and_their_gradients(width):
    tokens = torch.randint(500, (4, 700), device="cuda")
    tokens[:, ::3] = 7  # one token is a third of them, ids from 500 on are none
    layer, exact = Embedding(600, width).cuda(), torch.zeros(600, width, device="cuda", dtype=torch.float64)
    for micro_batch in range(2):
        d_x = randn(*tokens.shape, width, seed=micro_batch)
        exact.index_add_(0, tokens.flatten(), d_x.flatten(0, 1).double())
        with waiting_for_the_device_is_an_error(), step_weights(layer, torch.bfloat16):
            x = layer.rows(tokens, torch.bfloat16)
            x.backward(d_x)
        assert torch.equal(x, layer.weight[tokens].bfloat16())
        again, before = torch.zeros_like(exact, dtype=torch.float32), layer.weight.grad.clone()
        assert relative_error(before, exact) < 1e-6 and not before[500:].any()
        add_rows(again, tokens.flatten(), d_x.flatten(0, 1))
        if not micro_batch:
            assert torch.equal(again, before), "the same sums each time"


def once(logits, targets):
    """Loss and gradient of rows that are read once."""
    total, gradient, factors = joined.loss_and_gradient(logits, targets)
    assert gradient.data_ptr() == logits.data_ptr() and factors is not None
    return total, gradient.double() * factors.double()[:, None]


def test_rows_are_scaled_by_their_factors():
    x, y, factors, by = (
        randn(37, 1160),
        randn(37, 1160, seed=1),
        torch.rand(37, device="cuda"),
        torch.rand((), device="cuda"),
    )
    for found, of in zip(joined.scaled_rows(x, y, factors, by), (x, y), strict=True):
        assert relative_error(found, of.double() * factors.double()[:, None] * by.double()) < 3e-3


def twice(logits, targets):
    losses, gradient = joined.losses_and_gradient(logits, targets)
    assert gradient.data_ptr() == logits.data_ptr()
    return losses.sum(), gradient


@pytest.mark.parametrize("n_columns", [17, 5000, 102_400])
@pytest.mark.parametrize("reading", [once, twice])
def test_cross_entropy_and_its_gradient_are_those_of_float64(reading, n_columns):
    logits, targets = 3 * randn(37, n_columns), torch.randint(n_columns, (37,), device="cuda")
    targets[5], targets[6], targets[7] = -1, 0, n_columns - 1
    logits[8, n_columns // 2 :] += 90  # larger by e^90 than all before
    logits[9, -1] += 200
    logits[10, : n_columns // 2] = float("-inf")
    targets[10] = n_columns - 1
    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(exact, targets, ignore_index=-1, reduction="sum")
    loss.backward()
    found, gradient = reading(logits, targets)
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-6)
    for row, exact_row in zip(gradient, exact.grad, strict=True):
        assert relative_error(row, exact_row) < 4e-3 if exact_row.any() else not row.any()
    logits[3, 4] = float("nan")
    assert reading(logits, targets)[0].isnan(), "divergence must show"


SHAPE = ModelConfig(2, 256, 4, 2, 64, 704, 20_480, 128, init_std=0.05)


def accumulated(kernels: bool, monkeypatch, n_micro_batches: int = 3):
    """Loss and gradients of a step of several micro-batches."""
    if not kernels:
        for module in (heads, joined):
            monkeypatch.setattr(module, "has_kernels", lambda x: False)
    model = Transformer(SHAPE, torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(
        SHAPE.vocab_size, (n_micro_batches, 4, 129), generator=torch.Generator().manual_seed(1)
    ).cuda()
    total = torch.zeros((), device="cuda")
    with step_weights(model, torch.bfloat16 if kernels else None):
        for windows in tokens:
            loss = model.loss_sum(windows[:, :-1], windows[:, 1:], chunk_tokens=200)
            (loss / 1000).backward()
            total += loss.detach()
    assert not any(layer.held for layer in (model.head, model.blocks[0].mlp.down)), "nothing is left of a step"
    exact = Transformer(SHAPE, torch.float64).cuda().double()
    exact.load_state_dict(model.state_dict())
    for windows in tokens:
        logits = exact.logits(windows[:, :-1]).flatten(0, 1)
        (F.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum") / 1000).backward()
    return total, {name: p.grad for name, p in model.named_parameters()}, dict(exact.named_parameters())


def test_a_step_with_kernels_is_as_near_to_float64_as_one_without(monkeypatch):
    loss, found, exact = accumulated(True, monkeypatch)
    plain_loss, plain, _ = accumulated(False, monkeypatch)
    assert float(loss) == pytest.approx(float(plain_loss), rel=2e-5)
    for name, gradient in found.items():
        error, allowed = (relative_error(g, exact[name].grad) for g in (gradient, plain[name]))
        assert gradient.dtype == torch.float32 and error < 1.1 * allowed + 1e-4, (name, error, allowed)
