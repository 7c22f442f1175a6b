"""Scores: plain arithmetic, and no score for what was not a prediction."""

import pytest

from isoflop.errors import PlanError
from isoflop.scaling.plan.score import score

PREDICTION = {
    "bits_per_byte": 1.50,
    "low": 1.45,
    "high": 1.56,
    "level": 0.9,
    "predicted_at": "2026-11-21T10:00:00+00:00",
    "target_flops": 5e13,
    "largest_sweep_flops": 1e13,
    "largest_sweep_flops_exact": 1.2e13,
    "by_law": {"lstar": 1.49},
}
RUN = {
    "measured_bits_per_byte": 1.48,
    "started_at": "2026-11-21T10:00:00+00:00",
    "measured_at": "2026-11-21T10:05:00+00:00",
    "target_flops": 5.01e13,
    "target_flops_exact": 6e13,
}


def test_the_score_holds_error_interval_and_ratios():
    found = score(PREDICTION, **RUN)
    assert found["relative_error"] == pytest.approx(1.50 / 1.48 - 1)
    assert found["inside_interval"] is True and found["interval"] == [1.45, 1.56]
    assert found["ratio"] == pytest.approx(5.01) and found["ratio_exact"] == pytest.approx(5.0)
    assert found["relative_width"] == pytest.approx(0.11 / 1.5)
    assert (found["predicted_at"], found["measured_at"]) == (PREDICTION["predicted_at"], RUN["measured_at"])


@pytest.mark.parametrize("measured", [1.44, 1.57])
def test_a_measurement_outside_is_said_to_be_outside(measured):
    assert score(PREDICTION, **{**RUN, "measured_bits_per_byte": measured})["inside_interval"] is False


def test_sweep_budgets_given_with_the_run_win():
    found = score(PREDICTION, **RUN, largest_sweep_flops=2e13, largest_sweep_flops_exact=3e13)
    assert (found["ratio"], found["ratio_exact"]) == (pytest.approx(2.505), pytest.approx(2.0))


def test_times_of_other_zones_are_compared_as_moments():
    run = {**RUN, "started_at": "2026-11-21T11:30:00+01:00", "measured_at": "2026-11-21T12:00:00+01:00"}
    assert score(PREDICTION, **run)["started_at"].endswith("+01:00")


@pytest.mark.parametrize(
    ("prediction", "run", "message"),
    [
        ({"predicted_at": "2026-11-21T10:00:01+00:00"}, {}, "later than the start of the run"),
        ({"low": None}, {}, "prediction has no low"),
        ({}, {"measured_bits_per_byte": float("nan")}, "did the run diverge"),
        ({}, {"target_flops": 6e13}, "differs from the predicted 5e.13"),
        ({}, {"measured_at": "2026-11-21T09:00:00+00:00"}, "earlier than the start"),
        ({"predicted_at": "yesterday"}, {}, "not an ISO 8601 time"),
    ],
)
def test_what_was_no_prediction_is_not_scored(prediction, run, message):
    with pytest.raises(PlanError, match=message):
        score({**PREDICTION, **prediction}, **{**RUN, **run})
