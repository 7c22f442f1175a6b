"""The analytic core: exact when nothing is wrong with it, and what each imperfection does to a product."""

import dataclasses
import math

import pytest
import torch

from isoflop.optics.config import OpticsError, load_preset
from isoflop.optics.signs import to_numbers
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.waveform import WaveformCore

SIGNS = ("fold", "offset", "two_pass", "field")
CORES = (TensorCore, WaveformCore)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def operands(m=9, k=70, n=5, dtype=torch.float64, seed=0):
    g = generator(seed)
    return torch.randn(m, k, dtype=dtype, generator=g), torch.randn(n, k, dtype=dtype, generator=g)


def relative(found, true):
    return ((found - true).norm() / true.norm()).item()


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize(("sign_x", "sign_w"), [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 0)])
def test_an_ideal_core_is_the_product_for_any_signs(signs, core, sign_x, sign_w):
    x, w = operands()
    x = x.abs() * sign_x if sign_x else x
    w = w.abs() * sign_w if sign_w else w
    assert relative(core(load_preset("ideal", signs=signs)).matmul(x, w), x @ w.T) < 1e-6


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("signs", SIGNS)
def test_minus_times_minus_is_plus_over_a_grid(signs, core):
    a = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    config = load_preset("ideal", signs=signs, input_scale="tensor", weight_scale="tensor")
    found = core(config).matmul(a[:, None], a[:, None])
    assert (found - torch.outer(a, a)).abs().max() < 1e-12
    assert (found - found.flip(0).flip(1)).abs().max() < 1e-12


@pytest.mark.parametrize("signs", ["offset", "two_pass", "field"])
def test_dark_light_cancels_exactly_except_where_it_is_folded(signs):
    x, w = operands()
    config = load_preset("ideal", signs=signs, extinction_db=12.0)
    assert relative(TensorCore(config).matmul(x, w), x @ w.T) < 1e-12
    folded = dataclasses.replace(config, signs="fold")
    assert 1e-3 < relative(TensorCore(folded).matmul(x, w), x @ w.T) < 0.05


@pytest.mark.parametrize("core", CORES)
def test_zeros_of_a_sparse_input_add_nothing_although_darkness_leaks(core):
    x, w = operands()
    x = torch.where(x.abs() < 1.0, 0.0, x)
    config = load_preset("ideal", extinction_db=12.0)
    assert relative(core(config).matmul(x, w + 5.0), x @ (w + 5.0).T) < 1e-12


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_the_offset_scheme_errs_by_at_most_the_adc_bin_it_doubles(bits):
    config = load_preset("ideal", signs="offset", adc_bits=bits, full_scale=40.0, input_scale="tensor")
    x, w = operands(m=50)
    w = w / w.abs().amax(1, keepdim=True)
    x = x / x.abs().max()
    found = TensorCore(config).product(x, w)
    lsb = 2 * 40.0 / (2**bits - 1)
    error = (found.y - x @ w.T).abs().max().item()
    assert found.n_clipped == 0
    assert 0.5 * lsb < error <= lsb * (1 + 1e-9)  # half a bin of sum(u w), doubled


