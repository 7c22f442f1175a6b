"""Splitting compute: the optimum, little data, and models that are served."""

import copy

import pytest
from law_examples import TRUTH, example_laws

from isoflop.errors import PlanError
from isoflop.scaling.laws import Laws, surface_loss, surface_optimum
from isoflop.scaling.plan.allocate import best_split, cheapest_at_loss, check_vertices, serving_split
from isoflop.scaling.published import load_laws

TREE = example_laws()
LAWS = load_laws(TREE)


def test_all_laws_of_a_noiseless_sweep_agree_on_the_optimum():
    split = best_split(LAWS, 1e15)
    scale, n_tokens = surface_optimum(TRUTH, 1e15, 1.0)
    assert set(split.by_law) == {"surface_log_huber", "surface_varpro", "parabola"}
    assert (split.scale, split.n_tokens) == pytest.approx((float(scale), float(n_tokens)), rel=1e-6)
    assert split.warnings == []


def test_serving_gives_the_known_answer_of_sardana():
    """Hoffmann's constants, quality of an optimal 13B, 2e12 tokens served: 7.1B on 1.30e12, 16% less than 1.001e23."""
    surface = load_laws("hoffmann").surfaces["published"]
    size = 13e9
    tokens = (surface.beta * surface.B / (surface.alpha * surface.A) * size**surface.alpha) ** (1 / surface.beta)
    loss = float(surface_loss(surface.constants, size, tokens))
    scale, n_tokens = cheapest_at_loss(tuple(surface.constants), loss, 2e12)
    assert scale == pytest.approx(7.1e9, rel=5e-3)
    assert n_tokens == pytest.approx(1.30e12, rel=5e-3)
    before = 6 * size * tokens + 2 * size * 2e12
    assert before == pytest.approx(1.001e23, rel=1e-3)
    assert 1 - (6 * scale * n_tokens + 2 * scale * 2e12) / before == pytest.approx(0.16, abs=0.005)


def test_a_served_model_is_smaller_trains_longer_and_keeps_its_loss():
    laws = load_laws("hoffmann")
    split = best_split(laws, 4.8e22)
    served = serving_split(laws, 4.8e22, 2e12, split)
    constants = laws.surfaces["published"].constants
    assert served.scale < 0.7 * split.scale and served.n_tokens > 1.5 * split.n_tokens
    assert surface_loss(constants, served.scale, served.n_tokens) == pytest.approx(
        float(surface_loss(constants, split.scale, split.n_tokens)), rel=1e-9
    )
    assert served.serving["saving"] == pytest.approx(0.16, abs=0.01)


def test_serving_nothing_changes_nothing():
    split = best_split(LAWS, 1e15)
    served = serving_split(LAWS, 1e15, 0.0, split)
    assert served.scale == pytest.approx(split.scale, rel=1e-3)


def test_extreme_serving_warns_that_the_law_over_rates_tokens():
    split = best_split(LAWS, 1e15)
    served = serving_split(LAWS, 1e15, 1e5 * split.n_tokens, split)
    assert any("over-rates extra tokens" in text for text in served.warnings)


def test_little_data_makes_the_model_smaller_as_in_the_repeated_data_paper():
    """9.2e21 FLOPs, 25e9 unique C4 tokens: 6.34B on 242e9 instead of 8.67B on 178e9 (arXiv 2305.16264, section 1)."""
    laws = load_laws("muennighoff")
    fresh, repeated = best_split(laws, 9.2e21), best_split(laws, 9.2e21, unique_tokens=25e9)
    assert fresh.scale == pytest.approx(8.67e9, rel=0.03)
    assert repeated.scale == pytest.approx(6.34e9, rel=0.08)
    assert 6 * repeated.scale * repeated.n_tokens == pytest.approx(9.2e21)


def test_enough_data_changes_nothing():
    assert best_split(LAWS, 1e15, unique_tokens=1e12) == best_split(LAWS, 1e15)


def test_a_cap_on_epochs_moves_compute_into_size_and_says_so():
    split = best_split(LAWS, 1e15, unique_tokens=1e6, max_epochs=4)
    assert split.n_tokens == pytest.approx(4e6) and split.scale == pytest.approx(1e15 / 4e6)
    assert any("were cut to 4" in text for text in split.warnings)


def test_one_vertex_outside_is_a_warning_and_too_many_are_an_error():
    laws = copy.deepcopy(TREE)
    laws["parabola"]["vertices"][-1]["inside"] = False
    assert len(check_vertices(load_laws(laws))) == 1
    for vertex in laws["parabola"]["vertices"][1:]:
        vertex["inside"] = False
    with pytest.raises(PlanError, match=r"vertex of the IsoFLOP curve lies outside the tested range at 3 of 4"):
        best_split(load_laws(laws), 1e15)


def test_laws_that_disagree_widely_are_named():
    laws = copy.deepcopy(TREE)
    laws["parabola"]["n_coefficient"] *= 10
    assert any("disagree on the optimal scale" in text for text in best_split(load_laws(laws), 1e15).warnings)


def test_laws_without_an_optimum_are_refused():
    with pytest.raises(PlanError, match="neither a surface nor an allocation"):
        best_split(Laws("flops_per_token", "bits_per_byte"), 1e15)
