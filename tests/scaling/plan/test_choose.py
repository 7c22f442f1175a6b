"""Plans: whole numbers that meet the budget, recipes that train reads, refusals that say the way out."""

import datetime
import json
import math
import re
import tomllib

import numpy as np
import pytest
from law_examples import example_laws

from isoflop.cli import main as cli
from isoflop.errors import IsoflopError, PlanError, RecipeError
from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.recipe import from_tree, to_toml, write_json
from isoflop.scaling.plan.choose import Machine, load_laws
from isoflop.scaling.plan.choose import plan as make_plan
from isoflop.scaling.report.plan_rows import plan_rows
from isoflop.scaling.sweep.family import DENSE, ExpertFamily, Family, LatentFamily
from isoflop.training.pretrain.recipe import PretrainRecipe, check

LAWS = example_laws()
SMALL = {
    "vocab_size": 512,
    "seq_len": 128,
    "hyper": {"learning_rate": 0.002, "batch_tokens": {"coefficient": 0.02, "total_flops": 0.3}},
}


def small(**arguments):
    """A plan of five times the compute of the sweep."""
    return make_plan(LAWS, **{"budget_flops": 1.5e15, **SMALL, **arguments})


def test_the_plan_meets_its_budget_in_whole_steps_of_whole_sequences():
    found = small()
    assert found.total_flops == flops_per_token(found.config, "M") * found.n_tokens
    assert 1.5e15 <= found.total_flops < 1.5e15 * (1 + 1.5 / found.steps)
    assert found.n_tokens == found.steps * found.batch_tokens and found.batch_tokens % 128 == 0
    assert found.scale == pytest.approx(found.by_law_scale["parabola"], rel=0.2)
    assert found.total_flops_exact > found.total_flops


def test_the_recipe_carries_the_prediction_and_its_time_stamp():
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    found = small(largest_sweep_flops_exact=4e14)
    written = tomllib.loads(to_toml(found.recipe))["prediction"]
    assert found.prediction is not None
    assert written["bits_per_byte"] == found.prediction.center
    assert written["low"] < written["bits_per_byte"] < written["high"] and written["level"] == 0.9
    assert datetime.datetime.fromisoformat(written["predicted_at"]) >= before
    assert written["largest_sweep_flops"] == 3e14 and written["largest_sweep_flops_exact"] == 4e14
    assert written["extrapolation"] == pytest.approx(5.0, rel=0.01)
    assert written["laws_sha256"] == load_laws(LAWS).fingerprint()


MIXTURE = Family(experts=ExpertFamily(n_experts=16, n_active=3, granularity=4.0), latent=LatentFamily())


