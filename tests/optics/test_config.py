"""Bad input: one error that names the field and a valid range; presets are what they say."""

import math

import pytest
import torch

from isoflop.errors import RecipeError
from isoflop.optics.config import CoreConfig, EnergyConfig, OpticsError, core_config, load_preset, preset_names
from isoflop.optics.converters import read_codes
from isoflop.optics.tensor_core import TensorCore
from isoflop.recipe import from_tree, to_tree


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input_bits", 0, r"input_bits = 0 must be 1 to 16, or 32"),
        ("weight_bits", -3, r"weight_bits = -3 must be 1 to 16"),
        ("adc_bits", 20, r"adc_bits = 20 must be 1 to 16, or 32 for an exact value"),
        ("power_mw", -1.0, r"power_mw = -1.0 must be a number from 1e-12 to 1e\+06"),
        ("power_mw", math.nan, r"power_mw = nan must be a number"),
        ("symbol_rate_hz", 0, r"symbol_rate_hz = 0 must be a number from 1000 to"),
        ("channels", 0, r"channels = 0 must be a number from 1 to"),
        ("extinction_db", 2.0, r"extinction_db = 2 leaves 23% of the range.*at least 4.78"),
        ("extinction_db", -5.0, r"extinction_db = -5 leaves -52%.*25 is usual"),
        ("capacitor_f", 1e-16, r"capacitor_f = 1e-16 fills up with 0.0037 of a full-scale symbol.*at least 2.67e-14 F"),
        ("skew_s", 1e-11, r"skew_s = 1e-11 must be at most half a symbol, here 8.33e-12 s"),
        ("encoding", "asine", r"encoding = 'asine' must be one of asin, linear, raw; did you mean 'asin'"),
        ("signs", "folded", r"signs = 'folded' must be one of field, fold, offset, two_pass; did you mean 'fold'"),
        ("noise", ("shot", "therm"), r"noise = 'therm' must be one of amplifier, dark"),
        ("leak_s", 0.0, r"leak_s = 0.0 must be a number from 1e-12 to inf"),
        ("temperature_k", True, r"temperature_k = True must be a number"),
    ],
)
def test_impossible_cores_are_refused_by_field_value_and_range(field, value, message):
    with pytest.raises(OpticsError, match=message):
        load_preset("lin2024", **{field: value})


def test_unknown_presets_fields_and_energies_get_a_suggestion():
    with pytest.raises(
        OpticsError, match=r"preset = 'lin2025' must be one of aihwkit, ideal, lin2023, lin2024; did you"
    ):
        load_preset("lin2025")
    with pytest.raises(OpticsError, match=r"field = 'powr_mw'.*did you mean 'power_mw'"):
        load_preset("lin2024", powr_mw=1.0)
    with pytest.raises(OpticsError, match=r"energy = 'dac_p'.*did you mean 'dac_pj'"):
        core_config({"energy": {"dac_p": 1.0}})
    with pytest.raises(OpticsError, match=r"energy.laser_efficiency = 2.0 must be a number from"):
        EnergyConfig(laser_efficiency=2.0)


def test_a_leak_without_headroom_for_its_correction_is_refused():
    core = TensorCore(load_preset("ideal", leak_s=1e-9))
    with pytest.raises(OpticsError, match=r"leak_s = 1e-09 is .* of an integration of 1000 symbols.*leak_correction"):
        core.matmul(torch.ones(1, 1000), torch.ones(1, 1000))


def test_operands_that_do_not_fit_are_named():
    with pytest.raises(OpticsError, match=r"w has shape \(2, 5\) and x \(3, 4\); w must be \[fan-out, 4\]"):
        TensorCore(load_preset("ideal")).matmul(torch.ones(3, 4), torch.ones(2, 5))


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_a_recipe_and_differ_only_where_they_say(name):
    config = load_preset(name)
    assert from_tree(to_tree(config), CoreConfig) == config
    with pytest.raises(RecipeError, match=r"unknown key powr_mw; did you mean power_mw"):
        from_tree({"powr_mw": 1.0}, CoreConfig)


def test_the_two_papers_differ_in_speed_alone():
    one, other = to_tree(load_preset("lin2023")), to_tree(load_preset("lin2024"))
    assert {key for key in one if one[key] != other[key]} == {"symbol_rate_hz"}
    assert (one["symbol_rate_hz"], other["symbol_rate_hz"]) == (32.5e9, 60e9)
    assert to_tree(CoreConfig()) == other


def test_the_crossbar_preset_has_the_steps_bounds_and_noise_of_aihwkit():
    g = torch.Generator().manual_seed(0)
    core = TensorCore(load_preset("aihwkit"))
    x = torch.randn(5, 40, generator=g)
    codes = core.encode_inputs(x).value * 63  # 126 steps from -1 to 1, scaled by the largest of each vector
    assert (codes - codes.round()).abs().max() < 1e-4 and codes.abs().amax(1).round().eq(63).all()
    w = torch.randn(400, 40, generator=g) * 0.5
    w[0, 0] = 2.5
    quiet = TensorCore(load_preset("aihwkit").quiet())
    scale = core.encode_inputs(x).scale * core.encode_weights(w).scale
    noise = (core.matmul(x, w, g) - quiet.matmul(x, w)) / scale
    assert noise.std().item() == pytest.approx(math.hypot(0.06, 24 / 511 / math.sqrt(6)), rel=0.1)


def test_the_best_range_of_an_adc_has_the_least_error_for_a_gaussian():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(400_000, dtype=torch.float64, generator=g)
    for bits in (3, 4, 6, 8):
        best = load_preset("ideal", adc_bits=bits, range_std=0.0).range_deviations
        error = {}
        for share in (0.85, 1.0, 1.15):
            codes, unit, _ = read_codes(y.clone(), bits, torch.tensor(share * best, dtype=torch.float64))
            error[share] = (codes * unit - y).square().mean().item()
        assert error[1.0] <= 1.03 * min(error.values()), (bits, error)
