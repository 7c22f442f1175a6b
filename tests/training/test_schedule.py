"""The learning-rate factor at points that can be computed by hand."""

import itertools
import math

import pytest

from isoflop.training.schedule import cooldown_start, factor


def at(step: int, schedule, n_steps: int = 100, warmup_steps: int = 0, cooldown_fraction: float = 0.2) -> float:
    return factor(
        step, n_steps=n_steps, warmup_steps=warmup_steps, schedule=schedule, cooldown_fraction=cooldown_fraction
    )


@pytest.mark.parametrize("schedule", ["multi_step", "cosine", "constant_cooldown"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    n_steps = 10_000_000  # so long that nothing else happens during the warm-up
    found = [at(step, schedule, n_steps=n_steps, warmup_steps=10) for step in range(12)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0], rel=1e-9)


def test_multi_step_falls_at_80_and_90_percent_to_the_papers_shares():
    assert [at(step, "multi_step") for step in (0, 79, 80, 89, 90, 99)] == [1.0, 1.0, 0.316, 0.316, 0.1, 0.1]


def test_cosine_goes_from_one_through_the_middle_to_a_tenth():
    assert at(0, "cosine") == 1.0
    assert at(50, "cosine") == pytest.approx(0.55)
    assert at(25, "cosine") == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert at(99, "cosine") == pytest.approx(0.1, abs=3e-4) and at(99, "cosine") > 0.1


def test_constant_cooldown_is_flat_and_then_falls_in_equal_steps_to_just_above_zero():
    found = [at(step, "constant_cooldown") for step in range(100)]
    assert found[:80] == [1.0] * 80
    assert found[80] == pytest.approx(20 / 21) and found[99] == pytest.approx(1 / 21)
    falls = [a - b for a, b in itertools.pairwise(found[79:])]
    assert falls == pytest.approx([1 / 21] * 20)


def test_up_to_the_cooldown_a_short_run_has_the_rates_of_every_longer_one():
    start = cooldown_start(50, 0.2)
    assert start == 40
    short = [at(step, "constant_cooldown", n_steps=50, warmup_steps=7) for step in range(start)]
    for n_steps in (51, 100, 400):
        assert short == [at(step, "constant_cooldown", n_steps=n_steps, warmup_steps=7) for step in range(start)]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", ["multi_step", "cosine", "constant_cooldown"])
def test_the_shortest_runs_have_a_rate_above_zero_at_every_step(schedule, n_steps):
    found = [at(step, schedule, n_steps=n_steps, warmup_steps=1) for step in range(n_steps)]
    assert all(0 < value <= 1 for value in found)
