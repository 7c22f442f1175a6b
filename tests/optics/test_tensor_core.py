"""The analytic core: exact when nothing is wrong with it, and what each imperfection does."""

import pytest
import torch

from isoflop.optics.config import OpticsError, load_preset
from isoflop.optics.tensor_core import TensorCore

SIGNS = ("fold", "offset", "two_pass", "field")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def operands(m=9, k=70, n=5, dtype=torch.float64, seed=0):
    g = generator(seed)
    return torch.randn(m, k, dtype=dtype, generator=g), torch.randn(n, k, dtype=dtype, generator=g)


def relative(found, true):
    return ((found - true).norm() / true.norm()).item()


@pytest.mark.parametrize("signs", SIGNS)
def test_an_ideal_core_is_the_product(signs):
    x, w = operands()
    assert relative(TensorCore(load_preset("ideal", signs=signs)).matmul(x, w), x @ w.T) < 1e-6


def test_noise_needs_a_generator():
    with pytest.raises(OpticsError, match="needs a generator"):
        TensorCore(load_preset("lin2024")).matmul(*operands())
