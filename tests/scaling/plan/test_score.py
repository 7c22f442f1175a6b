"""Scores: plain arithmetic, and no score for what was not a prediction."""

import dataclasses
import json

import pytest

from isoflop.errors import DataError, PlanError, RecipeError
from isoflop.recipe import write_json, write_recipe
from isoflop.scaling.plan.score import score, score_run
from isoflop.scaling.sweep.records import read_records
from isoflop.training.pretrain.workload import run_pretrain

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


RESULT = dict.fromkeys(("bits_per_byte", "total_flops", "total_flops_exact"), 1.0) | {
    **dict.fromkeys(("started_at", "finished_at"), "2026-01-01"),
    "status": "finished",
}


def test_the_score_holds_error_interval_and_ratios():
    found = score(PREDICTION, **RUN)
    assert found.relative_error == pytest.approx(1.50 / 1.48 - 1)
    assert found.inside_interval is True and found.interval == [1.45, 1.56]
    assert found.ratio == pytest.approx(5.01) and found.ratio_exact == pytest.approx(5.0)
    assert found.relative_width == pytest.approx(0.11 / 1.5)
    assert (found.predicted_at, found.measured_at) == (PREDICTION["predicted_at"], RUN["measured_at"])


@pytest.mark.parametrize("measured", [1.44, 1.57])
def test_a_measurement_outside_is_said_to_be_outside(measured):
    assert score(PREDICTION, **{**RUN, "measured_bits_per_byte": measured}).inside_interval is False


def test_times_of_other_zones_are_compared_as_moments():
    run = {**RUN, "started_at": "2026-11-21T11:30:00+01:00", "measured_at": "2026-11-21T12:00:00+01:00"}
    assert score(PREDICTION, **run).started_at.endswith("+01:00")


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


PLANNED = {
    "bits_per_byte": 4.0,
    "low": 3.9,
    "high": 4.1,
    "level": 0.9,
    "predicted_at": "2020-01-01T00:00:00+00:00",
    "largest_sweep_flops": 1e6,
}


@pytest.fixture
def finished(tmp_path, tiny_recipe):
    """A finished run of two steps that carries a prediction."""
    run_pretrain(tiny_recipe(train={"n_tokens": 128}, prediction=PLANNED), tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_is_scored_and_its_record_holds_prediction_and_score(finished, tmp_path):
    found = score_run(finished, records=tmp_path / "records.jsonl")
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert found.measured_bits_per_byte == result["bits_per_byte"]
    assert found.relative_error == pytest.approx(4.0 / result["bits_per_byte"] - 1)
    assert found.target_flops == result["total_flops"] and found.ratio == result["total_flops"] / 1e6
    assert found.predicted_at < found.started_at <= found.measured_at
    assert json.loads((finished / "score.json").read_text(encoding="utf-8")) == dataclasses.asdict(found)
    (record,) = read_records(tmp_path / "records.jsonl")
    assert (record.kind, record.status, record.score) == ("target", "finished", dataclasses.asdict(found))
    assert record.prediction == PLANNED and record.bits_per_byte == result["bits_per_byte"]


def test_scoring_twice_leaves_one_record(finished, tmp_path):
    for _ in range(2):
        score_run(finished, records=tmp_path / "records.jsonl")
    assert len(read_records(tmp_path / "records.jsonl")) == 1


def test_what_was_not_predicted_or_not_finished_is_not_scored(finished, tmp_path, tiny_recipe):
    with pytest.raises(DataError, match="is not a finished run; finish it with isoflop train"):
        score_run(tmp_path / "nothing")
    recipe = tiny_recipe(train={"n_tokens": 128}, prediction={**PLANNED, "predicted_at": "2999-01-01T00:00:00Z"})
    write_recipe(finished / "recipe.toml", recipe)
    with pytest.raises(PlanError, match="later than the start of the run"):
        score_run(finished)
    write_recipe(finished / "recipe.toml", tiny_recipe(train={"n_tokens": 128}))
    with pytest.raises(PlanError, match=r"has no \[prediction\] section; write the recipe with isoflop plan"):
        score_run(finished)
    write_recipe(finished / "recipe.toml", tiny_recipe(train={"n_tokens": 128}, prediction=PLANNED))
    write_json(finished / "result.json", {"status": "diverged"})
    with pytest.raises(PlanError, match="ended as diverged"):
        score_run(finished)
    assert not (finished / "score.json").exists()


def test_a_damaged_result_or_a_run_of_something_else_is_named(tmp_path):
    (tmp_path / "recipe.toml").write_text("[medium]\nseed = 1\n", encoding="utf-8")
    for text, message in (
        ("{", r"result.json is not valid JSON .* run isoflop train again"),
        ("[]", r"result.json has no status: it is no result of isoflop train"),
        ('{"status": "finished"}', r"result.json has no bits_per_byte"),
        ('{"status": 3}', r"result.json: status = 3 must be text; run isoflop train again"),
        (json.dumps(RESULT | {"bits_per_byte": "1"}), r"result.json: bits_per_byte = '1' must be a number"),
        (json.dumps(RESULT | {"started_at": 3}), r"result.json: started_at = 3 must be text"),
    ):
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            score_run(tmp_path)
    (tmp_path / "result.json").write_text('{"status": "diverged"}', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe.toml has no \[model\] section; give a pretrain recipe"):
        score_run(tmp_path)
