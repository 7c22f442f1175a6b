"""On a GPU: products on the core near the exact ones, the same bits for the same key, compiled equals eager."""

import pytest
import torch
from on_gpu import waiting_for_the_device_is_an_error
from torch import nn

from isoflop.numerics.assign import assign
from isoflop.numerics.error import relative_error
from isoflop.numerics.linear import Linear
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CORES = {
    "lin2024": ({}, "ste", 3e-2),
    "core": ({}, "core", 4e-2),
    "two_pass": ({"signs": "two_pass"}, "ste", 4e-2),
    "tiled": ({"max_fan_in": 512, "tile_fan_in": True}, "ste", 4e-2),
}
"""Name -> changed fields, way backward, how far products may be from the exact ones (rms, bfloat16 included)."""
ALL = pytest.mark.parametrize("name", CORES)


def layer_of(name: str) -> tuple[Linear, NoiseKey]:
    core, backward, _ = CORES[name]
    layer, noise_key = Linear(1024, 512).cuda(), NoiseKey(3)
    nn.init.normal_(layer.weight, 0.0, 1024**-0.5, generator=torch.Generator("cuda").manual_seed(0))
    section = NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection("lin2024", core, backward))
    assign(nn.ModuleDict({"layer": layer}), section, noise_key)
    return layer, noise_key


def operands(n_rows=768, dtype=torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n_rows, width, generator=generator).to("cuda", dtype) for width in (1024, 512)]


def gradients(layer, weight, x, d_y):
    weight.grad = None
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(d_y)
    assert weight.grad is not None
    return [y.detach(), x.grad, weight.grad.clone()]


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradients_are_near_the_exact_ones_without_waiting(name, dtype):
    layer, _ = layer_of(name)
    x, d_y = operands(dtype=dtype)
    weight = layer.weight.detach().double()
    gradients(layer, layer.weight, x, d_y)
    with waiting_for_the_device_is_an_error():
        found = gradients(layer, layer.weight, x, d_y)
    exact = (x.double() @ weight.T, d_y.double() @ weight, d_y.double().T @ x.double())
    assert [value.dtype for value in found] == [dtype, dtype, torch.float32]
    for value, of in zip(found, exact, strict=True):
        assert relative_error(value, of) < CORES[name][2]


@ALL
def test_the_same_key_gives_the_same_bits(name):
    layer, noise_key = layer_of(name)
    x, d_y = operands()
    results = []
    for step in (5, 6, 5):
        noise_key.set(step, 0)
        results.append(gradients(layer, layer.weight, x, d_y))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    assert not torch.equal(results[0][0], results[1][0])


@ALL
def test_a_compiled_layer_computes_what_the_eager_one_does(name):
    layer, noise_key = layer_of(name)
    x, d_y = operands(dtype=torch.float32)
    noise_key.set(4, 2)
    expected = gradients(layer, layer.weight, x, d_y)
    torch.compiler.reset()
    for found, of in zip(gradients(torch.compile(layer), layer.weight, x, d_y), expected, strict=True):
        # A value at the edge of a converter's step may fall to its other side: 1 in thousands, by a whole step.
        assert relative_error(found, of) < 5e-3
