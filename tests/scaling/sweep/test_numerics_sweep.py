"""Number formats through ladders, sweeps, records, plans and comparisons: carried, said, and never mixed unseen."""

import numpy as np
import pytest
from law_examples import example_records

from isoflop.errors import FitError, RecipeError
from isoflop.recipe import from_tree, load_recipe, to_tree, write_recipe
from isoflop.scaling.fit.checks import families
from isoflop.scaling.fit.joint import fit
from isoflop.scaling.fit.table import Table
from isoflop.scaling.plan.choose import plan as make_plan
from isoflop.scaling.plan.compare import compare
from isoflop.scaling.sweep.ladder import LadderRecipe, ladder_on_tokens, plan_ladder
from isoflop.scaling.sweep.records import read_records
from isoflop.scaling.sweep.run import run_sweep
from isoflop.training.pretrain.recipe import PretrainRecipe

RULES = {"rules": [{"modules": "blocks.*", "format": "photonic"}], "photonic": {"core": {"adc_bits": 6}}}
TEXT = "photonic lin2024, adc_bits 6, ste on blocks.*"


def ladder(**changes):
    tree = {
        "ladder": {"purpose": "grid", "sizes": [3e4, 6e4], "tokens_per_param": [0.125, 0.25]},
        "hyper": {"learning_rate": {"coefficient": 0.01}, "batch_tokens": {"coefficient": 256.0}},
        "model": {"seq_len": 16},
        "train": {"device": "cpu", "threads": 1},
        "validate": {"max_tokens": 512},
        **changes,
    }
    return from_tree(tree, LadderRecipe)


def test_cells_without_the_section_keep_their_ids_and_others_get_ids_of_their_own():
    plain, formats = plan_ladder(ladder()), plan_ladder(ladder(numerics=RULES))
    other = plan_ladder(ladder(numerics={**RULES, "seed": 1}))
    assert "numerics" not in plain.cells[0].recipe
    ids = [{cell.cell_id for cell in planned.cells} for planned in (plain, formats, other)]
    assert all(a.isdisjoint(b) for a, b in ((ids[0], ids[1]), (ids[1], ids[2])))
    read = from_tree({**formats.cells[0].recipe}, PretrainRecipe)
    assert read.numerics is not None and read.numerics.photonic.core == {"adc_bits": 6}


def test_a_ladder_recipe_with_formats_survives_writing_and_bad_ones_are_refused(tmp_path):
    recipe = ladder(numerics=RULES)
    write_recipe(tmp_path / "ladder.toml", recipe)
    assert load_recipe(tmp_path / "ladder.toml", LadderRecipe) == recipe
    with pytest.raises(RecipeError, match=r"numerics\.photonic: weight_bits = 0 must be"):
        plan_ladder(ladder(numerics={**RULES, "photonic": {"core": {"weight_bits": 0}}}))


def test_formats_that_end_early_are_said_and_end_no_sooner_than_a_shared_trunk():
    cells = plan_ladder(ladder(numerics={**RULES, "until": 0.8})).cells
    stays = plan_ladder(ladder(numerics=RULES)).cells
    assert [cell.cell_id for cell in stays] == ["aed86d7d6ec1", "eac3093655e5", "1c2c3819f94e", "e2a3852710ec"]
    assert {cell.cell_id for cell in cells}.isdisjoint(cell.cell_id for cell in stays)
    for cell in cells:
        assert from_tree(cell.recipe, PretrainRecipe).plain_from() == cell.branch_step > 0
    early = {**RULES, "until": 0.75}
    with pytest.raises(RecipeError, match=r"numerics\.until = 0\.75 must be at least 0\.8.*share_trunks = false"):
        plan_ladder(ladder(numerics=early))
    alone = {"purpose": "grid", "sizes": [3e4], "tokens_per_param": [0.125], "share_trunks": False}
    assert from_tree(plan_ladder(ladder(numerics=early, ladder=alone)).cells[0].recipe, PretrainRecipe).plain_from()


