"""On a GPU: the kernels compute what the plain core computes, and their noise is standard normal."""

import pytest
import torch

from isoflop.optics.config import load_preset
from isoflop.optics.fused import fused_product, fuses, stop_clipped
from isoflop.optics.receiver import noise_variance, reset_slope
from isoflop.optics.tensor_core import TensorCore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CORES = {
    "lin2024": {},
    "3 bits": {"input_bits": 3, "weight_bits": 3, "adc_bits": 3, "range_std": 0.0},
    "linear": {"encoding": "linear", "leak_s": float("inf"), "noise": ["output"], "output_noise": 0.04},
    "dim": {"power_mw": 1e-3},
    "leaky": {"leak_s": 1e-4, "capacitor_f": 5e-12, "headroom": 1.5},
    "full scale given": {"full_scale": 20.0},
}
"""Changed fields of lin2024; the last two clip often or lose a thousandth of the charge."""
SHAPES = [(768, 1024, 512), (257, 300, 1000), (3, 5, 1), (1024, 4500, 2100)]
ALL = pytest.mark.parametrize("name", CORES)


def key_of(seed, step=0, batch=0, rank=0, call=0, layer=7):
    return torch.tensor([seed, step, batch, rank, call], device="cuda"), torch.tensor([layer], device="cuda")


def operands(shape, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(shape[0], shape[1], generator=generator, device="cuda").to(dtype)
    x[0, :3] = 0.0
    return x, torch.randn(shape[2], shape[1], generator=generator, device="cuda") * shape[1] ** -0.5


def core_of(name, **changes):
    return load_preset("lin2024", **{**CORES[name], **changes})


def share_that_differs(found, expected, tolerance=1e-4):
    """Share of values further apart than `tolerance` of the root mean square."""
    return ((found - expected).abs() > tolerance * expected.square().mean().sqrt()).float().mean().item()


@ALL
@pytest.mark.parametrize("shape", SHAPES)
def test_without_noise_results_and_operands_are_those_of_the_plain_core(name, shape):
    config = core_of(name, noise=[])
    x, w = operands(shape)
    core = TensorCore(config)
    inputs, weights = core.encode_inputs(x), core.encode_weights(w)
    expected = core.read(inputs, weights)
    assert fuses(config, x)
    found = fused_product(config, x, w, key_of(3), 0)
    # At the edge of a converter's step a value may fall to the other side: few do, by a whole step.
    assert share_that_differs(found.light, core.numbers(inputs)) < 2e-3
    assert share_that_differs(found.weight, weights.value * weights.scale[:, None]) < 2e-3
    assert share_that_differs(found.y, expected.y) < 2e-2
    assert (found.y - expected.y).norm() < 2e-2 * expected.y.norm()
    assert found.n_clipped == found.clipped.sum()
    assert (found.clipped != expected.clipped).float().mean() < 1e-3


@ALL
def test_noise_is_normal_with_the_variance_of_the_plain_core(name):
    fine = {"adc_bits": 16, "full_scale": 0.0, "range_std": 1000.0, "capacitor_f": 0.0}
    noisy, quiet = core_of(name, **fine), core_of(name, **fine, noise=[])
    x, w = operands((1024, 1024, 1536))
    core = TensorCore(noisy)
    inputs, weights = core.encode_inputs(x), core.encode_weights(w)
    charge = core.charge(inputs, weights)
    full_scale = core.read(inputs, weights, torch.Generator("cuda").manual_seed(0)).full_scale

    variance = noise_variance(noisy, core.moments(inputs, weights), charge, reset_slope(noisy) * full_scale)
    scales = inputs.scale * weights.scale
    step = 2.0 * full_scale / (2**16 - 1)
    difference = (fused_product(noisy, x, w, key_of(5), 0).y - fused_product(quiet, x, w, key_of(5), 0).y) / scales
    z = (difference / (variance + step.square() / 6).sqrt()).double()
    n = z.numel()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.square().mean() - 1) < 5e-3
    for by in (0, 1):  # no row or column of its own variance
        assert (z.square().mean(by) - 1).abs().max() < 6 * (2 / z.shape[by]) ** 0.5
    for shift in ((0, 1), (1, 0), (0, 256), (0, 512), (0, 1024)):  # lanes and quarters of a block
        assert abs((z * z.roll(shift, (0, 1))).mean()) < 5 / n**0.5