@pytest.mark.parametrize("family", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_train_reads_the_recipe_as_it_is(family):
    found = small(family=family)
    recipe = from_tree(tomllib.loads(to_toml(found.recipe)), PretrainRecipe)
    check(recipe)
    assert recipe.n_steps() == found.steps and recipe.model == found.config
    assert recipe.prediction is not None and recipe.prediction["bits_per_byte"] > 0


def test_the_sweeps_settings_carry_over_and_the_plan_decides_the_rest():
    template = {
        "data": {"tokens": "runs/tokens", "weights": {"code": 1.0}},
        "train": {"schedule": "cosine", "weight_decay": 0.05, "learning_rate": 9.0, "batch_tokens": 1, "seed": 7},
        "validate": {"max_tokens": 1000},
    }
    found = small(template=template)
    train = found.recipe["train"]
    assert (train["schedule"], train["weight_decay"], train["seed"]) == ("cosine", 0.05, 7)
    assert (train["learning_rate"], train["batch_tokens"]) == (0.002, found.batch_tokens)
    assert found.recipe["data"]["tokens"] == "runs/tokens" and found.recipe["validate"]["max_tokens"] == 1000
    assert any("schedule cosine differs" in text for text in found.warnings)
    assert small().recipe["train"]["schedule"] == "constant_cooldown"  # that of the fitted runs


def test_plans_within_a_tenth_of_a_percent_are_listed_around_the_chosen_one():
    found = small()
    rows = found.near_optimal
    assert len(rows) >= 2 and sum(row.chosen for row in rows) == 1
    assert all(row.relative_loss <= 0.001 or row.chosen for row in rows)
    assert min(row.relative_loss for row in rows) == 0
    assert [row.scale for row in rows] == sorted(row.scale for row in rows)
    assert rows[-1].scale / rows[0].scale > 1.1  # the optimum is flat


def test_gpu_hours_give_the_budget_that_takes_them():
    machine = Machine(n_gpus=8, hardware="H100", utilisation=0.5, zero_stage=1, price_per_gpu_hour=2.0)
    found = make_plan("deepseek", gpu_hours=1000, machine=machine)
    assert found.gpu_hours == pytest.approx(1000, rel=0.01)
    assert found.hours == pytest.approx(125, rel=0.01) and found.cost == pytest.approx(2000, rel=0.01)
    assert found.total_flops_exact == pytest.approx(1000 * 3600 * 989.4e12 * 0.5, rel=0.01)
    assert found.batch_tokens % (8 * 4096) == 0


def test_a_measured_speed_goes_before_the_utilisation():
    machine = Machine(speed=lambda config, batch_tokens: 4.5e10 / flops_per_token(config, "exact"))
    found = make_plan(LAWS, gpu_hours=5 / 60, machine=machine, **SMALL)
    assert found.hours == pytest.approx(5 / 60, rel=0.01)
    assert found.total_flops_exact == pytest.approx(300 * 4.5e10, rel=0.02)


def test_large_batches_are_rounded_so_that_micro_batches_divide_them():
    found = make_plan("deepseek", budget_flops=1e22, machine=Machine(max_micro_batch=16))
    sequences = found.batch_tokens // 4096
    assert sequences % 16 == 0 and found.memory.micro_batch == 16
    assert found.batch_tokens == pytest.approx(4.588e6, rel=0.02)


def test_a_published_law_plans_but_does_not_predict():
    found = make_plan("chinchilla", budget_flops=1e20)
    assert found.prediction is None and "prediction" not in found.recipe
    assert any("no prediction" in text for text in found.warnings)
    assert found.hyper.name == "steplaw" and found.scale_name == "n_params"
    assert found.total_flops == pytest.approx(1e20, rel=0.01)
    assert found.tree()["n_params_total"] == found.scale
    assert found.scale == pytest.approx(found.by_law_scale["surface_published"], rel=0.15)


def test_deepseek_law_plans_a_model_with_its_own_batch_and_rate():
    found = make_plan("deepseek", budget_flops=1e20)
    assert found.scale == pytest.approx(5.251e9, rel=0.12)
    assert found.n_tokens == pytest.approx(1.905e10, rel=0.12)
    assert found.learning_rate == pytest.approx(9.860e-4, rel=2e-3)
    assert found.batch_tokens == pytest.approx(248.3 * 4096, abs=4096)
    assert found.recipe["train"]["schedule"] == "multi_step" and found.recipe["train"]["warmup_steps"] <= 2000


def test_serving_makes_the_planned_model_smaller_for_the_same_training_budget_and_costs_little_loss():
    plain = small()
    served = small(serve_tokens=5.0 * plain.n_tokens)
    assert served.scale < 0.8 * plain.scale and served.total_flops == pytest.approx(plain.total_flops, rel=2e-3)
    assert served.prediction is not None and plain.prediction is not None
    assert 0 < served.serving["saving"] < 1
    assert served.serving["training_flops"] == pytest.approx(1.5e15, rel=1e-6)
    smaller = small(budget_flops=served.serving["training_flops_optimum"])  # reaches the same loss
    assert smaller.prediction is not None and smaller.scale > 1.2 * served.scale
    assert smaller.prediction.center == pytest.approx(served.prediction.center, rel=2e-3)
    assert plain.prediction.center < served.prediction.center


def test_a_served_model_has_one_size_whether_its_training_is_given_in_flops_or_in_hours():
    machine = Machine(n_gpus=8, hardware="H100")
    by_hours = make_plan("chinchilla", gpu_hours=2688, machine=machine, serve_tokens=1e12)
    by_flops = make_plan("chinchilla", budget_flops=by_hours.total_flops, machine=machine, serve_tokens=1e12)
    assert by_hours.config == by_flops.config
    assert by_hours.n_tokens == pytest.approx(by_flops.n_tokens, rel=0.005)
    rows = dict(plan_rows(by_flops))
    assert "for training alone" in rows["model scale"] and not any("% loss" in name for name in rows)


def test_the_share_of_the_corpus_and_how_far_the_laws_are_stretched_are_told():
    found = small(unique_tokens=1e9)
    assert found.extrapolation == pytest.approx(5.0, rel=0.02)
    rows = dict(plan_rows(found))
    assert rows["corpus"] == f"{found.n_tokens / 1e9:.0%} of 1e+09 tokens at hand"
    assert rows["extrapolation"].startswith("5 x the largest run of the laws (3e+14 FLOPs)")
    repeated = dict(plan_rows(small(unique_tokens=found.n_tokens / 4)))
    assert "passes over" in repeated["corpus"]
    far = small(budget_flops=1.5e21, machine=Machine(memory_gib=1.0), hyper="deepseek")
    assert far.memory.refusal and dict(plan_rows(far))["extrapolation"].startswith("5e+06 x")
    assert any("5e+06 times the largest sweep budget" in text for text in far.warnings)


def test_published_laws_give_a_rough_loss_that_says_what_it_is():
    found = make_plan("deepseek", budget_flops=3.5e21)
    assert list(found.rough_loss) == ["chinchilla", "hoffmann", "muennighoff"] and found.prediction is None
    n_params = count_parameters(found.config).n_params_total
    by_hand = 1.817 + 482.0 / n_params**0.348 + 2085.0 / found.n_tokens**0.366  # arXiv 2404.10102
    assert found.rough_loss["chinchilla"] == pytest.approx(by_hand)
    row = dict(plan_rows(found))["rough loss"]
    assert row.startswith("2.2") and "other data, no interval" in row
    assert found.extrapolation == pytest.approx(3.5e21 / 3e20, rel=0.01)
    assert small().rough_loss == {}


def test_repeated_data_raises_the_predicted_loss():
    plain = small()
    repeated = small(unique_tokens=plain.n_tokens / 4)
    assert repeated.prediction is not None and plain.prediction is not None
    assert repeated.prediction.center > plain.prediction.center
    assert repeated.tree()["unique_tokens"] == plain.n_tokens / 4


def test_a_long_extrapolation_is_warned_about():
    assert not any("times the largest" in text for text in small(budget_flops=8e15).warnings)
    found = small(budget_flops=1.2e16)
    assert any("40 times the largest sweep budget" in text for text in found.warnings)


def test_the_plan_is_told_in_rows_with_its_prediction():
    rows = dict(plan_rows(small(serve_tokens=1e9)))
    assert list(rows)[:3] == ["shape", "parameters", "model scale"]
    assert "90% interval" in rows["predicted"] and "lstar" in rows["by law"] and "%" in rows["serving"]


def test_plan_and_recipe_are_written_and_read_back(tmp_path):
    write_json(tmp_path / "laws.json", LAWS)
    found = make_plan(tmp_path / "laws.json", budget_flops=1.5e15, **SMALL)
    found.write(tmp_path / "target.toml", tmp_path / "found.json")
    recipe = tomllib.loads((tmp_path / "target.toml").read_text(encoding="utf-8"))
    tree = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert recipe["model"]["d_model"] == found.config.d_model
    assert recipe["prediction"]["laws"].endswith("laws.json") and len(recipe["prediction"]["laws_sha256"]) == 64
    assert tree["prediction"]["center"] == recipe["prediction"]["bits_per_byte"]
    assert tree["flops_per_token"] == flops_per_token(found.config, "M")


def test_memory_is_reported_and_the_micro_batch_fits_it():
    tight = make_plan("deepseek", budget_flops=1e19, machine=Machine(memory_gib=12.0))
    roomy = make_plan("deepseek", budget_flops=1e19, machine=Machine(memory_gib=80.0))
    assert tight.memory.parts.total_bytes <= 0.92 * 12 * 2**30
    assert tight.memory.micro_batch < roomy.memory.micro_batch
    assert roomy.recipe["train"]["micro_batch"] == roomy.memory.micro_batch


@pytest.mark.parametrize(
    ("laws", "arguments", "message"),
    [
        (LAWS, {"budget_flops": 1e9, **SMALL}, "no shape|less than one optimizer step"),
        (
            LAWS,
            {"budget_flops": 1e13, **SMALL, "hyper": {"learning_rate": 0.1, "batch_tokens": 10**9}},
            "one optimizer step",
        ),
        (LAWS, {**SMALL}, "give exactly one"),
        (LAWS, {"budget_flops": 1e15, "gpu_hours": 1.0, **SMALL}, "give exactly one"),
        (LAWS, {"gpu_hours": 1.0, **SMALL}, "needs hardware"),
        ("deepseek", {"budget_flops": 1e20, "machine": Machine(hardware="H10")}, "did you mean H100"),
        ("deepseek", {"budget_flops": 1e20, "machine": Machine(utilisation=40)}, "utilisation = 40"),
        ("deepseek", {"budget_flops": 1e20, "machine": "h100"}, "machine = .h100. must be a Machine"),
        ({**LAWS, "resamples": {}}, {"budget_flops": 1e15, **SMALL}, "no interval is available"),
        ("no-such-laws.json", {"budget_flops": 1e15}, "no such laws file"),
    ],
)
def test_a_plan_that_cannot_be_met_is_refused_with_a_way_out(laws, arguments, message):
    with pytest.raises(PlanError, match=message):
        make_plan(laws, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget_flops": -1.0}, "budget_flops = -1.0 must be above 0"),
        ({"budget_flops": math.inf}, "budget_flops = inf must be above 0 and finite"),
        ({"budget_flops": None, "gpu_hours": 0.0}, "gpu_hours = 0.0 must be above 0"),
        ({"vocab_size": 0}, "vocab_size = 0 must be at least 1"),
        ({"seq_len": np.float64(0.5)}, "seq_len = 0.5 must be a whole number"),
        ({"unique_tokens": 0}, "unique_tokens = 0 must be above 0"),
        ({"max_epochs": math.nan}, "max_epochs = nan must be above 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(arguments, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        small(**arguments)


def test_what_does_not_fit_is_still_a_plan_that_says_what_would_and_is_not_written(tmp_path):
    found = make_plan("deepseek", budget_flops=1e22, machine=Machine(memory_gib=16.0))
    assert found.n_tokens > 1e11 and found.rough_loss and "does not fit" in dict(plan_rows(found))["memory"]
    with pytest.raises(PlanError, match=r"memory = .* GiB per device .* what would fit: .*a budget of .* FLOPs"):
        found.write(tmp_path / "plan.toml")
    assert not (tmp_path / "plan.toml").exists() and found.tree()["memory"]["refusal"]


def test_a_memory_refusal_names_sharding_devices_and_budgets_that_fit():
    asked = {"budget_flops": 3e21, "machine": Machine(n_gpus=64, hardware="H100", zero_stage=0)}
    refusal = make_plan("deepseek", **asked).memory.refusal
    assert "what would fit: zero_stage = 1, " in refusal and "64 x H200" in refusal
    one = make_plan("deepseek", budget_flops=3e21, machine=Machine(hardware="A100")).memory
    more, larger, smaller = one.refusal.split("what would fit: ")[1].split(", ")
    assert (more, larger) == ("2 devices with zero_stage = 3", "1 x H200")
    budget = float(smaller.split()[3])
    fits = {
        (3e21, Machine(n_gpus=2, hardware="A100", zero_stage=3)): True,
        (3e21, Machine(hardware="H200")): True,
        (budget, Machine(hardware="A100")): True,
        (2.2 * budget, Machine(hardware="A100")): False,
    }
    for (flops, machine), expected in fits.items():
        assert (not make_plan("deepseek", budget_flops=flops, machine=machine).memory.refusal) == expected, machine


def test_the_least_sharding_that_fits_is_taken_where_none_is_asked_for():
    plans = [make_plan("deepseek", budget_flops=c, machine=Machine(n_gpus=64, hardware="H100")) for c in (3e20, 3e21)]
    assert [found.memory.zero_stage for found in plans] == [0, 1]
    assert make_plan("deepseek", budget_flops=3e20, machine=Machine(hardware="H100")).memory.zero_stage == 0


def test_a_tokenizer_other_than_the_sweeps_is_refused():
    template = {"data": {"tokens": "t", "tokenizer_sha256": "a" * 64}}
    with pytest.raises(PlanError, match="not the tokenizer of the fitted runs"):
        small(template=template)


def test_a_file_that_is_no_laws_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PlanError, match="is not JSON"):
        make_plan(tmp_path / "a.json", budget_flops=1e15)
    with pytest.raises(PlanError, match="is not a set of laws"):
        make_plan(tmp_path / "b.json", budget_flops=1e15)
    (tmp_path / "c.json").write_text("[" * 10_000, encoding="utf-8")
    with pytest.raises(PlanError, match="is not JSON"):
        make_plan(tmp_path / "c.json", budget_flops=1e15)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"scale": ["n_params"]}, "is not a set of laws"),
        ({"format": "new"}, "d.json is damaged .*fit"),
        ({"surface": [1]}, "d.json is damaged .*fit"),
        ({"surface": {"varpro": {"E": "1", "A": 1, "B": 1, "alpha": 1, "beta": 1}}}, "varpro.E = '1' must be a number"),
        ({"budgets": 3}, "d.json is damaged .*fit"),
        ({"largest_budget_flops": [1e18]}, r"largest_budget_flops = \[1e\+18\] must be a number"),
        ({"parabola": {"vertices": [3]}}, "d.json is damaged .*fit"),
        ({"resamples": {"lstar": [1, 2]}}, "d.json is damaged .*fit"),
        ({"hyper": "deepseek"}, "d.json is damaged .*fit"),
        ({"conventions": 3}, "conventions = 3 must be a table"),
        ({"loss": "nats"}, "loss = 'nats' must be one of loss_nats, bits_per_byte"),
        ({"largest_budget_flops": -1e18}, r"largest_budget_flops = -1e\+18 must be above 0"),
        ({"bottoms": {"E": 1, "k": 1, "g": 1, "reference_flops": 0}}, "bottoms.reference_flops = 0 must be above 0"),
        ({"leave_out": {"relative_error": 0, "extrapolation_factor": 9, "by_law": 3}}, "by_law = 3 must be a table"),
        (
            {"leave_out": {"relative_error": 0, "extrapolation_factor": 9, "by_law": {"lstar": [1]}}},
            r"by_law.lstar = \[1\] must be a number",
        ),
    ],
    ids=str,
)
def test_a_laws_file_that_was_edited_by_hand_is_one_message(tmp_path, part, message):
    write_json(tmp_path / "d.json", {"law_set": 1, "scale": "n_params", **part})
    with pytest.raises(IsoflopError, match=message):
        make_plan(tmp_path / "d.json", budget_flops=1e15)


