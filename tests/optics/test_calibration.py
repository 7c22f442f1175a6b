"""Calibration finds what was put in, and its results are state."""

import math

import pytest
import torch

from isoflop.optics.calibration import Calibration, calibrate, fit_sweep, lookup_table, sweep_light
from isoflop.optics.config import OpticsError, load_preset
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.waveform import WaveformCore


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("v_pi_v", "bias", "extinction_db"), [(2.0, 0.0, 25.0), (3.1, 0.2, 15.0), (1.4, -0.3, 30.0)])
def test_a_sweep_gives_back_the_modulator(v_pi_v, bias, extinction_db):
    config = load_preset("lin2024", v_pi_v=v_pi_v, bias_error_rad=bias, extinction_db=extinction_db)
    volts = torch.linspace(-v_pi_v, v_pi_v, 101)
    found = fit_sweep(volts, sweep_light(config, volts, generator()))
    assert found.v_pi_v == pytest.approx(v_pi_v, rel=2e-3)
    assert found.bias_error_rad == pytest.approx(bias, abs=2e-3)
    assert found.contrast == pytest.approx(config.contrast, abs=2e-3)


def test_a_table_from_the_sweep_makes_even_steps_of_light_with_a_drifted_bias():
    config = load_preset("lin2024", bias_error_rad=0.15)
    volts = torch.linspace(-2.0, 2.0, 201)
    table = lookup_table(fit_sweep(volts, sweep_light(config, volts)), 6)
    light = sweep_light(config, table)
    wanted = torch.linspace(0, 1, 64, dtype=torch.float64).clamp(0.5 - config.contrast / 2, 0.5 + config.contrast / 2)
    assert (light - wanted).abs().max() < 1e-6


def test_a_sweep_that_shows_no_curve_is_refused():
    with pytest.raises(OpticsError, match=r"a sweep of 5 points .* 8 points or more"):
        fit_sweep(torch.linspace(-1, 1, 5), torch.linspace(0, 1, 5))


def test_imbalance_interference_leak_and_noise_are_found():
    base = {"bandwidth_hz": math.inf, "input_bits": 32, "weight_bits": 32, "extinction_db": math.inf}
    quiet = load_preset("lin2024", noise=(), imbalance=0.04, leak_s=1e-6, leak_correction=False, **base)
    found = calibrate(quiet, generator())
    assert found.imbalance.item() == pytest.approx(0.04, rel=0.02)
    assert found.gain.item() == pytest.approx(1.0, abs=1e-3)
    assert found.decay_rate.item() == pytest.approx(1e6, rel=0.02)
    assert abs(found.interference.item()) < 1e-4
    mixing = load_preset("ideal", skew_s=0.02 / 60e9, encoding="asin")
    assert calibrate(mixing, generator()).interference.item() == pytest.approx(0.01, rel=0.25)  # one stream of two


def test_the_noise_that_is_left_is_that_of_the_closed_forms():
    config = load_preset("lin2024", power_mw=0.05, bandwidth_hz=math.inf, input_bits=32, weight_bits=32)
    found = calibrate(config, generator())
    assert found.noise_std.item() == pytest.approx(found.predicted_std.item(), rel=0.05)
    assert not found.has_drifted(found.noise_std.item()) and found.has_drifted(2 * found.noise_std.item())


def test_the_residual_makes_the_analytic_core_as_wrong_as_the_waveform():
    config = load_preset("lin2024", headroom=1.05, exact_rin=True)
    found = calibrate(config, generator())
    g = generator(1)
    x, w = torch.rand(200, 256, generator=g), torch.rand(40, 256, generator=g) * 2 - 1
    error = {}
    for name, core in {
        "chip": WaveformCore(config),
        "blind": TensorCore(config),
        "calibrated": TensorCore(found.apply_to(config)),
    }.items():
        error[name] = (core.matmul(x, w, g) - x @ w.T).std().item()
    assert found.residual.item() > 0.003
    assert error["calibrated"] == pytest.approx(error["chip"], rel=0.1)
    assert error["blind"] < 0.9 * error["chip"]


def test_results_are_buffers_that_survive_a_state_dict():
    found = Calibration(gain=1.01, residual=0.002)
    other = Calibration()
    other.load_state_dict(found.state_dict())
    assert other.gain.item() == 1.01 and set(found.state_dict()) == set(Calibration.NAMES)
    with pytest.raises(OpticsError, match="fan_in = 4 and rows = 100 must be 8 or more"):
        calibrate(load_preset("lin2024"), generator(), fan_in=4, rows=100)
