"""Ladders: centred sizes, whole steps near the budget, trunks that are the same run, savings and times that add up."""

import itertools
import json
import math
import re
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

from isoflop.errors import DataError, RecipeError
from isoflop.model.accounting import flops_per_token
from isoflop.recipe import from_tree, load_recipe, to_toml
from isoflop.scaling.sweep.ladder import LadderRecipe, _sizes_by_budget, ladder_on_tokens, plan_ladder
from isoflop.scaling.sweep.shapes import shape
from isoflop.scaling.sweep.speed import SpeedModel
from isoflop.tokens.shards import TokenSet
from isoflop.training.schedule import factor

RECIPES = sorted((ROOT / "recipes" / "sweep").glob("*.toml"))
BUDGETS = [1e12, 3e12, 9e12, 2.7e13]
SPEED = SpeedModel(per_step_s=2e-3, per_layer_s=5e-4, per_flop_s=1 / 45e9, per_param_s=0.0)


def recipe(**sections):
    ladder = {"budgets": BUDGETS, **sections.pop("ladder", {})}
    model = {"vocab_size": 512, "seq_len": 64}
    return from_tree({"study": "test", "ladder": ladder, "model": model, **sections}, LadderRecipe)


def in_time(**ladder):
    return from_tree({"ladder": ladder, "model": {"vocab_size": 512, "seq_len": 64}}, LadderRecipe)


@pytest.mark.parametrize("share", [True, False])
def test_every_cell_meets_its_budget_within_one_percent(share):
    ladder = plan_ladder(recipe(ladder={"share_trunks": share, "n_sizes": 5}))
    assert len(ladder.cells) == 20 and not ladder.warnings
    for cell in ladder.cells:
        assert cell.total_flops == pytest.approx(cell.budget_flops, rel=0.01)
        assert cell.n_tokens == cell.steps * cell.batch_tokens and cell.batch_tokens % 64 == 0


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("n_sizes", [4, 5, 7])
def test_sizes_are_centred_on_the_prior_and_stay_within_its_span(share, n_sizes):
    plan = recipe(ladder={"share_trunks": share, "n_sizes": n_sizes})
    for budget, cells in itertools.groupby(plan_ladder(plan).cells, lambda cell: cell.budget_flops):
        off = [math.log(cell.flops_per_token / plan.allocation.scale_at(budget)) for cell in cells]
        assert n_sizes - len(off) in ((0, 1) if n_sizes > 5 else (0,))  # at d 48 whole shapes are a factor 1.7 apart
        assert off == sorted(off)
        half_step = math.log(3.5) / (n_sizes - 1) if share else 0.0  # one grid for all budgets
        assert abs(sum(off) / n_sizes) < half_step + 0.2  # whole shapes
        assert max(map(abs, off)) < math.log(3.5) + half_step + 0.15
        assert min(off) < -math.log(2) and max(off) > math.log(2)


def test_shared_budgets_draw_from_one_grid_and_sizes_recur():
    ladder = plan_ladder(recipe())
    sizes = {cell.config for cell in ladder.cells}
    assert len(sizes) == 8  # 5 sizes + one more for each of three further budgets
    assert len(ladder.groups) == len(sizes)


def test_cells_of_one_size_differ_in_nothing_but_their_length():
    ladder = plan_ladder(recipe())
    assert any(len(group.cells) == 4 for group in ladder.groups)
    for group in ladder.groups:
        trees = [cell.recipe for cell in group.cells]
        lengths = [tree["train"].pop("n_tokens") for tree in trees]
        assert all(tree == trees[0] for tree in trees) and lengths == sorted(set(lengths))


def test_up_to_its_branch_step_a_cell_has_the_rates_of_every_longer_one():
    group = max(plan_ladder(recipe()).groups, key=lambda group: len(group.cells))
    train = group.cells[0].recipe["train"]

    def rates(cell):
        return [
            factor(
                step,
                n_steps=cell.steps,
                warmup_steps=train["warmup_steps"],
                schedule=cell.schedule,
                cooldown_fraction=train["cooldown_fraction"],
            )
            for step in range(cell.steps)
        ]

    longest = rates(group.cells[-1])
    for cell in group.cells[:-1]:
        own, at = rates(cell), cell.branch_step
        assert own[:at] == longest[:at]
        assert own[at] < 1.0 == longest[at]
        assert train["warmup_steps"] < at