def test_a_mixture_is_planned_in_active_flops_with_what_it_should_be_worth():
    found = small(family=MIXTURE)
    assert found.config.experts is not None and found.config.latent is not None
    assert found.total_flops == flops_per_token(found.config, "M") * found.n_tokens
    counts = count_parameters(found.config)
    tree, rows = found.tree(), dict(plan_rows(found))
    assert tree["n_params_active"] == counts.n_params_active < tree["n_params_total"]
    assert found.leverage is not None and found.leverage.measured is None
    expected = found.leverage.expected
    assert expected.low < expected.center < expected.high and "2507.17702" in expected.source
    assert "over published laws" in rows["expected leverage"] and "16 of width" in rows["experts"]
    assert "active" in rows["parameters"] and "rotary channels" in rows["latent attention"]
    assert any("lie below the compute" in text for text in found.warnings)
    assert all(row.n_params_active < row.n_params_total for row in found.near_optimal)


def test_laws_of_a_dense_sweep_measure_what_the_experts_are_worth():
    better = example_laws(seed=2, data_gain=2.0)
    found = make_plan(better, budget_flops=1e15, family=MIXTURE, dense_laws=LAWS, **SMALL)
    assert found.leverage is not None
    measured = found.leverage.measured
    assert measured.low < 2.0 < measured.high and measured.center == pytest.approx(2.0, rel=0.03)
    assert "over laws" in dict(plan_rows(found))["measured leverage"]