def normals(key, shape=(1024, 2048), part=0):
    """What the kernel draws: charges of zero with output noise of one MAC unit, finely read."""
    config = load_preset(
        "lin2024",
        encoding="linear",
        leak_s=float("inf"),
        noise=["output"],
        output_noise=1.0,
        adc_bits=16,
        full_scale=8.0,
    )
    x, w = torch.zeros(shape[0], 16, device="cuda"), torch.zeros(shape[1], 16, device="cuda")
    return fused_product(config, x, w, key, part).y


def test_draws_are_standard_normal_and_those_of_another_seed_are_others():
    z, other = normals(key_of(1)).double(), normals(key_of(2)).double()
    n = z.numel()
    for order, expected, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(z.pow(order).mean() - expected) < 5 * (spread / n) ** 0.5
    ranks = torch.special.ndtr(z.flatten().sort().values)
    steps = (torch.arange(n, device="cuda") + 0.5) / n
    assert (ranks - steps).abs().max() < 2.0 / n**0.5  # Kolmogorov and Smirnov: 1.36 is the 95% point
    assert z.abs().max() > 4.9
    assert abs((z * other).mean()) < 5 / n**0.5
    assert torch.equal(normals(key_of(1)), normals(key_of(1)))
    # The first results of a longer row are drawn as in a shorter one.
    assert torch.equal(normals(key_of(1), (1024, 1024)), normals(key_of(1))[:, :1024])


def test_every_number_of_the_key_tells_draws_apart():
    names = ("step", "batch", "rank", "call", "layer")
    keys = [key_of(1), key_of(2), key_of(1, batch=1 << 40), *(key_of(1, **{name: 1}) for name in names)]
    cases = [*((key, 0) for key in keys), (keys[0], 1)]
    draws = torch.stack([normals(key, (64, 1024), part).flatten() for key, part in cases]).double()
    n = draws.shape[1]
    correlation = draws @ draws.T / n
    assert (correlation - torch.eye(len(cases), device="cuda")).abs().max() < 6 * (2 / n) ** 0.5


def test_what_is_not_a_number_stays_so():
    x, w = operands((64, 128, 96))
    x[5, 7] = float("nan")
    y = fused_product(core_of("full scale given"), x, w, key_of(0), 0).y
    assert y[5].isnan().all() and not y[6].isnan().any()
    w[9, 3] = float("inf")
    assert fused_product(core_of("full scale given"), x, w, key_of(0), 0).y[:, 9].isnan().all()


def test_other_cores_are_left_to_the_plain_one():
    x = torch.zeros(4, 64, device="cuda")
    assert fuses(load_preset("lin2024"), x) and fuses(load_preset("lin2023"), x)
    for change in ({"signs": "two_pass"}, {"input_bits": 32}, {"adc_bits": 1}, {"max_fan_in": 32}, {"imbalance": 0.1}):
        assert not fuses(load_preset("lin2024", **change), x)
    assert not fuses(load_preset("lin2024", leak_s=1e-9), x)
    assert not fuses(load_preset("lin2024"), x.double()) and not fuses(load_preset("lin2024"), x.cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_clipped_results_get_no_gradient(dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    clipped = torch.rand(513, 77, generator=generator, device="cuda") < 0.3
    gradients = torch.randn(513, 77, generator=generator, device="cuda").to(dtype)
    gradients[3, 5] = float("inf")
    for d_y in (gradients, gradients[:1].expand(513, 77), gradients.T.contiguous().T):
        assert torch.equal(stop_clipped(d_y, clipped), d_y.masked_fill(clipped, 0.0))