@pytest.mark.parametrize("encoding", ["asin", "raw", "linear"])
@pytest.mark.parametrize("signs", SIGNS)
def test_the_straight_through_gradient_is_that_of_the_noiseless_core(signs, encoding):
    config = load_preset("lin2024", signs=signs, encoding=encoding, leak_s=1e-7).quiet()
    exact = dataclasses.replace(config, input_bits=32, weight_bits=32, adc_bits=32, full_scale=1e6)
    x, w = operands(m=3, k=6, n=2)
    # The largest of a row sets a digital scale, which has no gradient: keep it out of the differences.
    x[:, 0], w[:, 0] = 3.0, 3.0
    head = torch.randn(3, 2, dtype=torch.float64, generator=generator(3))
    gradients = []
    for chosen in (config, exact):
        xs, ws = x.clone().requires_grad_(), w.clone().requires_grad_()
        core = TensorCore(chosen)
        (core.product(xs, ws, full_scale=torch.tensor(1e6, dtype=torch.float64)).y * head).sum().backward()
        gradients.append((xs.grad, ws.grad))
    step = 1e-6
    core = TensorCore(exact)
    for which, operand in ((0, x), (1, w)):
        for index in [(0, 1), (1, 3), (1, 5)]:
            values = []
            for sign in (1, -1):
                moved = operand.clone()
                moved[index] += sign * step
                pair = (moved, w) if which == 0 else (x, moved)
                values.append((core.matmul(*pair) * head).sum().item())
            assert gradients[1][which][index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
    for quantised, smooth in zip(*gradients, strict=True):  # the same but for the operands, which are as encoded
        assert relative(quantised[:, 1:], smooth[:, 1:]) < 0.05


def test_clipped_results_have_no_gradient_and_are_counted():
    config = load_preset("ideal", full_scale=0.5, adc_bits=6)
    x, w = operands()
    x.requires_grad_()
    found = TensorCore(config).product(x, w)
    assert 0 < found.n_clipped < found.y.numel()
    found.y[found.clipped].sum().backward()
    assert x.grad is not None and x.grad.abs().max() == 0
    largest = x.detach().abs().amax(1, keepdim=True) * w.abs().amax(1)
    assert (found.y.detach().abs() <= 0.5 * largest + 1e-12).all()


def test_products_of_the_core_are_unbiased_gradients():
    """dx = delta W, streamed through the core with its noise, averages to the digital one (A12, 3b)."""
    bits = {"input_bits": 32, "weight_bits": 32, "adc_bits": 32}
    config = load_preset("lin2024", power_mw=0.01, extinction_db=math.inf, full_scale=1e6, **bits)
    delta, w = operands(m=4, k=10, n=30)
    g, core, true = generator(1), TensorCore(config), delta @ w.T
    draws = torch.stack([core.matmul(delta, w, g) for _ in range(1000)])
    error = draws.mean(0) - true
    assert (error.abs() < 5 * draws.std(0) / math.sqrt(1000)).all()
    assert draws.std(0).mean() > 1e-3


def test_tiles_are_summed_digitally_and_reset_the_fan_in():
    x, w = operands(k=70)
    tiled = load_preset("ideal", max_fan_in=32, tile_fan_in=True)
    assert relative(TensorCore(tiled).matmul(x, w), x @ w.T) < 1e-12
    with pytest.raises(OpticsError, match=r"fan-in 70 is beyond max_fan_in = 32.*tile_fan_in = true.*3 tiles"):
        TensorCore(load_preset("ideal", max_fan_in=32)).matmul(x, w)


def test_noise_needs_a_generator_and_repeats_with_it():
    core, (x, w) = TensorCore(load_preset("lin2024")), operands()
    with pytest.raises(OpticsError, match=r"needs a generator.*quiet"):
        core.matmul(x, w)
    assert torch.equal(core.matmul(x, w, generator(4)), core.matmul(x, w, generator(4)))
    assert not torch.equal(core.matmul(x, w, generator(4)), core.matmul(x, w, generator(5)))


def test_leading_dimensions_dtype_and_zeros_survive():
    core = TensorCore(load_preset("lin2024"))
    x = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    y = core.matmul(x, torch.zeros(4, 8), generator())
    assert y.shape == (2, 3, 4) and y.dtype == torch.bfloat16 and y.isfinite().all()


def test_encoded_numbers_are_close_to_the_inputs():
    x, _ = operands()
    for signs in SIGNS:
        core = TensorCore(load_preset("lin2024", signs=signs))
        inputs = core.encode_inputs(x)
        assert relative(core.numbers(inputs), x) < 0.02
        assert to_numbers(signs, inputs.value).shape == x.shape


def test_a_drifted_bias_acts_the_same_in_both_fidelities():
    x, w = operands()
    config = load_preset("ideal", bias_error_rad=0.1)
    one, other = (core(config).matmul(x, w) for core in CORES)
    assert relative(one, other) < 1e-12 and relative(one, x @ w.T) > 0.05


def test_stochastic_rounding_keeps_the_mean():
    x, w = operands(m=2, n=2, k=16)
    config = load_preset("ideal", encoding="linear", input_bits=3, weight_bits=3, stochastic_rounding=True)
    g, core = generator(), TensorCore(config)
    draws = torch.stack([core.matmul(x, w, g) for _ in range(2000)])
    assert relative(draws.mean(0), x @ w.T) < 0.02
    nearest = TensorCore(dataclasses.replace(config, stochastic_rounding=False)).matmul(x, w)
    assert relative(nearest, x @ w.T) > relative(draws.mean(0), x @ w.T)
    with pytest.raises(OpticsError, match="stochastic_rounding"):
        core.matmul(x, w)


def test_a_compiled_core_is_the_core():
    pytest.importorskip("torch._dynamo")
    core, (x, w) = TensorCore(load_preset("lin2024")), operands(dtype=torch.float32)
    noise = torch.randn(9, 5, generator=generator())
    compiled = torch.compile(lambda a, b: core.product(a, b, lambda like: noise).y, fullgraph=True, backend="aot_eager")
    assert relative(compiled(x, w), core.matmul(x, w, lambda like: noise)) < 1e-6
