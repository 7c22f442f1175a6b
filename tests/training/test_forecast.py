"""Forecasts of a run's end from its own curve: known ends of made-up curves, what is warned of, and real runs."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from isoflop.training.forecast import HARDER, Interval, LossForecast, arrived, usual_gain
from isoflop.training.pretrain.workload import Pretraining
from isoflop.training.run import run
from isoflop.training.schedule import factor
from isoflop.training.schedule_law import Schedule

N_STEPS, PEAK, GAIN = 2000, 0.004, 0.4


def rates(schedule: str) -> list[float]:
    return [
        PEAK * factor(step, n_steps=N_STEPS, warmup_steps=40, schedule=schedule, cooldown_fraction=0.2)  # type: ignore[arg-type]
        for step in range(N_STEPS)
    ]


def metrics(schedule: str, seed: int, noise: float = 0.1) -> list[dict]:
    """A made-up run: 2.6 + a power of the summed rates, less a gain that is 20% above the usual one."""
    known, steps = Schedule(rates(schedule)), np.arange(1, N_STEPS + 1)
    generator = np.random.default_rng(seed)
    loss = 2.6 + 2.5 * (known.sums[steps] / PEAK / 10) ** -0.35 - 1.2 * GAIN * arrived(known, steps)
    loss += noise * generator.standard_normal(N_STEPS)
    return [
        {"step": int(step), "learning_rate": rate, "loss_nats": float(value)}
        for step, rate, value in zip(steps, rates(schedule), loss, strict=True)
    ]


def followed(lines: list[dict], schedule: str = "constant_cooldown", **more) -> list[dict]:
    forecast = LossForecast(rates(schedule), gain=GAIN, **more)
    return [found for line in lines if (found := forecast.add(line))]


def warnings(found: list[dict]) -> list[tuple[int, str]]:
    return [(line["step"], line["warning"]) for line in found if "warning" in line]


@pytest.mark.parametrize("schedule", ["constant_cooldown", "multi_step", "cosine", "constant"])
def test_the_end_of_made_up_runs_is_inside_intervals_that_tighten(schedule):
    inside, errors = [], []
    for seed in range(8):
        lines = metrics(schedule, seed)
        end = np.mean([line["loss_nats"] for line in lines[-100:]])
        found = followed(lines, schedule)
        half, late = (next(line["final"] for line in found if line["step"] >= share * N_STEPS) for share in (0.5, 0.95))
        inside.append(half["low"] < end < half["high"])
        errors.append(abs(half["center"] / end - 1))
        assert late["high"] - late["low"] < 0.7 * (half["high"] - half["low"])
        assert not warnings(found), schedule
    assert sum(inside) >= 6
    assert np.mean(errors) < 0.025  # the gain is 20% off, on purpose


def test_what_the_difficulty_of_batches_explains_is_no_noise():
    """Half of the noise is known text: errors and intervals shrink, and the mean of a hundredth stays what it was."""
    errors, widths = [], []
    for seed in range(6):
        hard = 0.1 * np.random.default_rng(100 + seed).standard_normal(N_STEPS)
        lines = metrics("constant_cooldown", seed, noise=0.02)
        for line, more in zip(lines, hard, strict=True):
            line["loss_nats"] += HARDER * float(more)
        end = np.mean([line["loss_nats"] for line in lines[-100:]])
        for known in (None, lambda first, end, hard=hard: hard[first:end]):
            found = followed(lines, difficulty=known)
            late = next(line["final"] for line in found if line["step"] >= 0.9 * N_STEPS)
            errors.append(abs(late["center"] / end - 1))
            widths.append(late["high"] - late["low"])
            assert found[60]["loss_nats"] == pytest.approx(
                np.mean([x["loss_nats"] for x in lines[1200:1220]]), abs=0.03
            )
            assert not warnings(found)
    assert np.mean(errors[1::2]) < 0.8 * np.mean(errors[::2])
    assert np.mean(widths[1::2]) < np.mean(widths[::2])


def test_a_loss_that_jumps_is_warned_of_once_within_five_percent_of_the_steps():
    lines = metrics("constant_cooldown", 0)
    for line in lines[800:]:
        line["loss_nats"] += 0.5
    (step, text), *more = warnings(followed(lines))
    assert 800 < step <= 900 and not more
    assert "above its band since step 801" in text and "usual causes are a learning rate that is too high" in text


def test_the_warning_names_the_cause_where_the_run_shows_it():
    def disturbed(change) -> list[dict]:
        lines = metrics("constant_cooldown", 1)
        for line in lines[800:]:
            line["loss_nats"] += 0.5
            change(line)
        return lines

    fast = disturbed(lambda line: line.update(learning_rate=10 * line["learning_rate"]))
    assert "the learning rate is 10 times that of the recipe" in warnings(followed(fast))[0][1]
    plain = disturbed(lambda line: None)
    assert "data.curriculum changes at step 790" in warnings(followed(plain, stages=[400, 790]))[0][1]
    forecast = LossForecast(rates("constant_cooldown"), gain=GAIN)
    forecast.resume(795, plain[:795])
    resumed = [found for line in plain[795:] if (found := forecast.add(line))]
    assert "the run was resumed at step 795" in warnings(resumed)[0][1]
    plain[805]["loss_nats"] = 9.0
    assert "a bad batch: step 806 had a loss of 9.000" in warnings(followed(plain))[0][1]


def test_one_bad_batch_that_is_forgotten_again_is_no_alarm():
    lines = metrics("constant_cooldown", 2)
    lines[900]["loss_nats"] = 30.0
    assert not warnings(followed(lines))


def test_a_run_that_heads_past_its_plan_is_warned_of_at_half_time():
    lines = metrics("cosine", 3)
    end = np.mean([line["loss_nats"] for line in lines[-100:]])
    inside = Interval(end, 0.95 * end, 1.05 * end)
    assert not warnings(followed(lines, "cosine", planned=inside))
    beside = Interval(0.85 * end, 0.8 * end, 0.9 * end)
    (step, text), *more = warnings(followed(lines, "cosine", planned=beside))
    assert N_STEPS / 2 < step < 0.6 * N_STEPS and not more
    assert "is heading for" in text and f"planned was {0.85 * end:.3f}" in text


@pytest.mark.parametrize(
    ("sizes", "measured"),
    [
        ((80, 0.00342, 1408, 6000), 0.44),  # demos on a CPU, 0.40 to 0.48
        ((480, 0.00145774, 29184, 12764), 0.28),  # docs/studies/h200
    ],
)
def test_what_a_fall_gains_is_what_targets_gained_that_it_was_not_fitted_to(sizes, measured):
    assert usual_gain(*sizes) == pytest.approx(measured, rel=0.1)


@pytest.fixture
def small_run(tiny_recipe):
    """A run of 400 steps, its rate multiplied from 40% of them on."""

    def make(times: float = 1.0) -> Pretraining:
        job = Pretraining(tiny_recipe(train={"n_tokens": 400 * 256, "batch_tokens": 256, "learning_rate": 0.02}))
        rate = job.plan.rate
        job.plan = dataclasses.replace(job.plan, rate=lambda step: rate(step) * (times if step >= 160 else 1.0))
        return job

    return make


def test_a_run_whose_rate_is_multiplied_by_ten_at_40_percent_is_flagged_within_5(small_run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(small_run(10.0), tmp_path / "fast")
    found = [json.loads(line) for line in (tmp_path / "fast/forecast.jsonl").read_text(encoding="utf-8").splitlines()]
    (step, text), *more = warnings(found)
    assert 160 < step <= 180 and not more
    assert "the learning rate is 10 times that of the recipe" in text
    assert [record.message for record in caplog.records if "above its band" in record.message] == [text]


def test_an_undisturbed_run_is_shown_with_its_end_and_resumes_to_the_byte(small_run, tmp_path):
    shown = []
    whole = run(small_run(), tmp_path / "whole", on_progress=shown.append)
    calls = iter(range(1000))
    assert run(small_run(), tmp_path / "parts", should_stop=lambda: next(calls) >= 233)["status"] == "interrupted"
    run(small_run(), tmp_path / "parts")
    for name in ("metrics.jsonl", "forecast.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    found = [json.loads(line) for line in (tmp_path / "whole/forecast.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(found) == 100 and not warnings(found)
    half = found[49]["final"]
    assert half["low"] < whole["train_loss_nats"] < half["high"]
    assert all(progress.final_loss is None or progress.final_loss.low > 0 for progress in shown)


def test_short_runs_and_parts_of_a_trunk_are_not_forecast(tiny_recipe, small_run, tmp_path):
    run(Pretraining(tiny_recipe()), tmp_path / "short")
    run(small_run(), tmp_path / "trunk", stop_at=250)
    assert not list(tmp_path.glob("*/forecast.jsonl"))
