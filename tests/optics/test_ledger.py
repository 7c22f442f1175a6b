"""Speed and energy: the published rates, the table of A10, and an account that adds up."""

import math

import pytest
import torch

from isoflop.optics.config import OpticsError, load_preset
from isoflop.optics.ledger import energy_ledger, error_budget, inspect_core, modulator_pj
from isoflop.optics.schedule import schedule


@pytest.mark.parametrize(("preset", "gops"), [("lin2023", 65.0), ("lin2024", 120.0)])
@pytest.mark.parametrize("fan_in", [12_544, 131_072])
def test_the_published_rates_follow_from_the_symbol_rate(preset, gops, fan_in):
    assert schedule(load_preset(preset), fan_in).gops == pytest.approx(gops, rel=1e-12)
    assert schedule(load_preset(preset, reset_s=0.0, hide_reset=False), 784, 100).gops == pytest.approx(gops, rel=1e-12)
    assert schedule(load_preset(preset), fan_in).peak_gops == pytest.approx(gops, rel=1e-12)


@pytest.mark.parametrize(
    ("fan_in", "preset", "integration_s", "gops"),
    [
        (784, "lin2023", 24.1e-9, 35.5),
        (784, "lin2024", 13.1e-9, 47.4),
        (12_544, "lin2023", 386e-9, 61.8),
        (12_544, "lin2024", 209e-9, 109.5),
        (131_072, "lin2023", 4.03e-6, 64.7),
        (131_072, "lin2024", 2.18e-6, 118.9),
    ],
)
def test_the_table_of_rates_with_a_visible_reset(fan_in, preset, integration_s, gops):
    config = load_preset(preset, hide_reset=False)
    plan = schedule(config, fan_in)
    exact = 2e-9 * fan_in / (fan_in / config.symbol_rate_hz + 20e-9)
    assert plan.gops == pytest.approx(exact, rel=1e-12)
    assert round(plan.gops, 1) == gops  # the table has one decimal
    assert plan.integration_s == pytest.approx(integration_s, rel=4e-3)


def test_a_reset_is_hidden_only_behind_a_longer_window():
    config = load_preset("lin2024")
    assert schedule(config, 1200).gops == pytest.approx(120.0)
    assert schedule(config, 600).gops == pytest.approx(60.0)


def test_tiles_channels_and_passes_change_the_time_as_they_should():
    base = load_preset("lin2024", reset_s=0.0)
    alone = schedule(base, 1000, 64).layer_s
    assert schedule(load_preset("lin2024", reset_s=0.0, channels=8), 1000, 64).layer_s == pytest.approx(alone / 8)
    assert schedule(load_preset("lin2024", reset_s=0.0, signs="two_pass"), 1000, 64).layer_s == pytest.approx(2 * alone)
    tiled = schedule(load_preset("lin2024", reset_s=0.0, max_fan_in=300, tile_fan_in=True), 1000, 64)
    assert (tiled.tiles, tiled.windows) == (4, 256) and tiled.layer_s == pytest.approx(alone)
    with pytest.raises(OpticsError, match=r"fan_in = 1000 is beyond max_fan_in = 300.*tile_fan_in"):
        schedule(load_preset("lin2024", max_fan_in=300), 1000)
    with pytest.raises(OpticsError, match="fan_out = 0 must be 1 or more"):
        schedule(base, 10, 0)


def test_the_adc_is_slow_where_the_dacs_are_fast():
    assert schedule(load_preset("lin2024"), 12_544).adc_rate_hz == pytest.approx(4.78e6, rel=2e-3)
    assert schedule(load_preset("lin2024"), 131_072).adc_rate_hz == pytest.approx(0.46e6, rel=5e-3)
    assert schedule(load_preset("lin2024"), 12_544).weight_updates_per_s == 60e9


def test_modulators_take_what_the_sheet_says_and_the_account_adds_up():
    config = load_preset("lin2024")
    assert modulator_pj(config) == pytest.approx(0.111, abs=5e-4)
    found = energy_ledger(config, schedule(config, 12_544, 64))
    parts = found["pj_per_op"]
    assert sum(parts.values()) == pytest.approx(found["total_pj_per_op"])
    assert found["tops_per_w"] == pytest.approx(1.0 / found["total_pj_per_op"])
    without = sum(v for k, v in parts.items() if k not in ("input_dac", "weight_dac", "adc"))
    assert found["without_converters_pj_per_op"] == pytest.approx(without)
    assert parts["input_modulator"] + parts["weight_modulator"] == pytest.approx(0.111, abs=1e-3)
    assert parts["input_dac"] + parts["weight_dac"] > 0.5 * found["total_pj_per_op"]  # A11: DACs dominate
    shared = energy_ledger(cfg := load_preset("lin2024", channels=16), schedule(cfg, 12_544, 64))["pj_per_op"]
    assert shared["input_dac"] == pytest.approx(parts["input_dac"] / 16)
    assert shared["weight_dac"] == pytest.approx(parts["weight_dac"])


@pytest.mark.parametrize("signs", ["fold", "offset", "two_pass", "field"])
def test_the_error_by_cause_explains_the_error_that_is_measured(signs):
    g = torch.Generator().manual_seed(0)
    x, w = torch.rand(64, 3000, generator=g) * 2 - 1, torch.rand(40, 3000, generator=g) * 2 - 1
    found = error_budget(load_preset("lin2024", signs=signs, power_mw=0.2), x, w, g)
    assert found["measured_relative_error"] == pytest.approx(found["total_relative_error"], rel=0.05)
    assert 4 < found["measured_effective_bits"] < 8


def test_an_ideal_core_has_no_error_and_its_inspection_is_plain_data():
    found = inspect_core(load_preset("ideal"), 100, 3)
    assert found["error"]["measured_relative_error"] < 1e-6
    assert found["error"]["full_scale_mac"] is None and found["light"]["capacitor_f"] is None
    assert found["light"]["droop"] == 0.0 and math.isfinite(found["energy"]["total_pj_per_op"])
