import math

import numpy as np
import pytest

from isoflop.corpus.mixture import Curriculum, Mixture
from isoflop.corpus.remix import MixOptions, MixStage, effective_bytes, mixture_section, plan_mixture
from isoflop.errors import RecipeError
from isoflop.scaling.plan.predict import REPEAT_TOKENS, effective

SIZES = {"web": 800_000_000, "code": 150_000_000, "math": 50_000_000}


def test_natural_proportions_are_those_of_the_text_and_lose_nothing() -> None:
    plan = plan_mixture(SIZES, MixOptions())
    assert plan["planned_bytes"] == 1e9
    for name, size in SIZES.items():
        assert plan["stages"][0]["target"][name] == pytest.approx(size / 1e9)
        assert plan["domains"][name]["epochs"] == pytest.approx(1.0, abs=0.01)
    assert plan["lost_to_repetition"] == pytest.approx(0.0, abs=1e-4)


def test_temperature_goes_from_natural_to_equal_shares() -> None:
    shares = [plan_mixture(SIZES, MixOptions(temperature=t))["stages"][0]["target"] for t in (1.0, 2.0, 1e6)]
    assert shares[0]["math"] < shares[1]["math"] < shares[2]["math"]
    assert shares[1]["math"] / shares[1]["web"] == pytest.approx(math.sqrt(50 / 800))
    assert shares[2]["math"] == pytest.approx(1 / 3, abs=1e-4)


def test_targets_are_kept_and_the_others_share_the_rest_as_they_are() -> None:
    target = plan_mixture(SIZES, MixOptions(targets={"math": 0.24}))["stages"][0]["target"]
    assert target == pytest.approx({"math": 0.24, "web": 0.76 * 800 / 950, "code": 0.76 * 150 / 950})


def test_repetition_costs_what_the_published_law_says() -> None:
    assert effective_bytes(4.0, 1.0) == pytest.approx(3.73, abs=0.01)  # paper: four epochs count as 3.73
    assert effective_bytes(40.0, 1.0) == pytest.approx(15.2, abs=0.1)
    for seen in (0.5, 1.0, 3.0, 100.0):
        assert effective_bytes(seen, 1.0) == pytest.approx(float(effective(seen, 1.0, REPEAT_TOKENS)))
    plan = plan_mixture(SIZES, MixOptions(train_gb=1.0, targets={"math": 0.2}))
    math_ = plan["domains"]["math"]
    assert math_["epochs"] == pytest.approx(4.0, abs=0.01) and math_["lost"] == pytest.approx(1 - 3.73 / 4, abs=0.002)


def test_no_domain_is_read_more_often_than_allowed_and_the_rest_takes_over() -> None:
    plan = plan_mixture(SIZES, MixOptions(train_gb=1.5, targets={"math": 0.5}, max_epochs=4.0))
    assert plan["domains"]["math"]["epochs"] == pytest.approx(4.0, abs=0.01)
    assert plan["stages"][0]["target"]["math"] == 0.5  # what was asked for stays in the books
    assert sum(plan["stages"][0]["realised"].values()) == pytest.approx(1.0)
    with pytest.raises(RecipeError, match=r"mix\.max_epochs = 1\.2 leaves .* without text; raise it"):
        plan_mixture(SIZES, MixOptions(train_gb=2.0, max_epochs=1.2))


def test_the_realised_mixture_is_the_one_that_the_sampler_draws() -> None:
    plan = plan_mixture(SIZES, MixOptions(temperature=3.0))
    weights = mixture_section(plan)["data"]["weights"]
    mixture = Mixture(weights, seed=0)
    sources, _ = mixture.draws(np.arange(5 * 4096))
    drawn = np.bincount(sources) / len(sources)
    for number, name in enumerate(mixture.names):
        assert drawn[number] == pytest.approx(plan["stages"][0]["realised"][name])
        assert drawn[number] == pytest.approx(plan["stages"][0]["target"][name], abs=1 / 4096)


def test_a_curriculum_uses_text_up_stage_by_stage_and_becomes_a_recipe() -> None:
    stages = (MixStage(9.0, temperature=2.0), MixStage(1.0, targets={"math": 0.6}))
    plan = plan_mixture(SIZES, MixOptions(train_gb=0.5, stages=stages))
    assert [stage["start"] for stage in plan["stages"]] == [0.0, 0.9]
    seen = sum(stage["part"] * stage["realised"]["math"] for stage in plan["stages"]) * 5e8
    assert plan["domains"]["math"]["seen_bytes"] == pytest.approx(seen)
    curriculum = mixture_section(plan)["data"]["curriculum"]
    assert [stage["from_share"] for stage in curriculum] == [0.0, 0.9] and curriculum[1]["weights"]["math"] == 0.6
    Curriculum([(int(s["from_share"] * 1000), s["weights"]) for s in curriculum], seed=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (MixOptions(temperature=0.0), r"mix\.temperature = 0\.0 must be above 0"),
        (MixOptions(targets={"math": 0.7, "web": 0.7}), r"mix\.targets = .* sum of at most 1"),
        (MixOptions(targets={"maths": 0.2}), r"mix\.targets\.maths: no such domain; there are: code, math, web"),
        (MixOptions(targets={"math": 0.2, "web": 0.2, "code": 0.2}), "name every domain and have the sum 0.6"),
        (MixOptions(train_gb=-1.0), r"mix\.train_gb = -1\.0"),
        (MixOptions(stages=(MixStage(0.0),)), r"mix\.stages\[0\]\.part = 0\.0 must be above 0"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(options: MixOptions, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_mixture(SIZES, options)
