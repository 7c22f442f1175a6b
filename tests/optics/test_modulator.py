"""Modulators: transfer, extinction, bandwidth, and what pre-emphasis can do about it."""

import math
import subprocess
import sys

import pytest
import torch

from isoflop.optics.config import OpticsError, load_preset
from isoflop.optics.modulator import encode_inputs_, encode_weights_, input_light_, weight_light_
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.waveform import WaveformCore, filtered, mixed, pre_emphasis


def test_the_transfer_is_that_of_two_interfering_arms():
    config = load_preset("lin2024", extinction_db=math.inf)
    phase = torch.linspace(-math.pi, math.pi, 101, dtype=torch.float64)
    bar = input_light_(config, phase.clone())
    field = torch.cos((phase - math.pi / 2) / 2)  # E_bar at quadrature
    assert (bar - field.square()).abs().max() < 1e-12
    assert (weight_light_(config, phase.clone()) - (2 * bar - 1)).abs().max() < 1e-12


@pytest.mark.parametrize("extinction_db", [10.0, 25.0])
def test_a_finite_extinction_ends_the_range_at_both_sides(extinction_db):
    config = load_preset("lin2024", extinction_db=extinction_db, input_bits=16, weight_bits=16)
    x = encode_inputs_(config, torch.linspace(0, 1, 1001, dtype=torch.float64))
    ratio = (x.max() / x.min()).item()
    assert 10 * math.log10(ratio) == pytest.approx(extinction_db, abs=1e-6)
    w = encode_weights_(config, torch.linspace(-1, 1, 1001, dtype=torch.float64))
    assert w.max().item() == pytest.approx(config.contrast) and w.min().item() == pytest.approx(-config.contrast)


def test_dac_steps_are_even_in_voltage_not_in_value():
    config = load_preset("lin2024", input_bits=3, weight_bits=3, extinction_db=math.inf)
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    levels = encode_inputs_(config, u.clone()).unique()
    assert len(levels) == 8
    phases = torch.asin(2 * levels - 1)
    assert (phases.diff() - math.pi / 7).abs().max() < 1e-6
    weights = encode_weights_(config, 2 * u - 1).unique()
    assert len(weights) == 7 and 0.0 in weights and (weights + weights.flip(0)).abs().max() < 1e-12


def test_one_bit_is_a_sign():
    config = load_preset("lin2024", input_bits=1, weight_bits=1, extinction_db=math.inf)
    assert encode_inputs_(config, torch.tensor([0.0, 0.4, 0.6, 1.0])).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert encode_weights_(config, torch.tensor([-0.9, -0.1, 0.1])).tolist() == [-1.0, -1.0, 1.0]


@pytest.mark.parametrize(("bandwidth_hz", "share"), [(60e9, 0.159), (100e9, 0.096), (30e9, 0.305), (math.inf, 0.0)])
def test_the_share_of_the_previous_symbol_at_60_gbd(bandwidth_hz, share):
    assert load_preset("lin2024", bandwidth_hz=bandwidth_hz).isi == pytest.approx(share, abs=6e-4)


def test_pre_emphasis_undoes_interference_until_the_dac_runs_out():
    config = load_preset("lin2024")
    drive = torch.randn(3, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (mixed(filtered(drive, pre_emphasis(config)), config.isi) - drive).abs().max() < 1e-6
    with pytest.raises(OpticsError, match=r"bandwidth_hz = 1e\+10 mixes .* at least .* pre_emphasis = false"):
        WaveformCore(load_preset("ideal", bandwidth_hz=10e9)).matmul(torch.ones(1, 5), torch.ones(1, 5))


def test_the_bandwidth_that_the_error_suggests_is_enough():
    pre_emphasis(load_preset("ideal", bandwidth_hz=0.29 * 60e9))


def test_interference_hurts_and_headroom_for_pre_emphasis_cures_it():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 400, generator=g), torch.randn(10, 400, generator=g)
    error = {}
    for name, changes in {
        "none": {"bandwidth_hz": math.inf},
        "left": {"pre_emphasis": False},
        "clipped": {},
        "room": {"headroom": 1.4},
    }.items():
        config = load_preset("ideal", **{"bandwidth_hz": 60e9, "input_bits": 14, "weight_bits": 14, **changes})
        error[name] = ((WaveformCore(config).matmul(x, w) - x @ w.T).norm() / (x @ w.T).norm()).item()
    assert error["none"] < 1e-3 and error["room"] < 1e-3
    assert error["room"] < 0.1 * error["clipped"] and error["clipped"] < 0.3 * error["left"]


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
@pytest.mark.parametrize("signs", ["fold", "two_pass", "field"])
def test_blocks_of_symbols_do_not_show(block, signs, monkeypatch):
    config = load_preset("lin2024", signs=signs, skew_s=2e-12, leak_s=1e-8).quiet()
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 200, dtype=torch.float64, generator=g), torch.randn(2, 200, dtype=torch.float64, generator=g)
    whole = WaveformCore(config).matmul(x, w)
    monkeypatch.setattr("isoflop.optics.waveform.BLOCK_ELEMENTS", block * 6)
    assert (WaveformCore(config).matmul(x, w) - whole).abs().max() < 1e-9


def test_skew_of_either_sign_mixes_one_of_the_streams():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 100, dtype=torch.float64, generator=g), torch.randn(5, 100, dtype=torch.float64, generator=g)
    for skew_s in (3e-12, -3e-12):
        found = WaveformCore(load_preset("ideal", skew_s=skew_s)).matmul(x, w)
        assert 0.03 < ((found - x @ w.T).norm() / (x @ w.T).norm()).item() < 0.6


def test_a_residual_stands_for_interference_in_the_analytic_core():
    g = torch.Generator().manual_seed(0)
    x, w = torch.rand(50, 200, generator=g), torch.randn(20, 200, generator=g)
    config = load_preset("ideal", residual=0.05, noise=("residual",))
    error = (TensorCore(config).matmul(x, w, g) - x @ w.T).norm()
    terms = 0.05 * (x.square() @ w.square().T).sqrt().norm()
    assert error.item() == pytest.approx(terms.item(), rel=0.05)


LONGEST = """
import pathlib, re, torch
from isoflop.optics.config import load_preset
from isoflop.optics.waveform import WaveformCore
g = torch.Generator().manual_seed(0)
x, w = torch.rand(64, 131_072, generator=g) * 2 - 1, torch.rand(1, 131_072, generator=g) * 2 - 1
found = WaveformCore(load_preset("lin2024", headroom=1.4)).product(x, w, g)
# not ru_maxrss, which a process takes over from the one that started it
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
print(((found.y - x @ w.T).norm() / (x @ w.T).norm()).item(), peak)
"""


def test_the_longest_dot_product_of_a_batch_of_64_takes_less_than_a_gigabyte():
    run = subprocess.run([sys.executable, "-c", LONGEST], capture_output=True, text=True, check=True)
    error, peak_kib = run.stdout.split()
    assert float(error) < 0.03
    assert int(peak_kib) * 1024 < 1e9
