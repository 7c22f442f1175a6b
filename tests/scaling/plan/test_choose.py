"""Plans: whole numbers that meet the budget, recipes that train reads, refusals that say the way out."""

import datetime
import json
import tomllib

import pytest
from law_examples import example_laws

from isoflop.errors import PlanError
from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.recipe import from_tree, to_toml, write_json
from isoflop.scaling.plan.choose import Machine, load_laws
from isoflop.scaling.plan.choose import plan as make_plan
from isoflop.scaling.report.plan_rows import plan_rows
from isoflop.scaling.sweep.family import ExpertFamily, Family, LatentFamily
from isoflop.training.pretrain.recipe import PretrainRecipe, check

LAWS = example_laws()
SMALL = {
    "vocab_size": 512,
    "seq_len": 128,
    "hyper": {"learning_rate": 0.002, "batch_tokens": {"coefficient": 0.02, "total_flops": 0.3}},
}


def test_the_plan_meets_its_budget_in_whole_steps_of_whole_sequences():
    found = make_plan(LAWS, budget_flops=1.5e15, **SMALL)
    assert found.total_flops == flops_per_token(found.config, "M") * found.n_tokens
    assert 1.5e15 <= found.total_flops < 1.5e15 * (1 + 1.5 / found.steps)
    assert found.n_tokens == found.steps * found.batch_tokens and found.batch_tokens % 128 == 0
    assert found.scale == pytest.approx(found.by_law_scale["parabola"], rel=0.2)
    assert found.total_flops_exact > found.total_flops


def test_the_recipe_carries_the_prediction_and_its_time_stamp():
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    found = make_plan(LAWS, budget_flops=1.5e15, largest_sweep_flops_exact=4e14, **SMALL)
    written = tomllib.loads(to_toml(found.recipe))["prediction"]
    assert found.prediction is not None
    assert written["bits_per_byte"] == found.prediction.center
    assert written["low"] < written["bits_per_byte"] < written["high"] and written["level"] == 0.9
    assert datetime.datetime.fromisoformat(written["predicted_at"]) >= before
    assert written["largest_sweep_flops"] == 3e14 and written["largest_sweep_flops_exact"] == 4e14
    assert written["extrapolation"] == pytest.approx(5.0, rel=0.01)
    assert written["laws_sha256"] == load_laws(LAWS).fingerprint()


def test_train_reads_the_recipe_as_it_is():
    found = make_plan(LAWS, budget_flops=1.5e15, **SMALL)
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
    found = make_plan(LAWS, budget_flops=1.5e15, template=template, **SMALL)
    train = found.recipe["train"]
    assert (train["schedule"], train["weight_decay"], train["seed"]) == ("cosine", 0.05, 7)
    assert (train["learning_rate"], train["batch_tokens"]) == (0.002, found.batch_tokens)
    assert found.recipe["data"]["tokens"] == "runs/tokens" and found.recipe["validate"]["max_tokens"] == 1000
    assert any("schedule cosine differs" in text for text in found.warnings)


def test_without_a_template_the_schedule_is_that_of_the_fitted_runs():
    assert make_plan(LAWS, budget_flops=1.5e15, **SMALL).recipe["train"]["schedule"] == "constant_cooldown"


def test_plans_within_a_tenth_of_a_percent_are_listed_around_the_chosen_one():
    found = make_plan(LAWS, budget_flops=1.5e15, **SMALL)
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


def test_serving_makes_the_planned_model_smaller_at_the_same_predicted_loss():
    plain = make_plan(LAWS, budget_flops=1.5e15, **SMALL)
    served = make_plan(LAWS, budget_flops=1.5e15, serve_tokens=5.0 * plain.n_tokens, **SMALL)
    assert served.scale < plain.scale and served.total_flops > 1.05 * plain.total_flops
    assert served.prediction is not None and plain.prediction is not None
    assert served.prediction.center == pytest.approx(plain.prediction.center, rel=2e-3)
    assert 0 < served.serving["saving"] < 1


def test_repeated_data_raises_the_predicted_loss():
    plain = make_plan(LAWS, budget_flops=1.5e15, **SMALL)
    repeated = make_plan(LAWS, budget_flops=1.5e15, unique_tokens=plain.n_tokens / 4, **SMALL)
    assert repeated.prediction is not None and plain.prediction is not None
    assert repeated.prediction.center > plain.prediction.center
    assert repeated.tree()["unique_tokens"] == plain.n_tokens / 4


def test_a_long_extrapolation_is_warned_about():
    assert not any("times the largest" in text for text in make_plan(LAWS, budget_flops=8e15, **SMALL).warnings)
    found = make_plan(LAWS, budget_flops=1.2e16, **SMALL)
    assert any("40 times the largest sweep budget" in text for text in found.warnings)


