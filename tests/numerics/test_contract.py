"""One contract for all number formats: what a layer promises whatever its arithmetic."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from isoflop.numerics.assign import assign
from isoflop.numerics.error import relative_error
from isoflop.numerics.linear import Linear
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule

QUIET = {"noise": []}


def photonic(preset="lin2024", backward="ste", **core) -> PhotonicSection:
    return PhotonicSection(preset=preset, core=core, backward=backward)


FORMATS = {
    "float32": ("float32", None, 1e-6),
    "bfloat16": ("bfloat16", None, 1e-2),
    "fp8_block": ("fp8_block", None, 6e-2),
    "fp8_rowwise": ("fp8_rowwise", None, 6e-2),
    "fp8_tensorwise": ("fp8_tensorwise", None, 7e-2),
    "photonic": ("photonic", photonic(), 3e-2),
    "photonic 6 bit": ("photonic", photonic(input_bits=6, weight_bits=6, adc_bits=6), 8e-2),
    "photonic core": ("photonic", photonic(backward="core"), 3e-2),
    "photonic dx_core": ("photonic", photonic(backward="dx_core"), 3e-2),
    "photonic offset": ("photonic", photonic(signs="offset"), 6e-2),
    "photonic two_pass": ("photonic", photonic(signs="two_pass"), 4e-2),
    "photonic field": ("photonic", photonic(signs="field"), 4e-2),
    "photonic tiled": ("photonic", photonic(max_fan_in=64, tile_fan_in=True), 4e-2),
    "photonic quiet": ("photonic", photonic(noise=[]), 3e-2),
    "ideal": ("photonic", photonic("ideal"), 1e-6),
}
"""Name -> format, settings, and how far products and gradients may be from the exact ones (rms)."""
ALL = pytest.mark.parametrize("name", FORMATS)


def section_of(name: str) -> NumericsSection:
    format, settings, _ = FORMATS[name]
    rules = (Rule("*", format),)
    return NumericsSection(rules) if settings is None else NumericsSection(rules, photonic=settings)


class TwoLayers(nn.Module):
    def __init__(self, d_in=200, d_inner=136, d_out=24):
        super().__init__()
        self.first, self.last = Linear(d_in, d_inner), Linear(d_inner, d_out)
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, 0.0, weight.shape[1] ** -0.5, generator=generator)

    def forward(self, x):
        return self.last(F.silu(self.first(x)))


def model_of(name: str, seed=3) -> tuple[TwoLayers, NoiseKey]:
    model, noise_key = TwoLayers(), NoiseKey(seed)
    assign(model, section_of(name), noise_key)
    return model, noise_key


def inputs(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(model, x, d_y):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(d_y)
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


@ALL
def test_state_and_parameters_are_those_of_the_plain_model(name):
    plain, (model, _) = TwoLayers(), model_of(name)
    assert {k: (v.shape, v.dtype) for k, v in model.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in plain.state_dict().items()
    }
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    model.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(200,), (3, 200), (2, 5, 200), (0, 200), (129, 200)])
def test_results_keep_shape_and_dtype_of_the_input_and_weights_get_float32_gradients(name, dtype, shape):
    model, _ = model_of(name)
    x = inputs(*shape, dtype=dtype).requires_grad_()
    y = model.first(x)
    assert y.shape == (*shape[:-1], 136) and y.dtype == dtype
    y.sum().backward()
    assert x.grad.shape == x.shape and x.grad.dtype == dtype
    assert model.first.weight.grad.dtype == torch.float32 and torch.isfinite(model.first.weight.grad).all()


@ALL
def test_product_and_both_gradients_are_near_the_exact_ones(name):
    model, _ = model_of(name)
    x, d_y = inputs(192, 200), inputs(192, 136, seed=2)
    weight = model.first.weight.detach().double()
    y, d_x, d_weight = gradients(model.first, x, d_y)
    limit = FORMATS[name][2]
    for found, exact in (
        (y, x.double() @ weight.T),
        (d_x, d_y.double() @ weight),
        (d_weight, d_y.double().T @ x.double()),
    ):
        assert relative_error(found, exact) < limit


@ALL
def test_the_same_key_gives_the_same_bits_and_global_randomness_changes_nothing(name):
    model, noise_key = model_of(name)
    x, d_y = inputs(40, 200), inputs(40, 24, seed=2)
    noise_key.set(5, 1)
    first = gradients(model, x, d_y)
    noise_key.set(6, 0)
    other = gradients(model, x, d_y)
    torch.manual_seed(99)
    torch.rand(7)
    noise_key.set(5, 1)
    again = gradients(model, x, d_y)
    noisy = any(module.noisy for module in (model.first.numerics, model.last.numerics))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], other[0]) is not noisy
    resumed, at = model_of(name)  # a new process at the same place
    at.set(5, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(resumed, x, d_y), strict=True))


@ALL
def test_layers_seeds_and_micro_batches_draw_different_noise(name):
    model, noise_key = model_of(name)
    if not model.first.numerics.noisy:
        pytest.skip(f"{name} has no noise")
    x = inputs(40, 200)
    twin = copy.deepcopy(model.first.weight)
    results = [model.first.numerics(x, twin)]
    noise_key.set(0, 1)
    results.append(model.first.numerics(x, twin))
    results.append(model.first.numerics(x, twin, 1))
    results.append(model.last.numerics(x, twin))
    results.append(model_of(name, seed=4)[0].first.numerics(x, twin))
    for a in range(len(results)):
        for b in range(a):
            assert not torch.equal(results[a], results[b]), (a, b)


@ALL
def test_a_recomputed_forward_pass_gives_the_same_gradients(name):
    model, noise_key = model_of(name)
    x, d_y = inputs(40, 200), inputs(40, 24, seed=2)
    noise_key.set(2, 0)
    expected = gradients(model, x, d_y)
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = checkpoint(model, x, use_reentrant=False)
    y.backward(d_y)
    found = [y.detach(), x.grad, *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@ALL
def test_evaluation_draws_anew_at_every_call_and_repeats_from_its_start(name):
    model, noise_key = model_of(name)
    model.eval()
    x = inputs(40, 200)
    with torch.no_grad():
        noise_key.set(9, 1 << 40)
        first = [model(x), model(x)]
        noise_key.set(9, 1 << 40)
        again = [model(x), model(x)]
    assert torch.equal(first[0], first[1]) is not model.first.numerics.noisy
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@ALL
def test_gradients_of_micro_batches_add_up(name):
    model, noise_key = model_of(name)
    x, d_y = inputs(96, 200), inputs(96, 24, seed=2)
    parts = []
    for index, rows in enumerate((slice(0, 32), slice(32, 96))):
        noise_key.set(1, index)
        parts.append(gradients(model, x[rows], d_y[rows])[2:])
    model.zero_grad()
    for index, rows in enumerate((slice(0, 32), slice(32, 96))):
        noise_key.set(1, index)
        model(x[rows]).backward(d_y[rows])
    for parameter, a, b in zip(model.parameters(), *parts, strict=True):
        assert torch.equal(parameter.grad, a + b)


@ALL
def test_zeros_and_outliers_stay_finite(name):
    model, _ = model_of(name)
    spiked = inputs(8, 200)
    spiked[3, 7] = 1e6
    for x in (torch.zeros(8, 200), spiked):
        for value in gradients(model, x, torch.ones(8, 24)):
            assert torch.isfinite(value).all()
    with torch.no_grad():
        model.first.weight.zero_()
    for value in gradients(model.first, inputs(8, 200), torch.zeros(8, 136)):
        assert torch.isfinite(value).all()


@ALL
def test_doubled_operands_double_every_result(name):
    model, noise_key = model_of(name)
    x, d_y = inputs(40, 200), inputs(40, 136, seed=2)
    noise_key.set(1, 0)
    y, d_x, d_weight = gradients(model.first, x, d_y)
    y2, d_x2, d_weight2 = gradients(model.first, 2 * x, 4 * d_y)
    for once, times, factor in ((y, y2, 2), (d_x, d_x2, 4), (d_weight, d_weight2, 8)):
        assert relative_error(times, factor * once) < 1e-6


@ALL
def test_compiled_layers_compute_what_eager_ones_do(name):
    model, noise_key = model_of(name)
    x, d_y = inputs(40, 200), inputs(40, 24, seed=2)
    noise_key.set(4, 2)
    expected = gradients(model, x, d_y)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for found, exact in zip(gradients(compiled, x, d_y), expected, strict=True):
        assert relative_error(found, exact) < 1e-5
    noise_key.set(5, 0)
    later = gradients(compiled, x, d_y)[0]  # a new step is data, not a new program
    assert torch.equal(later, gradients(model, x, d_y)[0]) or relative_error(later, model(x)) < 1e-5


@pytest.mark.slow
@ALL
def test_layers_compiled_to_machine_code_compute_what_eager_ones_do(name):
    if name.startswith("fp8"):
        pytest.skip("the C++ code generator of torch 2.13 fails on padded FP8 tiles (AssertionError in codegen/cpp.py)")
    model, noise_key = model_of(name)
    x, d_y = inputs(40, 200), inputs(40, 24, seed=2)
    noise_key.set(4, 2)
    expected = gradients(model, x, d_y)
    torch.compiler.reset()
    for found, exact in zip(gradients(torch.compile(model), x, d_y), expected, strict=True):
        # Fused arithmetic rounds otherwise, so a value at the edge of a converter's step may fall to its other side:
        # one of a thousand results, by a step of 1/128 of full scale, is 1e-3.
        assert relative_error(found, exact) < (3e-3 if "photonic" in name else 1e-4)


@ALL
def test_compiled_layers_are_one_program_however_many_there_are(name):
    torch.compiler.reset()
    layers = nn.ModuleList(Linear(24, 24) for _ in range(4))
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, 24**-0.5, generator=torch.Generator().manual_seed(0))
    assign(layers, section_of(name), NoiseKey(0))
    programs = CompileCounter()
    x = inputs(8, 24).requires_grad_()
    for layer in layers:
        torch.compile(layer, backend=programs, dynamic=False)(x)
    assert programs.frame_count == 1


ALMOST_NOTHING = {
    "rows of zeros": lambda x: x * torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])[:, None],
    "subnormal rows": lambda x: torch.full_like(x, 1e-40),
    "the smallest number": lambda x: torch.full_like(x, 1.4e-45),
    "one tiny row": lambda x: torch.cat([x[:5], x[5:] * 1e-38]),
    "one huge value": lambda x: x.index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(1e30)),
    "tiny and huge": lambda x: torch.cat([x[:3] * 1e-39, x[3:] * 1e20]),
}


@ALL
@pytest.mark.parametrize("case", ALMOST_NOTHING)
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-41])
def test_rows_and_weights_of_almost_nothing_give_finite_results_and_gradients(name, case, scale):
    model, clock = model_of(name)
    clock.set(1, 0)
    with torch.no_grad():
        model.first.weight.mul_(scale)
    found = gradients(model, ALMOST_NOTHING[case](inputs(6, 200)), inputs(6, 24, seed=2))
    assert all(torch.isfinite(value).all() for value in found)