def test_formats_that_end_early_are_another_kind_to_fits_comparisons_and_plans():
    text = f"{TEXT} until 80%"
    mixed = [*runs(1.0, f"{text}; else float32"), *runs(0.8, f"{TEXT}; else float32")]
    assert set(families(Table.of(mixed))) == {f"dense, {text}", f"dense, {TEXT}"}
    core = fit(mixed[: len(mixed) // 2], seed=0, bootstrap=120)
    for until, warns in ((0.8, False), (0.9, True)):
        template = {"numerics": to_tree(ladder(numerics={**RULES, "until": until}).numerics)}
        made = make_plan(core, budget_flops=5e16, vocab_size=512, seq_len=128, template=template)
        assert made.recipe["numerics"]["until"] == until
        assert any(f"numerics of the fitted runs are {text}" in w for w in made.warnings) is warns


@pytest.mark.dist
def test_a_sweep_on_the_core_leaves_records_that_say_so(tmp_path, tiny_tokens):
    recipe, data_sha256 = ladder_on_tokens(ladder(numerics=RULES, data={"tokens": str(tiny_tokens)}))
    cells = list(plan_ladder(recipe, data_sha256=data_sha256).cells)
    records = run_sweep(cells, tmp_path, study="test", workers=1)
    assert len(records) == len(cells) >= 3
    for record in read_records(tmp_path / "records.jsonl"):
        assert record.numerics == f"{TEXT}; else float32" == (record.conventions or {})["numerics"]
        assert record.status == "finished"


def runs(worth, numerics):
    """Records of a study whose models reach the loss of `worth` times the compute."""
    truth, budgets = np.array([0.7, 60.0, 120.0, 0.3, 0.3]), (1e15, 3e15, 9e15, 2.7e16)
    fields = {"numerics": numerics, "held_out_sha256": "e" * 64, "held_out_bytes": 178_000}
    fields["conventions"] = {"family": "dense; MHA", "numerics": numerics}
    return example_records(truth, budgets, 1.6 ** np.arange(-2.0, 3.0), worth=worth, **fields)


def test_a_format_that_costs_compute_is_priced_and_both_sides_are_named():
    base = fit(runs(1.0, "float32"), seed=0, bootstrap=120)
    core = fit(runs(0.8, f"{TEXT}; else float32"), seed=0, bootstrap=120)
    assert base.conventions["numerics"] == "float32"
    found = compare(base, core, budget_flops=2.7e16)
    assert found.multiplier.center == pytest.approx(0.8, rel=0.03)
    assert found.families == {"a": "dense; MHA", "b": f"dense; MHA, {TEXT}"} and TEXT in found.verdict
    assert not any("numerics" in warning for warning in found.warnings)


def test_plain_float32_and_bfloat16_are_one_kind_and_rules_are_another():
    mixed = [*runs(1.0, "float32"), *runs(0.8, f"{TEXT}; else float32")]
    assert set(families(Table.of(mixed))) == {"dense", f"dense, {TEXT}"}
    with pytest.raises(FitError, match="2 families of models"):
        fit(mixed, seed=0, bootstrap=20)
    assert len(families(Table.of([*runs(1.0, "float32"), *runs(1.0, "bfloat16")]))) == 1


def test_a_plan_carries_the_formats_of_its_ladder_and_warns_where_the_laws_are_of_another():
    core = fit(runs(0.8, f"{TEXT}; else float32"), seed=0, bootstrap=120)
    template = {"numerics": to_tree(ladder(numerics=RULES).numerics)}
    made = make_plan(core, budget_flops=5e16, vocab_size=512, seq_len=128, template=template)
    assert made.recipe["numerics"]["photonic"]["core"] == {"adc_bits": 6}
    assert not any("numerics" in warning for warning in made.warnings)
    plain = make_plan(core, budget_flops=5e16, vocab_size=512, seq_len=128)
    assert any(f"numerics of the fitted runs are {TEXT}, of this plan plain" in w for w in plain.warnings)
