"""Families of shapes: released widths, equal cost of blocks, sizes near the wanted active compute, clear refusals."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import RecipeError
from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.recipe import from_tree, to_toml
from isoflop.scaling.plan.moe_leverage import ling_granularity
from isoflop.scaling.sweep.cells import model_tree
from isoflop.scaling.sweep.family import DENSE, ExpertFamily, Family, LatentFamily, activated_share, family_text
from isoflop.scaling.sweep.ladder import LadderRecipe, plan_ladder
from isoflop.scaling.sweep.recipe import check_family
from isoflop.scaling.sweep.shapes import depth_rule, largest_scale, least_layers, shape, shape_near

EQUAL_COST = Family(experts=ExpertFamily(n_experts=64, n_active=6, n_shared=2, granularity=8.0))
LITE = Family(experts=ExpertFamily(n_experts=64, n_active=6, n_shared=2), latent=LatentFamily())
FAMILIES = {
    "dense": DENSE,
    "equal cost": EQUAL_COST,
    "lite": LITE,
    "latent": Family(latent=LatentFamily(q_share=0.3)),
    "gqa": Family(heads_per_kv_head=4),
    "deep dense": Family(experts=ExpertFamily(n_experts=16, n_active=3, n_dense_layers=3)),
}


def test_widths_of_the_released_models_are_members():
    small = shape(2048, vocab_size=102400, seq_len=4096, family=LITE)
    assert small.experts is not None and small.latent is not None
    assert (small.experts.d_expert, small.d_ff) == (1408, 8 * 1408)
    latent = small.latent
    assert (latent.d_kv_latent, latent.d_nope, latent.d_rope, latent.d_value) == (512, 128, 64, 128)
    assert (small.d_head, small.n_heads, latent.d_q_latent) == (192, 16, 0)
    large = shape(7168, vocab_size=102400, seq_len=4096, family=Family(latent=LatentFamily(0.07, 0.21)))
    assert large.latent is not None and (large.latent.d_kv_latent, large.latent.d_q_latent) == (512, 1536)


def test_a_block_of_experts_costs_what_the_dense_block_costs_but_for_its_router():
    for d_model in (256, 1024, 2048):
        dense = shape(d_model, 6, vocab_size=512, seq_len=256)
        mixture = shape(d_model, 6, vocab_size=512, seq_len=256, family=EQUAL_COST)
        router = 5 * 6 * 64 * d_model  # five of six layers have one
        ratio = (flops_per_token(mixture) - router) / flops_per_token(dense)
        assert 0.97 < ratio < 1.06
        counts = count_parameters(mixture)
        assert counts.n_params_total > 3 * counts.n_params_active > 2.5 * count_parameters(dense).n_params_active


@given(st.floats(6.0, 12.0), st.sampled_from([64, 1024]), st.sampled_from(sorted(FAMILIES)))
def test_the_nearest_member_is_near_in_active_flops(exponent, seq_len, name):
    family = FAMILIES[name]
    smallest = flops_per_token(shape(64, least_layers(family), vocab_size=512, seq_len=seq_len, family=family))
    target = max(10**exponent, smallest)
    config = shape_near(target, vocab_size=512, seq_len=seq_len, family=family)
    assert 1 / 1.3 < flops_per_token(config) / target < 1.3
    assert (config.experts is None) == (family.experts is None) and (config.latent is None) == (family.latent is None)
    if config.n_layers > least_layers(family):
        assert 1 / 1.51 < config.n_layers / depth_rule(config.d_model) < 1.51
    if config.experts is not None:
        assert config.n_layers > config.experts.n_dense_layers


def test_sizes_of_a_mixture_are_dense_too():
    low, high = 2e6, 1e12
    targets = [low * 1.05**i for i in range(280) if low * 1.05**i < high]
    found = {shape_near(target, vocab_size=512, seq_len=256, family=EQUAL_COST) for target in targets}
    sizes = sorted(flops_per_token(config) for config in found)
    assert max(b / a for a, b in itertools.pairwise(sizes)) < 1.5
    assert largest_scale(256, EQUAL_COST) > 1e12


def test_shared_keys_divide_the_heads_and_latent_attention_keeps_them_all():
    for d_model in (128, 192, 320, 768):
        grouped = shape(d_model, vocab_size=512, seq_len=64, family=FAMILIES["gqa"])
        assert grouped.n_heads % grouped.n_kv_heads == 0 and grouped.n_heads / grouped.n_kv_heads <= 4
        latent = shape(d_model, vocab_size=512, seq_len=64, family=FAMILIES["latent"])
        assert latent.n_kv_heads == latent.n_heads and latent.d_head % 2 == 0


def test_a_family_is_named_alike_at_every_size_and_unlike_another():
    texts = {
        name: {family_text(shape(d, 8, vocab_size=512, seq_len=64, family=family)) for d in (128, 256, 1024)}
        for name, family in FAMILIES.items()
    }
    assert all(len(found) == 1 for found in texts.values())
    assert len(set.union(*texts.values())) == len(FAMILIES)
    assert texts["dense"] == {"dense; MHA"} and texts["gqa"] == {"dense; GQA"}


def test_share_and_granularity_are_lings():
    config = shape(2048, vocab_size=512, seq_len=64, family=LITE)
    assert activated_share(config) == pytest.approx(8 / 66)
    assert ling_granularity(config) == pytest.approx(2 * 2048 / 1408)
    assert activated_share(shape(2048, vocab_size=512, seq_len=64)) == 1.0


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Family(experts=ExpertFamily(8, 9)), r"family.experts.n_active = 9 must be at most .* 8"),
        (Family(experts=ExpertFamily(8, 2, granularity=0.1)), "family.experts.granularity = 0.1 must be at least 0.5"),
        (Family(experts=ExpertFamily(8, 2, n_shared=-1)), "family.experts.n_shared = -1 must be at least 0"),
        (Family(latent=LatentFamily(kv_share=0.0)), "family.latent.kv_share = 0.0 must be above 0"),
        (Family(latent=LatentFamily(), heads_per_kv_head=4), "heads_per_kv_head = 4 must be 1 with family.latent"),
        (Family(mtp_depth=-1), "family.mtp_depth = -1"),
    ],
)
def test_a_family_that_cannot_be_is_refused(family, message):
    with pytest.raises(RecipeError, match=message):
        check_family(family)


def mixture_recipe(**changes):
    tree = {
        "ladder": {"budgets": [1e12, 3e12, 9e12], "n_sizes": 5},
        "family": {"experts": {"n_experts": 16, "n_active": 3, "granularity": 4.0}},
        "hyper": {"learning_rate": 0.003, "batch_tokens": 4096},
        **changes,
    }
    return from_tree(tree, LadderRecipe)


def test_a_ladder_of_a_mixture_spends_its_budgets_in_active_flops():
    planned = plan_ladder(mixture_recipe())
    assert len(planned.cells) == 15 and planned.saving > 1.15
    for cell in planned.cells:
        assert cell.config.experts is not None and cell.total_flops == pytest.approx(cell.budget_flops, rel=0.02)
        assert cell.recipe["model"]["experts"]["n_experts"] == 16 and "latent" not in cell.recipe["model"]
        to_toml(cell.recipe)
    row = planned.table()[0]
    assert row["n_params_active"] < row["n_params_total"]


def test_balancing_reaches_the_cells_and_how_often_it_is_written_is_not_part_of_their_ids():
    quiet, loud = (
        plan_ladder(mixture_recipe(train={"balance": {"sequence_loss": 0.0, "report_every": every}}))
        for every in (10, 1)
    )
    plain = plan_ladder(mixture_recipe())
    assert loud.cells[0].recipe["train"]["balance"] == {"sequence_loss": 0.0, "report_every": 1}
    assert "balance" not in plain.cells[0].recipe["train"] and "mtp" not in plain.cells[0].recipe["train"]
    assert quiet.cells[0].cell_id == loud.cells[0].cell_id != plain.cells[0].cell_id


def test_balancing_without_experts_is_refused():
    recipe = from_tree({"ladder": {"budgets": [1e12]}, "train": {"balance": {"bias_speed": 0.0}}}, LadderRecipe)
    with pytest.raises(RecipeError, match=r"train\.balance is set but the models have none"):
        plan_ladder(recipe)


def test_dense_cells_keep_the_ids_they_had_before_there_were_families():
    config = shape_near(1e6, vocab_size=512, seq_len=128)
    tree = model_tree(config)
    known = {"n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size", "seq_len", "rope_base"}
    assert set(tree) == known | {"norm_eps", "init_std"}


def test_tokens_per_parameter_count_what_a_token_uses():
    recipe = mixture_recipe(
        ladder={"purpose": "grid", "sizes": [3e6], "tokens_per_param": [20.0], "share_trunks": False}
    )
    (cell,) = plan_ladder(recipe).cells
    assert cell.n_tokens == pytest.approx(20 * count_parameters(cell.config).n_params_active, rel=0.02)


def test_granularity_cuts_experts_without_changing_what_a_token_costs():
    coarse = Family(experts=ExpertFamily(n_experts=16, n_active=2, n_shared=0, granularity=2.0))
    fine = Family(experts=ExpertFamily(n_experts=64, n_active=8, n_shared=0, granularity=8.0))
    a, b = (shape(1536, 8, vocab_size=512, seq_len=256, family=family) for family in (coarse, fine))
    routers = 6 * 7 * 1536 * (64 - 16)
    assert flops_per_token(b) - routers == pytest.approx(flops_per_token(a), rel=0.001)
    assert activated_share(a) == activated_share(b) and math.isclose(ling_granularity(b) / ling_granularity(a), 4.0)