def test_rate_and_batch_follow_the_budget_where_trunks_are_not_shared():
    ladder = plan_ladder(recipe(ladder={"share_trunks": False}, train={"schedule": "multi_step"}))
    for budget, cells in itertools.groupby(ladder.cells, lambda cell: cell.budget_flops):
        for cell in cells:
            assert cell.learning_rate == pytest.approx(0.3118 * budget**-0.125, rel=1e-5)
            assert cell.batch_tokens == pytest.approx(0.2920 * budget**0.3271, rel=0.15)
            assert (cell.trunk_id, cell.branch_step, cell.schedule) == ("", 0, "multi_step")
    assert ladder.saving == 1.0


def test_rate_and_batch_of_a_shared_size_are_those_of_its_own_optimum():
    plan = recipe()
    for cell in plan_ladder(plan).cells:
        optimum = plan.allocation.budget_at(cell.flops_per_token)
        assert cell.learning_rate == pytest.approx(0.3118 * optimum**-0.125, rel=1e-5)
        assert cell.batch_tokens == pytest.approx(0.2920 * optimum**0.3271, rel=0.15)


def test_four_sizes_by_four_lengths_save_at_least_half_again():
    grid = {"purpose": "grid", "budgets": [], "sizes": [2e5, 4e5, 8e5, 1.6e6], "tokens_per_param": [5, 10, 20, 40]}
    ladder = plan_ladder(recipe(ladder=grid))
    assert len(ladder.cells) == 16 and len(ladder.groups) == 4
    assert ladder.saving >= 1.5
    assert ladder.saving == pytest.approx(15 / (0.8 * 8 + 0.2 * 15), rel=0.01)  # K lengths a factor 2 apart, by hand
    spent = sum(
        group.flops_per_step
        * (max(c.branch_step for c in group.cells) + sum(c.steps - c.branch_step for c in group.cells))
        for group in ladder.groups
    )
    assert ladder.flops_shared == spent
    assert ladder.flops_separate == sum(cell.total_flops for cell in ladder.cells)


def test_hyper_grid_crosses_rates_and_batches_at_each_budget():
    hyper = {
        "purpose": "hyper",
        "budgets": [1e12, 1e13],
        "n_sizes": 1,
        "learning_rate_factors": [0.5, 1.0, 2.0],
        "batch_factors": [0.5, 1.0, 2.0, 4.0],
        "share_trunks": False,
    }
    ladder = plan_ladder(recipe(ladder=hyper))
    assert len(ladder.cells) == 2 * 3 * 4
    for _, cells in itertools.groupby(ladder.cells, lambda cell: cell.budget_flops):
        listed = list(cells)
        rates = sorted({cell.learning_rate for cell in listed})
        batches = sorted({cell.batch_tokens for cell in listed})
        assert [rate / rates[1] for rate in rates] == pytest.approx([0.5, 1, 2], rel=1e-5)
        assert [batch / batches[1] for batch in batches] == pytest.approx([0.5, 1, 2, 4], rel=0.05)
        assert len({cell.config for cell in listed}) == 1


def test_a_law_of_ones_own_is_used():
    law = {"learning_rate": {"coefficient": 0.5, "flops_per_token": -0.25}, "batch_tokens": 640}
    for cell in plan_ladder(recipe(hyper=law)).cells:
        assert cell.learning_rate == pytest.approx(0.5 * cell.flops_per_token**-0.25, rel=1e-5)
        assert cell.batch_tokens == pytest.approx(640, rel=0.13)


def test_seeds_are_cells_of_their_own():
    one, two = plan_ladder(recipe()), plan_ladder(recipe(ladder={"seeds": [0, 1]}))
    assert len(two.cells) == 2 * len(one.cells)
    assert {cell.cell_id for cell in one.cells} < {cell.cell_id for cell in two.cells}