def test_the_plan_is_told_in_rows_with_its_prediction():
    rows = dict(plan_rows(make_plan(LAWS, budget_flops=1.5e15, serve_tokens=1e9, **SMALL)))
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
        (LAWS, {"budget_flops": -1.0, **SMALL}, "must be a finite number above 0"),
        (LAWS, {**SMALL}, "give exactly one"),
        (LAWS, {"budget_flops": 1e15, "gpu_hours": 1.0, **SMALL}, "give exactly one"),
        (LAWS, {"gpu_hours": 1.0, **SMALL}, "needs hardware"),
        ("deepseek", {"budget_flops": 1e22, "machine": Machine(memory_gib=16.0)}, r"memory = .* GiB per device"),
        ("deepseek", {"budget_flops": 1e20, "machine": Machine(hardware="H10")}, "did you mean H100"),
        ("deepseek", {"budget_flops": 1e20, "machine": Machine(utilisation=40)}, "utilisation = 40"),
        ({**LAWS, "resamples": {}}, {"budget_flops": 1e15, **SMALL}, "no interval is available"),
        ("no-such-laws.json", {"budget_flops": 1e15}, "nor a published law"),
    ],
)
def test_a_plan_that_cannot_be_met_is_refused_with_a_way_out(laws, arguments, message):
    with pytest.raises(PlanError, match=message):
        make_plan(laws, **arguments)


def test_memory_refusal_names_the_sharding_that_would_fit():
    with pytest.raises(PlanError, match="zero_stage = 1 fits"):
        make_plan("deepseek", budget_flops=3e21, machine=Machine(n_gpus=64, hardware="H100"))


def test_a_tokenizer_other_than_the_sweeps_is_refused():
    template = {"data": {"tokens": "t", "tokenizer_sha256": "a" * 64}}
    with pytest.raises(PlanError, match="not the tokenizer of the fitted runs"):
        make_plan(LAWS, budget_flops=1.5e15, template=template, **SMALL)


def test_a_file_that_is_no_laws_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PlanError, match="is not JSON"):
        make_plan(tmp_path / "a.json", budget_flops=1e15)
    with pytest.raises(PlanError, match="is not a set of laws"):
        make_plan(tmp_path / "b.json", budget_flops=1e15)


MIXTURE = Family(experts=ExpertFamily(n_experts=16, n_active=3, granularity=4.0), latent=LatentFamily())


def test_a_mixture_is_planned_in_active_flops_with_what_it_should_be_worth():
    found = make_plan(LAWS, budget_flops=1.5e15, family=MIXTURE, **SMALL)
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


def test_train_reads_the_recipe_of_a_mixture_as_it_is():
    found = make_plan(LAWS, budget_flops=1.5e15, family=MIXTURE, **SMALL)
    recipe = from_tree(tomllib.loads(to_toml(found.recipe)), PretrainRecipe)
    check(recipe)
    assert recipe.model == found.config


def test_laws_of_a_dense_sweep_measure_what_the_experts_are_worth():
    better = example_laws(seed=2, data_gain=2.0)
    found = make_plan(better, budget_flops=1e15, family=MIXTURE, dense_laws=LAWS, **SMALL)
    assert found.leverage is not None
    measured = found.leverage.measured
    assert measured.low < 2.0 < measured.high and measured.center == pytest.approx(2.0, rel=0.03)
    assert "over laws" in dict(plan_rows(found))["measured leverage"]


def test_a_dense_plan_says_nothing_of_experts():
    found = make_plan(LAWS, budget_flops=1.5e15, **SMALL)
    assert found.leverage is None and "experts" not in dict(plan_rows(found))
    assert set(found.recipe["model"]).isdisjoint({"experts", "latent", "mtp_depth"})


def test_laws_of_one_family_do_not_plan_another():
    laws = {**LAWS, "conventions": {**LAWS["conventions"], "family": "16 experts, 3 active, 1 shared, sigmoid; MHA"}}
    with pytest.raises(PlanError, match=r"conventions.family = '16 experts.* give the ladder recipe"):
        make_plan(laws, budget_flops=1.5e15, **SMALL)


def test_a_law_of_parameters_shows_both_counts_of_a_mixture():
    hyper = {**SMALL, "hyper": "joint_experts", "seq_len": 128}
    found = make_plan(LAWS, budget_flops=1.5e15, family=MIXTURE, **hyper)
    other = found.tree()["hyper"]["by_total_parameters"]
    assert other["learning_rate"] < found.learning_rate  # more parameters, lower rate
    dense = make_plan(LAWS, budget_flops=1.5e15, **hyper)
    assert "by_total_parameters" not in dense.tree()["hyper"]
