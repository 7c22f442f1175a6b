"""Block-quantised weights: bounded error, exact scales, and other people's reading of them."""

import pytest
import torch

from isoflop.interop.fp8 import LARGEST, dequantise, n_blocks, quantise

SHAPES = pytest.mark.parametrize("shape", [(128, 128), (256, 384), (130, 7), (1, 300), (5, 5)], ids=str)


def draw(shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def block_of(matrix, row, column):
    return matrix[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]


@SHAPES
def test_every_block_reaches_the_largest_code_and_errs_by_at_most_one_part_in_sixteen(shape):
    weight = draw(shape)
    codes, scales = quantise(weight)
    found = dequantise(codes, scales)
    assert codes.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32
    assert scales.shape == (n_blocks(shape[0]), n_blocks(shape[1]))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            exact, near = block_of(weight, row, column), block_of(found, row, column)
            assert block_of(codes, row, column).float().abs().max() == LARGEST
            smallest_step = scales[row, column] * 2**-9  # of a subnormal code
            bound = (exact.abs() / 16).clamp_min(smallest_step / 2) * 1.0001
            assert ((exact - near).abs() <= bound).all()


@SHAPES
def test_with_their_own_scales_codes_come_back_bit_for_bit(shape):
    """Whatever the scales are: released ones need not make the largest code 448."""
    generator = torch.Generator().manual_seed(1)
    codes = (torch.randn(shape, generator=generator) * 60).to(torch.float8_e4m3fn)
    scales = torch.rand(n_blocks(shape[0]), n_blocks(shape[1]), generator=generator) * 1e-3 + 1e-5
    again, same = quantise(dequantise(codes, scales), scales)
    assert same is scales and torch.equal(again.float(), codes.float())


def test_a_block_of_zeros_stays_zero():
    codes, scales = quantise(torch.zeros(200, 3))
    assert torch.equal(dequantise(codes, scales), torch.zeros(200, 3)) and (scales == 1).all()


def test_transformers_reads_the_same_values_where_its_blocks_divide():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes, scales = quantise(draw((256, 384)))
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    assert torch.equal(theirs, dequantise(codes, scales))


def test_transformers_cannot_read_the_released_shape_of_the_latent_projection():
    """DeepSeek-V3's kv_a_proj_with_mqa has 576 rows in five blocks: transformers 5 divides rows by blocks, and fails.

    The released kernels give the last block what is left, as we do. If this test fails, transformers has been mended:
    update the table in docs/interop.md.
    """
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = draw((576, 256))
    codes, scales = quantise(weight)
    assert scales.shape == (5, 2)
    with pytest.raises(ValueError, match="not divisible"):
        Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    assert (dequantise(codes, scales) - weight).abs().max() <= weight.abs().max() / 16
