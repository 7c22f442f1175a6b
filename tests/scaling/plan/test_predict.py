"""Predictions from laws files: exact at the centre, honest about disagreement, noise, rehearsal and repeated data."""

import copy

import numpy as np
import pytest
from law_examples import TRUTH, example_laws

from isoflop.errors import PlanError
from isoflop.scaling.laws import effective, repeated_loss, surface_loss, surface_optimum
from isoflop.scaling.plan.predict import Experience, predict
from isoflop.scaling.published import load_laws

C4 = load_laws("muennighoff").surfaces["published"].constants
LAWS = example_laws()


def _optimum(total_flops):
    return (float(value) for value in surface_optimum(TRUTH, total_flops, 1.0))


@pytest.mark.parametrize(("scale", "n_tokens", "loss"), [(6.34e9, 242e9, 2.225644), (8.67e9, 178e9, 2.226963)])
def test_repeated_data_law_gives_its_known_answers(scale, n_tokens, loss):
    assert repeated_loss(C4, scale, n_tokens, 25e9) == pytest.approx(loss, abs=2e-6)


def test_four_epochs_count_as_373_fresh_passes_and_forty_as_152():
    assert effective(4.0, 1.0, 15.387756) == pytest.approx(3.73, abs=0.005)
    assert effective(40.0, 1.0, 15.387756) == pytest.approx(15.2, abs=0.05)


def test_without_repetition_the_surface_is_unchanged():
    assert repeated_loss(C4, 1e8, 2e9, 1e10) == surface_loss(C4, 1e8, 2e9)
    assert repeated_loss(C4, 1e8, 2e9, None) == surface_loss(C4, 1e8, 2e9)


def test_repetition_penalty_is_continuous_and_grows():
    tokens = np.array([0.999e9, 1.001e9, 2e9, 8e9])
    excess = repeated_loss(C4, 4e7, tokens, 1e9) - surface_loss(C4, 4e7, tokens)
    assert excess[1] < 1e-6 and np.all(np.diff(excess) > 0)


def test_the_centre_is_the_weighted_mean_of_the_laws_and_close_to_the_truth():
    scale, n_tokens = _optimum(3e15)
    found = predict(LAWS, scale, n_tokens)
    weights = found.components["weights"]
    assert sum(weights.values()) == pytest.approx(1.0)
    assert found.center == pytest.approx(sum(weights[name] * loss for name, loss in found.by_law.items()), rel=1e-12)
    assert found.center == pytest.approx(surface_loss(TRUTH, scale, n_tokens), rel=2e-3)
    assert found.low < found.center < found.high
    assert found.components["extrapolation"] == pytest.approx(10.0)
    assert set(found.by_law) == {"surface_log_huber", "surface_varpro", "lstar"}


def test_loss_against_compute_is_corrected_for_being_off_the_optimum():
    scale, n_tokens = _optimum(1e15)
    off = predict(LAWS, 3 * scale, n_tokens / 3)
    truth = surface_loss(TRUTH, 3 * scale, n_tokens / 3)
    assert off.by_law["lstar"] == pytest.approx(truth, rel=3e-3)
    assert off.components["penalty_off_optimum"] > 0.005


def test_disagreement_between_laws_widens_the_interval():
    laws = copy.deepcopy(LAWS)
    laws["lstar"]["E"] += 0.05
    laws["resamples"]["lstar"] = [[E + 0.05, k, g] for E, k, g in laws["resamples"]["lstar"]]
    scale, n_tokens = _optimum(1e15)
    before, after = predict(LAWS, scale, n_tokens), predict(laws, scale, n_tokens)
    assert after.high - after.low > before.high - before.low + 0.02
    assert after.components["laws_spread"] > 0.03


def test_a_law_that_the_runs_do_not_fix_has_less_weight():
    laws = copy.deepcopy(LAWS)
    generator = np.random.default_rng(0)
    laws["resamples"]["lstar"] = [
        [E + 0.1 * generator.standard_normal(), k, g] for E, k, g in laws["resamples"]["lstar"]
    ]
    weights = predict(laws, *_optimum(3e15)).components["weights"]
    assert weights["lstar"] < 0.2 < weights["surface_log_huber"]


def rehearsed(relative_error, factor=3.0, count=6):
    """LAWS with rehearsals that all missed by as much."""
    one = {"relative_error": relative_error, "extrapolation_factor": factor, "n_cells": 3, "measured": 1.0}
    one["by_law"] = dict.fromkeys(("surface_log_huber", "surface_varpro", "lstar"), 1 + relative_error)
    return {**LAWS, "rehearsals": [one] * count}


def test_a_rehearsal_miss_that_noise_explains_says_that_nothing_drifts():
    scale, n_tokens = _optimum(3e15)
    small = predict(rehearsed(1e-4), scale, n_tokens, experience=Experience(0.01, 1.0))
    assert small.components["rehearsed_drift"] == 0
    assert (
        0
        < small.components["drift"]
        < predict({**LAWS, "leave_out": {}}, scale, n_tokens, experience=Experience(0.01, 1.0)).components["drift"]
    )


