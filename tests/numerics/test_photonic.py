"""The adapter equals the core it stands for, and each backward way is what its name says."""

import pytest
import torch

from isoflop.errors import RecipeError
from isoflop.numerics.assign import assign
from isoflop.numerics.error import relative_error
from isoflop.numerics.linear import Linear
from isoflop.numerics.noise import NoiseKey, keyed_normal
from isoflop.numerics.photonic import FEEDBACK, PhotonicProduct
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule, core_of
from isoflop.optics.config import load_preset
from isoflop.optics.tensor_core import TensorCore

SIGNS = ("fold", "offset", "two_pass", "field")


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(product, x, w, d_y):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    product(x, w).backward(d_y)
    return x.grad, w.grad


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_results_are_those_of_the_core_and_ste_gradients_those_of_autograd_through_it(signs, bits):
    config = load_preset(
        "lin2024", noise=(), signs=signs, input_bits=bits, weight_bits=bits, extinction_db=float("inf")
    )
    product, core = PhotonicProduct(config, NoiseKey(0), 0), TensorCore(config)
    x, w, d_y = randn(48, 96), randn(32, 96, seed=1), randn(48, 32, seed=2)
    assert torch.equal(product(x, w), core.matmul(x, w))
    exact = gradients(core.matmul, x, w, d_y)
    for found, wanted in zip(gradients(product, x, w, d_y), exact, strict=True):
        # autograd through the core rounds its operands to ideal ones; the adapter keeps them as encoded
        assert relative_error(found, wanted) < {32: 1e-5, 8: 0.02, 4: 0.3}[bits]


@pytest.mark.parametrize("signs", SIGNS)
def test_ste_gradients_equal_finite_differences_of_the_noiseless_core(signs):
    config = load_preset("ideal", signs=signs)
    product, core = PhotonicProduct(config, NoiseKey(0), 0), TensorCore(config)
    x, w, d_y = (randn(*shape, seed=s, dtype=torch.float64) for s, shape in enumerate([(5, 7), (4, 7), (5, 4)]))
    d_x, d_w = gradients(product, x, w, d_y)
    for of, found in ((x, d_x), (w, d_w)):
        numeric = torch.zeros_like(of)
        for place in range(of.numel()):
            values = []
            for step in (1e-6, -1e-6):
                moved = of.clone()
                moved.view(-1)[place] += step
                operands = (moved, w) if of is x else (x, moved)
                values.append((core.matmul(*operands) * d_y).sum())
            numeric.view(-1)[place] = (values[0] - values[1]) / 2e-6
        assert relative_error(found, numeric) < 1e-5


@pytest.mark.parametrize("backward", ["core", "dx_core"])
def test_gradients_on_the_core_are_unbiased_over_draws(backward):
    exact_bits = dict.fromkeys(("input_bits", "weight_bits", "adc_bits"), 32)
    config = load_preset("lin2024", **exact_bits, extinction_db=float("inf"), power_mw=0.01, range_std=100.0)
    noise_key, n_draws = NoiseKey(0), 200
    product = PhotonicProduct(config, noise_key, 0, backward=backward)
    x, w, d_y = randn(24, 40), randn(16, 40, seed=1), randn(24, 16, seed=2)
    draws = []
    for step in range(n_draws):
        noise_key.set(step, 0)
        draws.append(gradients(product, x, w, d_y))
    d_x, d_w = (torch.stack(drawn) for drawn in zip(*draws, strict=True))
    for values, exact in ((d_x, d_y @ w), (d_w, d_y.T @ x)):
        if backward == "dx_core" and values is d_w:  # digital, from operands that were encoded exactly
            assert relative_error(values[0], exact) < 1e-5 and torch.equal(values[0], values[1])
            continue
        assert relative_error(values[0], exact) > 0.01
        in_errors = (values.mean(0) - exact) / (values.std(0) / n_draws**0.5)
        assert in_errors.abs().max() < 5 and 0.85 < in_errors.square().mean().sqrt() < 1.15


def test_clipped_results_get_no_gradient_and_are_counted():
    config = load_preset("lin2024", noise=(), range_std=1.0)
    product = PhotonicProduct(config, NoiseKey(0), 0)
    x, w = randn(64, 50).requires_grad_(), randn(20, 50, seed=1)
    found = TensorCore(config).product(x.detach(), w)
    assert found.n_clipped > 100
    product(x, w).backward(torch.where(found.clipped, 1.0, 0.0))
    assert (x.grad == 0).all()
    assert product.counts.tolist() == [found.n_clipped, 64 * 20]


def two_layers(backward):
    model = torch.nn.ModuleDict({"first": Linear(30, 20), "middle": Linear(20, 20), "last": Linear(20, 10)})
    for layer in model.values():
        torch.nn.init.normal_(layer.weight, 0, 0.3, generator=torch.Generator().manual_seed(len(layer.weight)))
    section = NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection("ideal", {}, backward))
    noise_key = NoiseKey(7)
    assign(model, section, noise_key)
    return model, noise_key


def test_direct_feedback_sends_the_last_error_through_fixed_matrices_past_the_layers_between():
    model, noise_key = two_layers("dfa")
    x, d_y = randn(12, 30), randn(12, 10, seed=2)
    first = model["first"](x)
    inner = first.relu()
    middle = model["middle"](inner)
    model["last"](middle.relu()).backward(d_y)
    key = torch.zeros_like(noise_key.key)
    key[0] = noise_key.key[0]
    for number, (before, d_weight, data) in enumerate(
        ((first, model["first"].weight.grad, x), (middle, None, None)), 1
    ):
        fixed = keyed_normal(key, [number, FEEDBACK], [10, 20], torch.float32, torch.device("cpu")) / 10**0.5
        delta = (d_y @ fixed) * (before > 0)
        if d_weight is not None:
            assert relative_error(d_weight, delta.T @ data) < 1e-5
    assert relative_error(model["last"].weight.grad, d_y.T @ middle.relu()) < 1e-5


def test_direct_feedback_refuses_layers_that_see_other_rows():
    model, _ = two_layers("dfa")
    inner = model["middle"](model["first"](randn(12, 30)).relu()).relu()
    with pytest.raises(RecipeError, match=r'"dfa" feeds the error of the last photonic layer \(1 rows\).*12 rows'):
        model["last"](inner.mean(0, keepdim=True)).sum().backward()


def test_stochastic_rounding_draws_from_the_same_key():
    section = PhotonicSection("lin2024", {"stochastic_rounding": True, "input_bits": 4, "noise": []})
    noise_key = NoiseKey(0)
    product = PhotonicProduct(core_of(section), noise_key, 0)
    x, w = randn(20, 30), randn(10, 30, seed=1)
    first = product(x, w)
    noise_key.set(1, 0)
    assert product.noisy and not torch.equal(product(x, w), first)
    noise_key.set(0, 0)
    assert torch.equal(product(x, w), first)
