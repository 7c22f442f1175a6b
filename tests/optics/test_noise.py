"""Noise: each term as section A6 says, and two models of the core that share nothing in between agree."""

import math

import pytest
import torch

from isoflop.optics.config import load_preset
from isoflop.optics.receiver import decay, noise_terms
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.units import BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C
from isoflop.optics.waveform import WaveformCore

EXACT = {"input_bits": 32, "weight_bits": 32, "adc_bits": 32, "full_scale": 1e6, "bandwidth_hz": math.inf}
"""Nothing but noise: exact converters, no interference."""
DRAWS = 10_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def repeated(config, k, core=TensorCore, seed=0, draws=DRAWS, n=1):
    """Results of one dot product, drawn again and again, and the normalised operands."""
    g = generator(seed)
    x, w = torch.rand(k, generator=g), torch.rand(n, k, generator=g) * 2 - 1
    x[0], w[:, 0] = 1.0, 1.0  # so that the digital scales are those of the modulators
    y = core(config).matmul(x.expand(draws, k), w, g)
    return y, x.double(), w.double()


@pytest.mark.parametrize("k", [64, 512, 4096])
@pytest.mark.parametrize("power_mw", [1.0, 0.01])
def test_analytic_and_waveform_agree_in_mean_and_variance(k, power_mw):
    config = load_preset("lin2024", power_mw=power_mw, exact_rin=True, leak_s=1e-6, **EXACT)
    analytic, x, w = repeated(config, k, seed=k)
    waveform, _, _ = repeated(config, k, WaveformCore, seed=k)
    quiet = TensorCore(config.quiet()).matmul(x[None].float(), w.float())
    for found in (analytic, waveform):
        assert abs(found.mean() - quiet).item() < 4 * found.std().item() / math.sqrt(DRAWS)
    difference = (analytic.mean() - waveform.mean()).abs().item()
    assert difference < 3 * math.hypot(analytic.std().item(), waveform.std().item()) / math.sqrt(DRAWS)
    # A variance of n draws is itself known to sqrt(2/n): 1.4%.
    assert analytic.var().item() == pytest.approx(waveform.var().item(), rel=0.05)


def expected(term, config, x, w):
    """Section A6, written out in plain numbers."""
    n, t, q, n_e = len(x), config.symbol_s, ELEMENTARY_CHARGE_C, config.n_e
    kt = BOLTZMANN_J_PER_K * config.temperature_k
    g = (10**2.5 - 1) / (10**2.5 + 1)
    x, w = (x * (1 + g) / 2).clamp((1 - g) / 2), w * g
    y = (x * w).sum()
    return {
        "shot": x.sum() / n_e,
        "dark": 2 * config.dark_current_a * n * t / (q * n_e**2),
        "reset": kt / q * config.full_scale / (config.swing_v * n_e),
        "amplifier": config.amplifier_a_per_rthz**2 * n * t / (2 * q**2 * n_e**2),
        "rin": 10 ** (config.rin_db_per_hz / 10) * config.symbol_rate_hz / 2 * (x**2 * w**2).sum(),
        "gain": config.gain_error**2 * y**2,
        "output": config.output_noise**2,
    }[term]


@pytest.mark.parametrize("core", [TensorCore, WaveformCore])
@pytest.mark.parametrize("term", ["shot", "dark", "reset", "amplifier", "rin", "gain", "output"])
def test_the_variance_of_every_term_alone_is_that_of_the_sheet(term, core):
    config = load_preset(
        "lin2024",
        noise=(term,),
        output_noise=0.3,
        dark_current_a=1e-4,
        gain_error=0.02,
        exact_rin=True,
        **{**EXACT, "full_scale": 5e3, "leak_s": math.inf},
    )
    y, x, w = repeated(config, 200, core)
    g = config.contrast
    scale = (2 / (1 + g)) / g  # back from light to numbers
    assert y.double().var().item() == pytest.approx(expected(term, config, x, w).__float__() * scale**2, rel=0.05)


def test_an_amplifier_of_a_resistor_is_its_thermal_noise():
    config = load_preset("lin2024", noise=("amplifier",), amplifier_a_per_rthz=math.sqrt(4 * 1.380649e-23 * 300 / 50))
    core = TensorCore(config)
    moments = core.moments(core.encode_inputs(torch.ones(1, 100)), core.encode_weights(torch.ones(1, 100)))
    found = noise_terms(config, moments, torch.zeros(1, 1), None)["amplifier"].item() * config.n_e**2
    # 2kT/R times the integration time, in electrons squared
    assert found == pytest.approx(2 * 1.380649e-23 * 300 / 50 * 100 / 60e9 / 1.602176634e-19**2, rel=1e-5)


