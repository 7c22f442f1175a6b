"""Runs in number formats of their own: as close to float32 as promised, resumed bit for bit, said in the records."""

import json
import tomllib

import pytest
import torch

from isoflop.errors import CheckpointError, RecipeError
from isoflop.numerics.section import NumericsSection
from isoflop.recipe import load_recipe, write_recipe
from isoflop.training.load_run import find_trained, load_model
from isoflop.training.pretrain.recipe import PretrainRecipe
from isoflop.training.pretrain.workload import run_pretrain

SMALL = {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 4, "d_head": 8, "d_ff": 88, "seq_len": 32}
PHOTONIC = {"rules": [{"modules": "blocks.*", "format": "photonic"}]}
IDEAL = {**PHOTONIC, "photonic": {"preset": "ideal"}}
FP8 = {"rules": [{"modules": "blocks.*", "format": "fp8_block"}]}


def losses(run_dir):
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss_nats"] for row in rows if "loss_nats" in row]


def stopping_after(n_calls):
    calls = iter(range(10**9))
    return lambda: next(calls) >= n_calls


@pytest.mark.parametrize("rules", ["blocks.*", "*"])
def test_every_loss_of_100_steps_on_an_ideal_core_is_that_of_float32(tmp_path, tiny_recipe, rules):
    train = {"n_tokens": 100 * 128, "batch_tokens": 128, "learning_rate": 0.005}
    ideal = {**IDEAL, "rules": [{"modules": rules, "format": "photonic"}]}
    run_pretrain(tiny_recipe(model=SMALL, train=train), tmp_path / "float32")
    run_pretrain(tiny_recipe(model=SMALL, train=train, numerics=ideal), tmp_path / "ideal")
    exact, found = losses(tmp_path / "float32"), losses(tmp_path / "ideal")
    assert len(found) == 100 and exact[-1] < 0.9 * exact[0]
    worst = max(abs(a / b - 1) for a, b in zip(found, exact, strict=True))
    assert worst < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("numerics", [PHOTONIC, FP8], ids=["photonic", "fp8"])
def test_a_small_gpt_reaches_the_float32_loss_within_one_percent(tmp_path, tiny_recipe, numerics):
    train = {"n_tokens": 600 * 256, "batch_tokens": 256, "learning_rate": 0.01, "warmup_steps": 20}
    exact = run_pretrain(tiny_recipe(model=SMALL, train=train), tmp_path / "float32")
    found = run_pretrain(tiny_recipe(model=SMALL, train=train, numerics=numerics), tmp_path / "found")
    assert losses(tmp_path / "float32")[0] > 1.3 * exact["loss_nats"]
    assert found["loss_nats"] == pytest.approx(exact["loss_nats"], rel=0.01)


def test_a_noisy_run_stopped_twice_and_resumed_is_the_undisturbed_one(tmp_path, tiny_recipe):
    recipe = tiny_recipe(numerics=PHOTONIC, train={"micro_batch": 2}, validate={"every_steps": 7})
    whole = run_pretrain(recipe, tmp_path / "whole")
    for n_calls in (4, 12):
        assert run_pretrain(recipe, tmp_path / "parts", should_stop=stopping_after(n_calls))["status"] == "interrupted"
    parts = run_pretrain(recipe, tmp_path / "parts")
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert parts["loss_nats"] == whole["loss_nats"]
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    shares = [line["clipped_share"] for line in lines if "clipped_share" in line]
    assert len(shares) == 30 and all(0 <= share < 0.01 for share in shares)


def test_noise_changes_with_the_seed_of_the_run_and_of_the_numerics(tmp_path, tiny_recipe):
    noisy = {name: {**PHOTONIC, "seed": seed} for name, seed in (("a", 0), ("b", 1))}
    for name, numerics in noisy.items():
        run_pretrain(tiny_recipe(numerics=numerics, train={"n_tokens": 10 * 64}), tmp_path / name)
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "b")[0]


def test_result_and_resolved_recipe_say_the_number_format_and_evaluation_uses_it(tmp_path, tiny_recipe):
    numerics = {**PHOTONIC, "photonic": {"core": {"adc_bits": 6}}}
    recipe = tiny_recipe(numerics=numerics, train={"n_tokens": 10 * 64})
    result = run_pretrain(recipe, tmp_path)
    assert result["numerics"] == "photonic lin2024, adc_bits 6, ste on blocks.*; else float32"
    assert load_recipe(tmp_path / "recipe.toml", PretrainRecipe) == recipe
    trained = find_trained(tmp_path)
    assert isinstance(trained.numerics, NumericsSection)
    model = load_model(trained, device=torch.device("cpu"))
    assert model.blocks[0].mlp.down.numerics.core.config.adc_bits == 6
    with pytest.raises(CheckpointError, match="another recipe"):
        run_pretrain(tiny_recipe(train={"n_tokens": 10 * 64}), tmp_path)


def test_a_recipe_can_name_formats_in_one_line(tmp_path, tiny_tree):
    write_recipe(tmp_path / "r.toml", tiny_tree)
    line = 'numerics.rules=[{modules = "blocks.*", format = "fp8_block"}]'
    found = load_recipe(tmp_path / "r.toml", PretrainRecipe, [line, "numerics.fp8_block.power_of_two_scales=true"])
    assert found.numerics.rules[0].format == "fp8_block" and found.numerics.fp8_block.power_of_two_scales
    write_recipe(tmp_path / "again.toml", found)
    assert tomllib.loads((tmp_path / "again.toml").read_text())["numerics"]["rules"][0]["modules"] == "blocks.*"
    assert load_recipe(tmp_path / "again.toml", PretrainRecipe) == found


@pytest.mark.parametrize(
    ("numerics", "message"),
    [
        ({"rules": [{"modules": "layers.*", "format": "photonic"}]}, r"numerics\.rules\[0\]\.modules = 'layers"),
        ({"rules": [{"modules": "*", "format": "fp4"}]}, r"numerics\.rules\[0\]\.format = 'fp4' must be one of"),
        ({**PHOTONIC, "photonic": {"core": {"adc_bits": 0}}}, r"numerics\.photonic: adc_bits = 0 must be 1 to 16"),
        ({**PHOTONIC, "photonic": {"core": {"power_mw": -1}}}, r"numerics\.photonic: power_mw = -1"),
        ({**PHOTONIC, "photonic": {"preset": "lin2042"}}, r"numerics\.photonic: preset = 'lin2042'.*did you mean"),
        (
            {**PHOTONIC, "photonic": {"core": {"max_fan_in": 8}}},
            r"fan-in 16 of blocks\.0\.mlp\.down is beyond max_fan_in = 8",
        ),
        ({**PHOTONIC, "fp8_blok": {}}, r"unknown key numerics\.fp8_blok; did you mean numerics\.fp8_block"),
    ],
)
def test_what_cannot_be_is_refused_with_one_clear_error(tmp_path, tiny_recipe, numerics, message):
    with pytest.raises(RecipeError, match=message):
        run_pretrain(tiny_recipe(numerics=numerics), tmp_path)