@pytest.mark.parametrize(
    ("budget", "ladder"),
    [
        ("minutes", {"minutes": 8.0, "workers": 2}),
        ("gpu_hours", {"gpu_hours": 0.5, "workers": 2}),
        ("minutes", {"minutes": 8.0, "workers": 2, "overhead_s": 10.0, "n_budgets": 3, "budget_ratio": 4.0}),
    ],
)
def test_a_time_is_filled_but_not_exceeded(budget, ladder):
    planned = plan_ladder(in_time(**ladder), SPEED)
    seconds = planned.wall_seconds() if budget == "minutes" else planned.worker_seconds()
    limit = 480 if budget == "minutes" else 1800
    assert 0.9 * limit < seconds <= limit
    ratio = ladder.get("budget_ratio", 3.0)
    assert [b / a for a, b in itertools.pairwise(planned.budgets)] == pytest.approx([ratio] * 3, rel=0.01) or (
        len(planned.budgets) == 3
    )


def test_a_slow_machine_shrinks_all_budgets_and_keeps_their_ratio():
    slow = SpeedModel(*(4 * cost for cost in (SPEED.per_step_s, SPEED.per_layer_s, SPEED.per_flop_s, 0.0)))
    fast = plan_ladder(in_time(minutes=40.0), SPEED).budgets
    shrunk = plan_ladder(in_time(minutes=40.0), slow).budgets
    assert all(a < b / 2 for a, b in zip(shrunk, fast, strict=True))
    assert shrunk[-1] / shrunk[0] == pytest.approx(fast[-1] / fast[0], rel=0.02)


def test_a_token_limit_lowers_budgets_that_come_from_a_time():
    free = plan_ladder(in_time(minutes=40.0), SPEED)
    limit = max(cell.n_tokens for cell in free.cells) // 2
    held = plan_ladder(in_time(minutes=40.0, max_tokens=limit), SPEED)
    assert 0.8 * limit < max(cell.n_tokens for cell in held.cells) <= limit
    assert held.budgets[-1] < free.budgets[-1]


def test_times_add_up():
    planned = plan_ladder(recipe(ladder={"workers": 2, "overhead_s": 2.0}), SPEED)
    assert planned.worker_seconds() / 2 <= planned.wall_seconds() < planned.worker_seconds()
    alone = plan_ladder(recipe(ladder={"share_trunks": False, "overhead_s": 2.0}), SPEED)
    seconds = sum(row["seconds_alone"] + 2.0 for row in alone.table())
    assert alone.worker_seconds() == pytest.approx(seconds)
    assert alone.wall_seconds() == pytest.approx(seconds)
    assert plan_ladder(recipe()).wall_seconds() is None


def test_ids_are_stable_and_know_what_matters():
    base = plan_ladder(recipe(), data_sha256="d1")
    ids = [cell.cell_id for cell in base.cells]
    code = (
        "from isoflop.recipe import from_tree; from isoflop.scaling.sweep.ladder import LadderRecipe, plan_ladder;"
        f"tree = {{'study': 'x', 'ladder': {{'budgets': {BUDGETS}}}, 'model': {{'seq_len': 64}}}};"
        "r = from_tree(tree, LadderRecipe);"
        "print(*[c.cell_id for c in plan_ladder(r, data_sha256='d1').cells])"
    )
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other_process.stdout.split() == ids  # the study's name is not part of the result

    def changed(**sections):
        digest = sections.pop("data_sha256", "d1")
        return {c.cell_id for c in plan_ladder(recipe(**sections), data_sha256=digest).cells}

    assert changed(train={"device": "cuda", "threads": 4, "compile": "on", "max_micro_batch": 2}) == set(ids)
    assert changed(data={"tokens": "elsewhere"}) == set(ids)
    for section in (
        {"data_sha256": "d2"},
        {"data": {"tokenizer_sha256": "t"}},
        {"train": {"weight_decay": 0.0}},
        {"train": {"cooldown_fraction": 0.1}},
        {"validate": {"max_tokens": 99}},
        {"ladder": {"seeds": [1]}},
        {"model": {"vocab_size": 1024, "seq_len": 64}},
    ):
        assert not changed(**section) & set(ids), section


def test_a_new_budget_keeps_the_finished_cells_of_the_others():
    """Sizes are anchored on the middle budget; adding budgets on both sides leaves the ids of the old cells."""
    old = {cell.cell_id for cell in plan_ladder(recipe(ladder={"budgets": [3e12, 9e12, 2.7e13]})).cells}
    new = {cell.cell_id for cell in plan_ladder(recipe(ladder={"budgets": [1e12, 3e12, 9e12, 2.7e13, 8.1e13]})).cells}
    assert len(old & new) >= 0.8 * len(old)


