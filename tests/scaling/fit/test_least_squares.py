"""The solver for laws of experts: scipy's minimum for every resample, within bounds, with held parameters."""

import numpy as np
import pytest
import scipy.optimize

from isoflop.scaling.fit.solver import least_squares

X = np.linspace(0.0, 4.0, 25)
TRUTH = np.array([1.3, -0.7, 0.4])


def curve(theta):
    return theta[:, [0]] * np.exp(theta[:, [1]] * X) + theta[:, [2]]


def problem(seed=0, noise=0.01):
    measured = curve(TRUTH[None])[0] + noise * np.random.default_rng(seed).standard_normal(len(X))
    return lambda theta: curve(theta) - measured


WIDE = (np.full(3, -10.0), np.full(3, 10.0))


def test_the_minimum_is_scipys():
    residuals = problem()
    weight = np.random.default_rng(1).gamma(1.0, 1.0, size=(3, len(X)))
    found, cost = least_squares(residuals, np.tile([0.5, -0.2, 0.0], (3, 1)), weight, bounds=WIDE)
    for theta, value, row in zip(found, cost, weight, strict=True):
        other = scipy.optimize.least_squares(
            lambda t, row=row: residuals(t[None])[0] * np.sqrt(row), [0.5, -0.2, 0.0], xtol=1e-15, ftol=1e-15
        )
        assert value == pytest.approx(2 * other.cost, rel=1e-9)
        assert np.abs(theta - other.x).max() < 1e-5 * np.abs(other.x).max()


def test_far_starts_and_near_ones_end_at_the_same_place():
    starts = np.array([[5.0, -3.0, 3.0], [0.1, 0.1, -2.0], [1.3, -0.7, 0.4]])
    found, _ = least_squares(problem(), starts, np.ones((1, len(X))), bounds=WIDE)
    assert np.abs(found - found[0]).max() < 1e-6


def test_bounds_hold_and_the_others_adapt():
    residuals, weight = problem(noise=0.0), np.ones((1, len(X)))
    bounds = (np.array([-10.0, -0.5, -10.0]), np.full(3, 10.0))
    found, cost = least_squares(residuals, np.array([[1.0, 0.0, 0.0]]), weight, bounds=bounds)
    assert found[0, 1] == pytest.approx(-0.5)
    best = scipy.optimize.least_squares(lambda t: residuals(t[None])[0], [1.0, -0.4, 0.0], bounds=bounds, xtol=1e-14)
    assert cost[0] == pytest.approx(2 * best.cost, rel=1e-5)


def test_a_held_parameter_stays_to_the_bit():
    free = np.array([True, False, True])
    found, _ = least_squares(problem(), np.array([[1.0, -0.9, 0.0]]), np.ones((1, len(X))), free=free, bounds=WIDE)
    assert found[0, 1] == -0.9 and found[0, 0] != 1.0


def test_a_start_without_a_finite_cost_costs_infinity_and_stays():
    starts, bounds = np.array([[1.0], [0.1]]), (np.zeros(1), np.full(1, 2.0))
    found, cost = least_squares(lambda theta: np.exp(1e3 * theta) * np.ones(4), starts, np.ones((1, 4)), bounds=bounds)
    assert cost[0] == np.inf and found[0, 0] == 1.0
    assert cost[1] == pytest.approx(4.0) and found[1, 0] == 0.0