def test_a_rehearsal_counts_by_the_weight_of_the_laws_that_it_has():
    scale, n_tokens = _optimum(3e15)
    laws = rehearsed(0.02, count=2)
    whole, half = laws["rehearsals"][0], copy.deepcopy(laws["rehearsals"][1])
    del half["by_law"]["lstar"]
    found = predict({**laws, "rehearsals": [whole, half]}, scale, n_tokens).components
    assert found["rehearsals"] == pytest.approx(2 - found["weights"]["lstar"])
    assert found["rehearsed_drift"] == pytest.approx(predict(laws, scale, n_tokens).components["rehearsed_drift"])


def test_the_interval_is_the_sum_of_its_causes():
    scale, n_tokens = _optimum(3e15)
    before = predict(LAWS, scale, n_tokens)
    noisy = predict({**LAWS, "noise": {"relative_sd": 0.02}}, scale, n_tokens)
    missed = predict(rehearsed(0.05), scale, n_tokens, experience=Experience(0.002, 1.0))
    assert noisy.relative_width > before.relative_width + 0.02
    assert missed.relative_width > before.relative_width + 0.02
    causes = [missed.components[name] for name in ("noise", "constants", "drift", "steepening")]
    assert np.log(missed.high / missed.low) == pytest.approx(2 * 1.6449 * np.sqrt(np.square(causes).sum()), rel=1e-4)
    # ten times the compute at what 12 witnesses say: 6 of the prior, 6 of 0.05 over ln 3
    own = (0.05**2 - LAWS["noise"]["relative_sd"] ** 2 / 3) / np.log(3) ** 2
    assert missed.components["drift"] == pytest.approx(np.log(10) * np.sqrt((6 * 0.002**2 + 6 * own) / 12), rel=1e-6)


def test_the_interval_grows_with_the_level():
    scale, n_tokens = _optimum(1e15)
    widths = [predict(LAWS, scale, n_tokens, level=level).relative_width for level in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths) and widths[0] < widths[2]


def test_the_ninety_percent_interval_covers_new_runs():
    """40 sweeps of the same truth, each predicting a noisy run at 10 times its budget."""
    generator = np.random.default_rng(1)
    scale, n_tokens = _optimum(3e15)
    truth, inside = float(surface_loss(TRUTH, scale, n_tokens)), 0
    for seed in range(40):
        laws = example_laws(rows=120, seed=seed)
        row = generator.integers(120)  # one sweep's own noisy fit in place of the noiseless centre
        for name in ("log_huber", "varpro"):
            fit = laws["resamples"][f"surface_{name}"][row]
            laws["surface"][name] = dict(zip(("E", "A", "B", "alpha", "beta"), fit))
        laws["lstar"] = dict(zip(("E", "k", "g"), laws["resamples"]["lstar"][row]))
        found = predict(laws, scale, n_tokens)
        inside += found.low <= truth * (1 + 0.003 * generator.standard_normal()) <= found.high
    assert inside >= 33


def test_repeated_tokens_raise_the_prediction_and_are_reported():
    scale, n_tokens = _optimum(3e15)
    fresh = predict(LAWS, scale, n_tokens)
    repeated = predict(LAWS, scale, n_tokens, unique_tokens=n_tokens / 4)
    assert repeated.center > fresh.center
    assert repeated.components["epochs"] == pytest.approx(4.0)
    assert repeated.components["effective_tokens"] == pytest.approx(3.73 / 4 * n_tokens, rel=2e-3)
    assert repeated.components["repetition_penalty"] == pytest.approx(repeated.center - fresh.center)


def test_no_interval_without_resamples():
    with pytest.raises(PlanError, match="no interval is available"):
        predict({**LAWS, "resamples": {}}, 1e7, 1e8)
    few = {**LAWS, "resamples": {name: rows[:50] for name, rows in LAWS["resamples"].items()}}
    with pytest.raises(PlanError, match="resamples = 50 usable rows"):
        predict(few, 1e7, 1e8)


def test_rows_in_which_a_law_failed_are_left_out_of_all():
    laws = copy.deepcopy(LAWS)
    laws["resamples"]["lstar"][0] = [None, None, None]
    assert predict(laws, *_optimum(1e15)).components["resamples"] == len(LAWS["resamples"]["lstar"]) - 1


@pytest.mark.parametrize(("arguments", "message"), [({"level": 1.2}, "level = 1.2"), ({"n_tokens": -1.0}, "above 0")])
def test_senseless_questions_are_refused(arguments, message):
    with pytest.raises(PlanError, match=message):
        predict(LAWS, **{"scale": 1e7, "n_tokens": 1e8, **arguments})
