"""`isoflop inspect` says of the shipped recipes what was published, without memory for a single weight."""

import json

import pytest
from places import ROOT

from isoflop.cli import main as cli

RECIPES = ROOT / "recipes" / "pretrain"


@pytest.mark.parametrize(
    ("name", "total", "active", "kv_bytes"),
    [
        ("deepseek-7b", 6_910_365_696, 6_910_365_696, 30 * 2 * 4096 * 2),
        ("deepseek-67b", 67_425_001_472, 67_425_001_472, 95 * 2 * 1024 * 2),
        ("deepseek_moe_16b", 16_375_728_128, 2_828_650_496, 28 * 2 * 2048 * 2),
        ("deepseek_v2_lite", 15_706_484_224, 2_661_150_208, 27 * 576 * 2),
        ("deepseek_v2", 235_741_434_880, 21_375_800_320, 60 * 576 * 2),
        ("deepseek_v3", 671_026_419_200, 37_552_297_472, 61 * 576 * 2),
    ],
)
def test_the_published_models_are_counted_exactly(name, total, active, kv_bytes, tmp_path, capsys):
    cli.main(["inspect", str(RECIPES / f"{name}.toml"), "--json", str(tmp_path / "found.json")])
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["n_params_total"], found["n_params_active"]) == (total, active)
    assert found["kv_bytes_per_token"]["bf16"] == kv_bytes
    assert f"{total:,}" in shown and f"{active:,}" in shown


def test_prediction_modules_are_counted_apart(tmp_path):
    found = []
    for depth in (0, 1):
        path = tmp_path / f"{depth}.json"
        overrides = [f"model.mtp_depth={depth}", *(["train.mtp.weight=0.3"] if depth else [])]
        cli.main(["inspect", str(RECIPES / "deepseek_v3.toml"), *overrides, "--json", str(path)])
        found.append(json.loads(path.read_text(encoding="utf-8")))
    without, with_one = found
    assert with_one["n_params_total"] == without["n_params_total"]
    assert (without["n_params_mtp"], with_one["n_params_mtp"]) == (0, 11_610_068_224)
    extra = with_one["flops_per_token"]["exact"] - without["flops_per_token"]["exact"]
    products = (extra - 6 * 128 * (192 + 128) * 4096) / 6
    with_embedding = products + without["n_params_embedding"] - 2 * 7168**2
    assert with_embedding == pytest.approx(2.4e9, rel=0.02)  # published, tables included, without its projection
    assert with_one["flops_per_token"]["M"] == without["flops_per_token"]["M"]