def test_the_worked_example_of_the_sheet():
    config = load_preset("lin2024", capacitor_f=20e-12)
    assert config.n_e == pytest.approx(83_220, rel=1e-4)
    assert config.contrast == pytest.approx(0.9937, abs=5e-5)
    assert math.sqrt(config.rin_per_symbol) == pytest.approx(0.0055, abs=1e-4)
    sum_x = 12_544 * 0.13
    assert math.sqrt(sum_x / config.n_e) == pytest.approx(0.14, abs=0.005)
    assert math.sqrt(sum_x / config.n_e) * config.n_e == pytest.approx(11_700, rel=0.01)
    assert math.sqrt(1.380649e-23 * 300 * 20e-12) / 1.602176634e-19 == pytest.approx(1_800, rel=0.01)
    # kT/C is below shot noise at half a volt of swing when 0.052 of full scale is below the light
    slope = 1.380649e-23 * 300 / 1.602176634e-19 / 0.5
    assert slope == pytest.approx(0.052, abs=5e-4)


def test_few_photons_are_counted_one_by_one():
    config = load_preset("lin2024", noise=("shot",), power_mw=2e-5, leak_s=math.inf, **EXACT)
    assert config.n_e < 2
    y, _, _ = repeated(config, 64, WaveformCore)
    analytic, _, _ = repeated(config, 64)
    steps = y * config.n_e * config.contrast * (1 + config.contrast) / 2
    assert (steps - steps.round()).abs().max() < 1e-3  # whole electrons
    assert y.var().item() == pytest.approx(analytic.var().item(), rel=0.05)


@pytest.mark.parametrize("core", [TensorCore, WaveformCore])
def test_the_leak_law_its_exact_fix_and_the_droop_of_the_longest_window(core):
    k = 131_072
    x, w = torch.ones(1, k, dtype=torch.float64), torch.ones(1, k, dtype=torch.float64)
    leaky = load_preset("ideal", leak_s=218e-6, leak_correction=False)
    found = core(leaky).matmul(x, w).item() / k
    window = k / 60e9 / 218e-6
    assert found == pytest.approx((1 - math.exp(-window)) / window, rel=1e-4)
    left = decay(leaky, k, x)
    assert left is not None and 1 - left[0].item() == pytest.approx(0.01, rel=0.01)  # 1% at 218 us: A5
    fixed = load_preset("ideal", leak_s=218e-6)
    assert core(fixed).matmul(x, w).item() == pytest.approx(k, rel=1e-9)


@pytest.mark.parametrize("core", [TensorCore, WaveformCore])
def test_unequal_diodes_add_half_their_difference_times_the_light_and_a_zero_weight_pass_removes_it(core):
    x = torch.rand(3, 50, dtype=torch.float64, generator=generator())
    w = torch.rand(4, 50, dtype=torch.float64, generator=generator(1)) * 2 - 1
    unequal = load_preset("ideal", imbalance=0.05, remove_imbalance=False, input_scale="tensor")
    found = core(unequal).matmul(x, w)
    extra = 0.025 * x.sum(1, keepdim=True) * w.abs().amax(1)
    assert (found - x @ w.T - extra).abs().max() < 1e-12
    removed = core(load_preset("ideal", imbalance=0.05)).matmul(x, w)
    assert (removed - x @ w.T).abs().max() < 1e-12


def test_row_scales_beat_one_scale_for_all_when_light_is_scarce():
    g = generator()
    x = torch.rand(200, 300, generator=g)
    w = torch.randn(20, 300, generator=g) * torch.logspace(-2, 0, 20)[:, None]
    error = {}
    for scaling in ("row", "tensor"):
        config = load_preset("lin2024", noise=("shot",), power_mw=1e-3, weight_scale=scaling, **EXACT)
        difference = TensorCore(config).matmul(x, w, g) - x @ w.T
        error[scaling] = (difference.norm(dim=0) / (x @ w.T).norm(dim=0)).mean().item()
    assert error["row"] < 0.2 * error["tensor"]
