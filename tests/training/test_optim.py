"""What is decayed, and that the optimizer is AdamW as written down."""

import math

import pytest
import torch

from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.training.optim import adamw

CONFIG = ModelConfig(
    n_layers=2, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_ff=16, vocab_size=32, seq_len=8, init_std=0.1
)


def optimizer_of(model, **changes):
    settings = {"learning_rate": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, **changes}
    return adamw(model, **settings)


def test_every_matrix_is_decayed_and_no_norm_weight_is():
    model = Transformer(CONFIG)
    decay_of = {id(p): group["weight_decay"] for group in optimizer_of(model).param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(decay_of) == len(named)
    for name, parameter in named.items():
        assert decay_of[id(parameter)] == (0.0 if name.endswith("norm.weight") else 0.1), name
    assert {name for name in named if name.endswith("norm.weight")} == {name for name, p in named.items() if p.ndim < 2}


def test_a_step_without_gradient_signal_shrinks_matrices_by_rate_times_decay_only():
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_of(model).step()
    for name, parameter in model.named_parameters():
        shrunk = 1.0 if name.endswith("norm.weight") else 1.0 - 0.01 * 0.1
        torch.testing.assert_close(parameter.detach(), before[name] * shrunk, rtol=1e-6, atol=0)


def test_three_steps_equal_adamw_computed_by_hand():
    weight, rate, beta1, beta2, eps, decay = 0.7, 0.01, 0.9, 0.95, 1e-8, 0.1
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(weight)
    optimizer = optimizer_of(model)
    first = second = 0.0
    for step, gradient in enumerate((0.5, -2.0, 0.25), start=1):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        weight -= rate * decay * weight
        weight -= rate * (first / (1 - beta1**step)) / (math.sqrt(second / (1 - beta2**step)) + eps)
        assert model.weight.item() == pytest.approx(weight, rel=1e-5)
