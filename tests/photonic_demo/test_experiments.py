"""Experiments of the page: small ones here, all of them with `-m slow` through the command."""

import dataclasses
import json
import math

import pytest

from isoflop.cli import main as cli
from isoflop.optics.config import load_preset
from isoflop.photonic_demo import experiments
from isoflop.photonic_demo.demo import measure
from isoflop.photonic_demo.page import core_page


def test_the_eye_opens_with_bandwidth_and_the_symbol_model_is_the_optimist():
    eyes = experiments.eyes(load_preset("lin2024"), 0)
    alone, corrected, faster = eyes.values()
    assert faster["error"] < 0.6 * corrected["error"]
    assert corrected["model_error"] < 0.02 < corrected["error"]
    assert alone["model_error"] > 3 * corrected["model_error"]
    assert sum(map(sum, alone["counts"])) > 0.99 * 1499 * 2 * experiments.SAMPLES


def test_an_eye_without_limits_has_the_error_of_its_noise():
    config = load_preset("lin2024", bandwidth_hz=math.inf, rin_db_per_hz=-200.0, power_mw=1e3, extinction_db=math.inf)
    assert experiments.eye_diagram(config, 0)["error"] < 1e-3


def test_levels_of_a_transfer_lie_on_its_curve():
    found = experiments.transfer_curves(load_preset("lin2024"))
    assert len(found["input_levels"]) == 16 and len(found["weight_levels"]) == 15
    assert min(found["input"]) == pytest.approx(found["input_levels"][0], abs=1e-4)
    assert max(found["weight"]) == pytest.approx(found["contrast"], abs=1e-4)


def test_throughput_has_the_published_peaks_and_the_marks_of_the_table():
    found = experiments.throughput({"lin2023": load_preset("lin2023"), "lin2024": load_preset("lin2024")})
    peaks = {name: line["peak"] for name, line in found["lines"].items()}
    assert peaks == {"lin2023": pytest.approx(65.0), "lin2024": pytest.approx(120.0)}
    marks = [round(mark["gops"], 1) for mark in found["lines"]["lin2024"]["marks"]]
    assert marks == [47.4, 109.5, 118.9]


def test_inspect_prints_and_writes_one_layer(tmp_path, capsys):
    path = tmp_path / "core.json"
    arguments = ["power_mw=0.5", "--preset", "lin2023", "--fan-in", "784", "--fan-out", "100", "--json", str(path)]
    cli.main(["optics", "inspect", *arguments])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["speed"]["gops"] == pytest.approx(65.0) and found["preset"] == "lin2023"
    assert set(found["error"]["relative_error"]) >= {"shot", "rin", "adc", "input_dac", "reset"}
    assert set(found["energy"]["pj_per_op"]) >= {"laser", "weight_dac", "adc", "memory"}
    assert 4 < found["error"]["measured_effective_bits"] < 7
    assert "error.measured_effective_bits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adc_bits=0"], "adc_bits = 0 must be 1 to 16"),
        (["power_mw=-1"], "power_mw = -1.0 must be a number from"),
        (["extinction_db=1"], "extinction_db = 1 leaves"),
        (["capacitor_f=1e-17"], "capacitor_f = 1e-17 fills up"),
        (["powr_mw=1"], "unknown key powr_mw; did you mean power_mw?"),
        (["--preset", "lin2025"], "preset = 'lin2025' must be one of"),
        (["--fan-in", "200000"], "fan_in = 200000 is beyond max_fan_in = 131072"),
        (["--fan-in", "0"], "--fan-in = 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(arguments, message, refused):
    assert message in refused("optics", "inspect", *arguments)


def test_the_page_states_what_was_measured_and_names_from_outside_stay_text():
    evil = '<script>alert("x")</script>'
    config = load_preset("lin2024")
    row = {"bits": 8, "electrons": 10.0, "moved": 0.5, "in_situ": 0.9, "clipped": 0.001}
    accuracy = {"bits": [row], "electrons": [row], "digital": 0.95, "widths": [784, 64, 10], "epochs": 2}
    results = {
        **measure(config, 0, "lin2024"),
        "accuracy": {**accuracy, "n_train": 2500, "n_test": 2000},
        "origin": {"preset": evil, "seed": 0, "commit": None, "hardware": evil, "time": evil, "wall_s": 1.0}
        | {"config": dataclasses.asdict(config)},
    }
    page = core_page(results, {"eye": "<svg></svg>"})
    assert "120.0 GOPS" in page and "784-64-10" in page and "get\n50.0%, those that met the core" in page
    assert page.count("<figure>") == 1 and "commit unknown" in page
    assert "<script" not in page and page.count("&lt;script&gt;") == 3


@pytest.mark.slow
def test_the_demo_ends_in_a_page_with_every_picture(tmp_path):
    pytest.importorskip("matplotlib")
    cli.main(["optics", "demo", "--out", str(tmp_path), "--n-train", "200", "--n-test", "100"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 9 and "120.0 GOPS" in page and "assumption" in page
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    wanted = {"transfer", "eye", "budget", "light", "fidelity", "throughput", "energy", "glyphs", "accuracy"}
    assert names == wanted
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(results["accuracy"]["bits"]) == len(experiments.BITS)
    assert (tmp_path / "results.json").stat().st_size < 200_000
