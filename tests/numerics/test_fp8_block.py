"""Blockwise FP8 against the definition: the 256 codes of E4M3, tiles one by one, and the published failure case."""

import pytest
import torch

from isoflop.interop import fp8 as released
from isoflop.numerics.error import relative_error
from isoflop.numerics.fp8_block import Fp8BlockProduct, dequantise, quantise_blocks, quantise_rows


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes_of_e4m3():
    """All finite values by the format's definition: 4 exponent bits of bias 7, 3 mantissa bits, no infinities."""
    values = {0.0}
    for exponent in range(16):
        for mantissa in range(8):
            if exponent == 15 and mantissa == 7:
                continue  # the only NaN
            size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
            values |= {size, -size}
    return torch.tensor(sorted(values), dtype=torch.float64)


def nearest(values, codes):
    place = torch.searchsorted(codes, values.double()).clamp(1, len(codes) - 1)
    low, high = codes[place - 1], codes[place]
    return torch.minimum((values - low).abs(), (high - values).abs())


def test_values_go_to_the_nearest_code_of_their_tile():
    x, codes = randn(6, 300) * torch.logspace(-3, 3, 6)[:, None], codes_of_e4m3()
    assert codes.max() == 448
    found, scale = quantise_rows(x, 128, False)
    assert scale.shape == (6, 3)
    for row in range(6):
        for group in range(3):
            part = slice(128 * group, min(300, 128 * (group + 1)))
            assert scale[row, group].item() == pytest.approx(x[row, part].abs().max().item() / 448, rel=1e-6)
            scaled = (x[row, part] / scale[row, group]).double()
            error = (found[row, part].double() - scaled).abs()
            assert torch.allclose(error, nearest(scaled, codes), atol=1e-12)


def test_weights_have_the_codes_and_scales_of_released_checkpoints():
    w = randn(200, 300)
    codes, scale = quantise_blocks(w, 128, False)
    wanted_codes, wanted_scale = released.quantise(w)
    assert torch.equal(scale, wanted_scale) and torch.equal(codes.float(), wanted_codes.float())
    assert torch.equal(dequantise(codes, scale, 128), released.dequantise(wanted_codes, wanted_scale))


def tiled(x, w, block=128):
    """x w^T tile by tile: each block of the sum is a product of codes, scaled once, added in float64."""
    y = torch.zeros(len(x), len(w), dtype=torch.float64)
    for start in range(0, x.shape[1], block):
        part = slice(start, start + block)
        x8, x_scale = quantise_rows(x[:, part], block, False)
        w8, w_scale = quantise_blocks(w[:, part], block, False)
        w_rows = w_scale[:, 0].repeat_interleave(block)[: len(w)]
        y += (x8.double() @ w8.double().T) * x_scale.double() * w_rows.double()
    return y


def test_the_product_is_the_sum_of_scaled_tile_products():
    x, w = randn(40, 500), randn(150, 500, seed=1)
    assert relative_error(Fp8BlockProduct()(x, w), tiled(x, w)) < 1e-6


def test_gradients_quantise_again_along_the_dimension_that_is_summed():
    x, w, d_y = randn(300, 260), randn(140, 260, seed=1), randn(300, 140, seed=2)
    x_leaf, w_leaf = x.clone().requires_grad_(), w.clone().requires_grad_()
    Fp8BlockProduct()(x_leaf, w_leaf).backward(d_y)
    along = lambda matrix: dequantise(*quantise_rows(matrix, 128, False), 128).double()
    w8 = dequantise(*quantise_blocks(w, 128, False), 128).double()
    x_again = along(along(x).float().T)  # kept in FP8, quantised again in tiles of rows
    assert relative_error(x_leaf.grad, along(d_y) @ w8) < 1e-6
    assert relative_error(w_leaf.grad, along(d_y.T) @ x_again.T) < 1e-6


def test_power_of_two_scales_are_the_next_power_above():
    _, scale = quantise_rows(randn(4, 256), 128, True)
    _, exact = quantise_rows(randn(4, 256), 128, False)
    assert torch.equal(torch.log2(scale), torch.ceil(torch.log2(exact)))


def test_an_outlier_spoils_only_its_own_tile():
    x, w = randn(64, 512), randn(32, 512, seed=1)
    spiked = x.clone()
    spiked[:, 0] = 3e4
    w[:, 0] = 0.0  # the outlier itself adds nothing: what is left is what it does to its neighbours
    exact = x.double() @ w.double().T
    by_tile = relative_error(Fp8BlockProduct(128)(spiked, w), exact)
    by_row = relative_error(Fp8BlockProduct(512)(spiked, w), exact)
    plain = relative_error(Fp8BlockProduct(128)(x, w), exact)
    assert plain < 0.05 and plain < by_tile < by_row