def test_a_dense_plan_says_nothing_of_experts():
    found = small()
    assert found.leverage is None and "experts" not in dict(plan_rows(found))
    assert set(found.recipe["model"]).isdisjoint({"experts", "latent", "mtp_depth"})


def test_laws_of_one_family_do_not_plan_another():
    laws = {**LAWS, "conventions": {**LAWS["conventions"], "family": "16 experts, 3 active, 1 shared, sigmoid; MHA"}}
    with pytest.raises(PlanError, match=r"conventions.family = '16 experts.* give the ladder recipe"):
        make_plan(laws, budget_flops=1.5e15, **SMALL)


def test_a_law_of_parameters_shows_both_counts_of_a_mixture():
    found = small(family=MIXTURE, hyper="joint_experts")
    other = found.tree()["hyper"]["by_total_parameters"]
    assert other["learning_rate"] < found.learning_rate  # more parameters, lower rate
    dense = small(hyper="joint_experts")
    assert "by_total_parameters" not in dense.tree()["hyper"]


DAY_ONE = ["--gpus", "8", "--hardware", "h100", "--days", "14", "--tokens", "5e11"]


def test_eight_gpus_two_weeks_and_500_billion_tokens_are_answered_in_one_screen(tmp_path, capsys):
    out = str(tmp_path / "plan.toml")
    cli.main(["plan", "chinchilla", *DAY_ONE, "--out", out, "--json", str(tmp_path / "plan.json")])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) <= 24 and all(len(line) <= 132 for line in lines if out not in line)
    for label, text in {
        "tokens": r"1\.\d+e\+11 \(2\d\.\d per parameter\)",
        "corpus": "22% of 5e[+]11 tokens at hand",
        "time": "14 days on 8 devices, 2,688 device hours",
        "extrapolation": "0.27 x the largest run of the laws",
        "memory": "GiB per device at 1 sequence, zero_stage 2",
        "rough loss": "2.19 to 2.25 nats per token: other data, no interval",
    }.items():
        assert re.search(rf"^  {label} +.*{text}", shown, re.MULTILINE), (label, shown)
    assert "8 devices and isoflop train uses 1 so far" in shown and "run it:" not in shown
    tree = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert tree["gpu_hours"] == pytest.approx(2688, rel=0.003) and tree["unique_tokens"] == 5e11
    cli.main(["plan", "chinchilla", "--hours", "5", "--hardware", "h100", "--out", out])
    assert f"run it: isoflop train {out} data.tokens=FOLDER" in capsys.readouterr().out


def test_a_day_one_plan_that_does_not_fit_shows_itself_the_extrapolation_and_the_way_out(tmp_path, capsys):
    write_json(tmp_path / "laws.json", {**LAWS, "budgets": [1e13, 3e13], "largest_budget_flops": 7e14})
    out = tmp_path / "plan.toml"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", str(tmp_path / "laws.json"), *DAY_ONE, "--memory-gib", "24", "--out", str(out)])
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and not out.exists()
    assert re.search(r"shape +\d+ layers", shown.out) and re.search(r"extrapolation +5.*e\+06 x the largest", shown.out)
    assert re.search(r"memory +.* does not fit", shown.out) and "no recipe: it does not fit" in shown.out
    assert re.search(r"predicted +.* 90% interval", shown.out) and "what would fit: " in shown.err


@pytest.mark.parametrize(
    "budget", [[], ["--days", "1", "--gpu-hours", "1"], ["--hours", "1", "--budget-flops", "1e20"]]
)
def test_a_budget_is_given_in_one_way(budget, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "chinchilla", "--hardware", "h100", *budget])
    assert "exactly one of --budget-flops, --gpu-hours, --hours and --days" in capsys.readouterr().err