def test_cells_become_pretrain_recipes_that_survive_toml():
    from isoflop.training.pretrain.recipe import PretrainRecipe, check

    plan = recipe(data={"tokens": "somewhere"}, validate={"max_tokens": 4096}, train={"max_micro_batch": 4})
    for cell in plan_ladder(plan).cells:
        read = from_tree(tomllib.loads(to_toml(cell.recipe)), PretrainRecipe)
        check(read)
        assert read.n_steps() == cell.steps and read.model == cell.config
        assert 1 <= read.train.micro_batch <= 4 and read.validate.max_tokens == 4096


def test_summary_and_table_say_it_all_before_anything_runs():
    planned = plan_ladder(recipe(), SPEED)
    summary, table = planned.summary(), planned.table()
    assert summary["n_runs"] == len(table) == 20
    assert summary["wall_hours"] == pytest.approx(planned.wall_seconds() / 3600)
    assert summary["flops_separate"] / summary["flops_shared"] == pytest.approx(summary["saving"])
    assert {row["trunk_id"] for row in table} == {group.trunk_id for group in planned.groups}
    json.dumps([summary, table])


def test_coarse_steps_are_warned_about():
    law = {"learning_rate": 1e-2, "batch_tokens": 700_000}
    found = plan_ladder(recipe(hyper=law)).warnings
    assert any("miss their budget by more than 1%" in text for text in found)
    assert any("fewer than 10 steps of cooldown" in text for text in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_sizes": 2}, ["ladder.n_sizes = 2", "at least 3 sizes"]),
        ({"size_span": 1.02}, ["different sizes", "at least 3", "size_span"]),
        ({"budgets": [3e12, 1e12]}, ["ladder.budgets", "increase"]),
        ({"budgets": [1e12, 1e12]}, ["ladder.budgets", "increase"]),
        ({"budgets": []}, ["exactly one of ladder.budgets, ladder.minutes and ladder.gpu_hours"]),
        ({"minutes": 3.0}, ["exactly one"]),
        ({"budgets": [1e4, 3e4]}, ["no shape near it", "raise the budget", "ladder.budgets = 1e+04 must be at least"]),
        ({"purpose": "grid"}, ["ladder.sizes", "ladder.tokens_per_param"]),
        ({"size_span": 0.5}, ["ladder.size_span = 0.5", "above 1"]),
        ({"learning_rate_factors": [0.0]}, ["ladder.learning_rate_factors", "above 0"]),
        ({"seeds": []}, ["ladder.seeds", "at least one"]),
        ({"workers": 0}, ["ladder.workers = 0", "at least 1"]),
        ({"max_tokens": 1000}, ["ladder.max_tokens = 1000", "longest cell", "lower all budgets"]),
    ],
)
def test_impossible_ladders_are_refused(change, words):
    with pytest.raises(RecipeError) as caught:
        plan_ladder(recipe(ladder=change))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("share_trunks", [True, False])
@pytest.mark.parametrize(("budget", "way"), [(1e4, "at least"), (1e32, "at most")])
def test_the_budget_that_is_named_instead_has_shapes(budget, way, share_trunks):
    ladder = {"budgets": [budget], "share_trunks": share_trunks}
    with pytest.raises(RecipeError, match=way) as caught:
        plan_ladder(recipe(ladder=ladder))
    named = float(str(caught.value).rpartition(f"must be {way} ")[2])
    assert len(_sizes_by_budget(recipe(ladder={**ladder, "budgets": [named]}), (named,))) >= 3
    further = named / 4 if way == "at least" else named * 4
    with pytest.raises(RecipeError, match=way):
        _sizes_by_budget(recipe(ladder={**ladder, "budgets": [further]}), (further,))


def test_a_budget_too_small_for_one_step_is_refused():
    with pytest.raises(
        RecipeError, match=r"budget 1e\+12 is too small for one step .* raise the budget to .* or lower"
    ):
        plan_ladder(recipe(hyper={"learning_rate": 1e-3, "batch_tokens": 1e9}))


