"""Published laws against the numbers that their authors, or their refits, give."""

import numpy as np
import pytest

from isoflop.errors import PlanError
from isoflop.scaling.laws import surface_loss, surface_optimum
from isoflop.scaling.lr_batch_law import HYPER_LAWS
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.predict import central_loss
from isoflop.scaling.published import NAMES, load_laws


@pytest.mark.parametrize("name", ["deepseek", "ling", "ling_experts"])
def test_size_and_tokens_multiply_to_the_budget(name):
    law = load_laws(name).allocation
    assert law.n_exponent + law.d_exponent == pytest.approx(1.0, abs=1e-9)
    assert law.n_coefficient * law.d_coefficient == pytest.approx(1.0, abs=7e-4)


@pytest.mark.parametrize(
    ("total_flops", "scale", "n_tokens"),
    [(1e17, 1.404e8, 7.123e8), (3e20, 9.342e9, 3.212e10), (8.456e22, 1.799e11, 4.701e11), (1e24, 6.569e11, 1.523e12)],
)
def test_deepseek_allocation_gives_the_anchors_of_the_fact_sheet(total_flops, scale, n_tokens):
    law = load_laws("deepseek").allocation
    assert (law.best("n", total_flops), law.best("d", total_flops)) == pytest.approx((scale, n_tokens), rel=5e-4)


def test_llama3_gives_its_405b_plan():
    """3.8e25 FLOPs: 402B parameters on 16.55T tokens, as its paper extrapolates."""
    law = load_laws("llama3").allocation
    scale, n_tokens = law.best("n", 3.8e25), law.best("d", 3.8e25)
    assert scale == pytest.approx(402e9, rel=0.05)
    assert n_tokens == pytest.approx(16.55e12, rel=0.05)


def test_chinchilla_optimum_is_twenty_tokens_per_parameter():
    constants = load_laws("chinchilla").surfaces["published"].constants
    scale, n_tokens = surface_optimum(constants, 5.76e23, 6.0)
    assert scale == pytest.approx(7.32e10, rel=0.02)
    assert n_tokens == pytest.approx(1.31e12, rel=0.02)
    assert surface_loss(constants, scale, n_tokens) == pytest.approx(1.974, abs=1e-3)


def test_the_closed_form_optimum_beats_its_neighbours():
    constants = load_laws("hoffmann").surfaces["published"].constants
    scale, n_tokens = surface_optimum(constants, 1e22, 6.0)
    best = surface_loss(constants, scale, n_tokens)
    assert 6 * scale * n_tokens == pytest.approx(1e22)
    assert best < min(surface_loss(constants, scale * f, n_tokens / f) for f in (0.98, 1.02))


def test_the_alias_is_the_refit_of_besiroglu():
    assert load_laws("besiroglu") == load_laws("chinchilla")


@pytest.mark.parametrize("name", NAMES)
def test_every_published_law_gives_a_split_and_says_where_it_is_from(name):
    laws = load_laws(name)
    split = best_split(laws, 1e21)
    assert laws.flops_factor * split.scale * split.n_tokens == pytest.approx(1e21, rel=1e-6)
    assert "arXiv" in laws.source and laws.grade in {"data", "consistent", "read"}
    assert laws.published_hyper in HYPER_LAWS
    assert np.isnan(central_loss(laws, split.scale, split.n_tokens)) == (not laws.surfaces)


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(PlanError, match="did you mean chinchilla"):
        load_laws("chinchila")


def test_a_hyper_parameter_law_is_no_allocation():
    with pytest.raises(PlanError, match="sets batch and learning rate but no size"):
        load_laws("steplaw")
