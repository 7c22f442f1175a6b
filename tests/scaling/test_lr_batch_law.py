"""Batch and learning-rate laws against what their authors trained with, and their plain forms."""

import tomllib

import pytest

from isoflop.errors import RecipeError
from isoflop.recipe import to_toml
from isoflop.scaling.lr_batch_law import HYPER_LAWS, HyperLaw, PowerLaw, hyper_law, whole_batch


@pytest.mark.parametrize(
    ("total_flops", "learning_rate", "batch_tokens", "sequences"),
    [(8.456e22, 4.25e-4, 9.22e6, 2252), (9.946e23, 3.12e-4, 2.07e7, None)],
)
def test_deepseek_law_gives_the_rates_and_batches_of_the_7b_and_67b(
    total_flops, learning_rate, batch_tokens, sequences
):
    choice = hyper_law("deepseek").choose(total_flops=total_flops, seq_len=4096)
    assert choice.learning_rate == pytest.approx(learning_rate, rel=2e-3)
    assert choice.batch_tokens_exact == pytest.approx(batch_tokens, rel=3e-3)
    assert choice.batch_tokens % 4096 == 0
    if sequences:
        assert choice.batch_tokens // 4096 == pytest.approx(sequences, abs=2)


def test_step_law_gives_its_known_answer():
    choice = hyper_law("steplaw").choose(n_params=7e9, n_tokens=1.4e12, seq_len=2048)
    assert choice.learning_rate == pytest.approx(9.17e-4, rel=5e-3)
    assert choice.batch_tokens_exact == pytest.approx(5.00e6, rel=5e-3)


def test_porian_law_is_anchored_at_108m_parameters():
    choice = hyper_law("porian").choose(n_params=1.08e8, seq_len=2048)
    assert choice.learning_rate == pytest.approx(0.0047)
    assert choice.batch_tokens == 160 * 2048


def test_two_of_compute_tokens_and_flops_per_token_give_the_third():
    law = HyperLaw("own", PowerLaw(1.0, {"flops_per_token": 1.0}), PowerLaw(1.0, {"n_tokens": 1.0}))
    choice = law.choose(total_flops=6e10, n_tokens=2e4, seq_len=100)
    assert choice.learning_rate == pytest.approx(3e6)
    assert choice.batch_tokens == 20_000


def test_a_batch_is_never_less_than_one_sequence():
    assert whole_batch(3.0, 256) == 256
    assert whole_batch(700.0, 256) == 768


@pytest.mark.parametrize("name", sorted(HYPER_LAWS))
def test_every_published_law_survives_a_trip_through_toml(name):
    law = HYPER_LAWS[name]
    assert hyper_law(tomllib.loads(to_toml({"hyper": law.tree()}))["hyper"]) == law
    assert law.source and law.grade in {"data", "consistent", "read"}


def test_fitted_exponent_names_and_constants_are_read():
    law = hyper_law({"learning_rate": {"coefficient": 2.0, "c_exponent": -0.5, "runs": 7}, "batch_tokens": 512})
    assert law.learning_rate == PowerLaw(2.0, {"total_flops": -0.5})
    assert law.choose(total_flops=4.0, seq_len=256).batch_tokens == 512


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deepsek", "did you mean deepseek"),
        ({"learning_rate": 0.1}, "hyper.batch_tokens = None must be"),
        ({"learning_rate": {"total_flops": 1.0}, "batch_tokens": 8}, "hyper.learning_rate has no coefficient"),
        ({"learning_rate": {"coefficient": 1.0, "total_flop": 1.0}, "batch_tokens": 8}, "did you mean total_flops"),
        ({"learning_rate": {"coefficient": -1.0}, "batch_tokens": 8}, "above 0"),
        ({"learning_rate": {"coefficient": "x"}, "batch_tokens": 8}, "must be a number"),
    ],
)
def test_a_wrong_law_is_refused_with_a_way_out(spec, message):
    with pytest.raises(RecipeError, match=message):
        hyper_law(spec)


def test_a_missing_quantity_is_named():
    with pytest.raises(RecipeError, match="n_tokens = None is needed"):
        hyper_law("steplaw").choose(total_flops=1e20, seq_len=2048)
