"""The weight stays float32 under one name, whatever the format of the product."""

import pytest
import torch

from isoflop.numerics.linear import Linear


def linear(d_in=24, d_out=10):
    layer = Linear(d_in, d_out)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


def test_state_holds_one_weight_and_no_bias():
    assert {name: tuple(p.shape) for name, p in linear().state_dict().items()} == {"weight": (10, 24)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_product_and_gradients_follow_the_input_format(dtype, tolerance):
    layer = linear()
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    exact = x.detach().double() @ layer.weight.detach().double().T
    assert y.dtype == dtype and layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    assert ((y.double() - exact).abs().max() / exact.abs().max()).item() < tolerance
    d_weight = x.detach().double().sum((0, 1)).expand(10, 24)
    assert ((layer.weight.grad - d_weight).abs().max() / d_weight.abs().max()).item() < tolerance
