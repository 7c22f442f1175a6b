"""The three-term law: known constants, the solver against scipy, and the bootstrap against its own spread."""

import numpy as np
import pytest
import scipy.optimize

from isoflop.errors import FitError
from isoflop.scaling.fit.parametric import make_objective, minimise, surface_points
from isoflop.scaling.fit.run import fit_table
from isoflop.scaling.fit.surface import draw_settings
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import CONSTANTS, Surface

BESIROGLU = Surface(1.8172, 477.83, 2143.4, 0.34731, 0.36717)
TRUTH = Surface(0.9, 300.0, 700.0, 0.35, 0.4)


def runs(truth: Surface = TRUTH, noise: float = 0.0, seed: int = 0, scale: str = "n_params") -> Table:
    generator = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e16, 1e19, 6), 8)
    size = np.tile(np.geomspace(0.2, 5, 8), 6) * (flops / 6) ** 0.5 * 0.2
    tokens = flops / (6 * size)
    loss = truth.loss(size, tokens) * np.exp(noise * generator.normal(size=len(size)))
    return Table({scale: size, "n_tokens": tokens, "loss_nats": loss})


@pytest.mark.parametrize("objective", ["log_huber", "raw_huber", "mse", "varpro"])
def test_every_objective_recovers_a_noiseless_truth(objective):
    fit = fit_table(runs(), "surface", bootstrap=0)["fits"][objective]
    for name in CONSTANTS:
        assert fit[name] == pytest.approx(getattr(TRUTH, name), rel=2e-3), fit
    assert fit["a"] == pytest.approx(TRUTH.beta / (TRUTH.alpha + TRUTH.beta), abs=1e-4)


def test_the_optimum_is_the_known_answer_of_the_fact_sheet():
    size, tokens, loss = BESIROGLU.optimum(5.76e23, 6.0)
    assert (size, tokens, loss) == pytest.approx((7.32e10, 1.31e12, 1.974), rel=2e-3)
    assert tokens / size == pytest.approx(17.9, abs=0.1)


def test_the_optimum_is_the_lowest_point_of_its_budget_for_both_scales():
    for factor in (6.0, 1.0):
        size, tokens, loss = TRUTH.optimum(1e20, factor)
        assert factor * size * tokens == pytest.approx(1e20)
        around = size * np.geomspace(0.5, 2, 101)
        assert TRUTH.loss(around, 1e20 / factor / around).min() == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("name", ["log_huber", "raw_huber", "mse"])
def test_derivatives_match_finite_differences(name):
    objective = make_objective(surface_points(runs(noise=0.01)), name)
    theta, weight = np.array([[0.0, -0.5, -0.7, 0.3, 0.35]]), np.ones((1, len(objective.loss)))
    _, gradient, exact, bounding = objective.derivatives(theta, weight)
    step = 1e-6 * np.eye(5)
    slopes = [
        (objective.derivatives(theta + h, weight)[0] - objective.derivatives(theta - h, weight)[0])[0] / 2e-6
        for h in step
    ]
    np.testing.assert_allclose(gradient[0], slopes, rtol=1e-5, atol=1e-9)
    up, down = (np.stack([objective.derivatives(theta + s * h, weight)[1][0] for h in step]) for s in (1, -1))
    bends = (up - down) / 2e-6
    np.testing.assert_allclose(exact[0], bends, rtol=1e-3, atol=2e-3 * np.abs(exact).max())
    assert np.linalg.eigvalsh(bounding[0]).min() > -1e-12


def test_resampled_minima_are_as_low_as_those_of_a_scipy_optimiser():
    objective = make_objective(surface_points(runs(noise=0.01)), "log_huber")
    weight = draw_settings(np.arange(len(objective.loss)), 6, np.random.default_rng(1))
    start = np.array([0.0, -0.5, -0.5, 0.35, 0.35])
    theta, value, converged = minimise(objective, np.tile(start, (6, 1)), weight)
    assert converged.all()
    for row in range(6):
        one = weight[row : row + 1]
        found = scipy.optimize.minimize(
            lambda t, one=one: 1e3 * objective.derivatives(t[None], one)[0][0],
            theta[row] + 0.01,
            method="Nelder-Mead",
            options={"maxiter": 20000, "maxfev": 20000, "xatol": 1e-10, "fatol": 1e-13, "adaptive": True},
        )
        assert value[row] <= found.fun / 1e3 * (1 + 1e-6)


def test_intervals_cover_the_truth_and_shrink_with_the_noise():
    wide = fit_table(runs(noise=0.01, seed=3), "surface", bootstrap=300)["fits"]["log_huber"]
    narrow = fit_table(runs(noise=0.001, seed=3), "surface", bootstrap=300)["fits"]["log_huber"]
    for name in ("E", "alpha", "beta", "a"):
        true = TRUTH.beta / (TRUTH.alpha + TRUTH.beta) if name == "a" else getattr(TRUTH, name)
        low, high = wide["interval_95"][name]
        assert low < true < high
        assert narrow["bootstrap_sd"][name] < 0.3 * wide["bootstrap_sd"][name]
    matrix = np.array(wide["correlation"]["matrix"])
    assert matrix[1, 3] > 0.9  # ln A and alpha are nearly collinear


def test_the_same_seed_gives_the_same_bootstrap():
    first, second, other = (fit_table(runs(noise=0.01), "surface", bootstrap=20, seed=s) for s in (1, 1, 2))
    assert first == second
    assert first["fits"]["mse"]["bootstrap_sd"] != other["fits"]["mse"]["bootstrap_sd"]


def test_flops_per_token_is_a_scale_of_its_own():
    result = fit_table(runs(scale="flops_per_token"), "surface", bootstrap=0, at_flops=1e20)
    assert result["scale"] == "flops_per_token"
    optimum = result["fits"]["mse"]["optimum"]
    assert optimum["scale"] * optimum["tokens"] == pytest.approx(1e20)


def test_an_outlier_is_named_and_moves_huber_less_than_squares():
    table = runs(noise=0.002)
    table.columns["loss_nats"][5] *= 1.2
    result = fit_table(table, "surface", bootstrap=0)
    assert any("1 of 48 rows lie more than" in text and "20" in text for text in result["warnings"])
    shift = {name: abs(result["fits"][name]["beta"] - TRUTH.beta) for name in ("log_huber", "mse")}
    assert shift["log_huber"] < shift["mse"]


def test_too_few_runs_and_unknown_groups_are_refused():
    with pytest.raises(FitError, match="5 rows"):
        fit_table(runs().select(np.arange(5)), "surface")
    with pytest.raises(FitError, match="row, setting or budget"):
        fit_table(runs(), "surface", group="seed")