def test_sections_with_a_bad_value_are_refused():
    with pytest.raises(RecipeError, match=r"share_trunks = true needs train.schedule"):
        plan_ladder(recipe(train={"schedule": "cosine"}))
    with pytest.raises(RecipeError, match=r"allocation.exponent = 1.5 must be above 0 and below 1"):
        plan_ladder(recipe(allocation={"exponent": 1.5}))
    with pytest.raises(RecipeError, match=r"ladder.seeds = \[0, 0\] names a value twice"):
        plan_ladder(recipe(ladder={"seeds": [0, 0]}))
    with pytest.raises(RecipeError, match=r"train.cooldown_fraction = 1.0"):
        plan_ladder(recipe(train={"cooldown_fraction": 1.0}))
    with pytest.raises(RecipeError, match=r"unknown key ladder.budget; did you mean ladder.budgets\?"):
        recipe(ladder={"budget": [1e12]})


def test_a_time_needs_a_speed_and_enough_of_it():
    with pytest.raises(RecipeError, match="needs a measured speed"):
        plan_ladder(in_time(minutes=3.0))
    with pytest.raises(RecipeError, match=r"ladder.minutes = 0.0001 is too short for 4 budgets of 5 sizes") as refused:
        plan_ladder(in_time(minutes=1e-4), SPEED)
    named = re.search(r"the shortest sweep needs ladder.minutes = (\S+):", str(refused.value))
    assert named and plan_ladder(in_time(minutes=float(named[1])), SPEED).cells


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_sweep_recipes_plan(path):
    planned = plan_ladder(load_recipe(path, LadderRecipe), SPEED)
    assert len(planned.cells) >= 15 and planned.saving > 1.2


def test_there_is_a_sweep_recipe_for_cpu_and_gpu():
    assert {"cpu", "gpu"} <= {path.stem for path in RECIPES}


def test_model_scale_is_the_counted_m():
    cell = plan_ladder(recipe()).cells[0]
    assert cell.flops_per_token == flops_per_token(cell.config, "M")
    assert shape(cell.config.d_model, cell.config.n_layers, vocab_size=512, seq_len=64) == cell.config


def test_controls_are_the_cheapest_shared_cells_at_their_own_budgets_rate():
    plain, priced = plan_ladder(recipe()), plan_ladder(recipe(ladder={"n_controls": 2}))
    controls = [cell for cell in priced.cells if cell.control]
    assert [cell for cell in priced.cells if not cell.control] == list(plain.cells)
    assert [cell.budget_flops for cell in controls] == [BUDGETS[0]] * 2
    for control in controls:
        assert control.learning_rate == pytest.approx(0.3118 * BUDGETS[0] ** -0.125, rel=1e-3)  # the law at the budget
        twin = next(c for c in plain.cells if c.config == control.config and c.budget_flops == control.budget_flops)
        assert twin.learning_rate != control.learning_rate
        assert control.trunk_id == "" and control.branch_step == 0
    assert priced.flops_shared == pytest.approx(plain.flops_shared + sum(c.total_flops for c in controls))


def tied_ladder(**data) -> LadderRecipe:
    return from_tree({"ladder": {"budgets": [1e10]}, "model": {"vocab_size": 7}, "data": data}, LadderRecipe)


def test_a_ladder_takes_vocabulary_and_hashes_from_its_tokens_folder(tiny_tokens):
    tied, data_sha256 = ladder_on_tokens(tied_ladder(tokens=str(tiny_tokens)))
    tokens = TokenSet.open(tiny_tokens)
    assert tied.model.vocab_size == tokens.vocab_size == 512
    assert (tied.data.tokenizer_sha256, data_sha256) == (tokens.tokenizer_sha256, tokens.data_sha256)


def test_a_ladder_without_tokens_stays_as_it_is():
    recipe = tied_ladder()
    assert ladder_on_tokens(recipe) == (recipe, "")


def test_a_ladder_for_another_tokenizer_or_missing_tokens_is_refused(tiny_tokens, tmp_path):
    with pytest.raises(DataError, match="a recipe for another tokenizer"):
        ladder_on_tokens(tied_ladder(tokens=str(tiny_tokens), tokenizer_sha256="0" * 64))
    with pytest.raises(DataError, match=r"has no manifest.json; make it with: isoflop tokens"):
        ladder_on_tokens(tied_ladder(tokens=str(tmp_path / "gone")))
