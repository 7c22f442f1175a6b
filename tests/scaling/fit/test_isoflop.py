"""IsoFLOP curves and laws of compute: vertices, their exponents, what is refused."""

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.scaling.fit.isoflop import quadratic_vertices
from isoflop.scaling.fit.pooled import fit_pooled
from isoflop.scaling.fit.run import fit_table
from isoflop.scaling.fit.selection import weighted
from isoflop.scaling.fit.table import Table

BUDGETS = np.geomspace(1e15, 1e18, 6)


def bowls(budgets=BUDGETS, sizes=7, width=3.0, shift=1.0, noise=0.0, wall=0.0, seed=0):
    """Exact parabolas in ln N around N* = 0.1 C^0.45; `wall` adds a steep fourth power on one side."""
    generator = np.random.default_rng(seed)
    rows = []
    for flops in budgets:
        best = 0.1 * flops**0.45
        for size in best * shift * np.geomspace(1 / width, width, sizes):
            offset = np.log(size / best)
            loss = 1.2 + 40 * flops**-0.1 + 0.05 * offset**2 + wall * max(offset, 0) ** 4
            rows.append((flops, size, flops / (6 * size), loss + noise * generator.normal()))
    columns = np.array(rows).T
    return Table(dict(zip(("total_flops", "n_params", "n_tokens", "loss_nats"), columns)))


def test_exact_parabolas_give_exact_exponents_and_vertices():
    result = fit_table(bowls(shift=1.3), "parabola", bootstrap=50)
    assert result["interpolation"] == "parabola"
    assert result["n_exponent"] == pytest.approx(0.45, abs=1e-6)
    assert result["n_coefficient"] == pytest.approx(0.1, rel=1e-4)
    assert result["d_exponent"] == pytest.approx(0.55, abs=1e-6)
    assert result["d_coefficient"] == pytest.approx(1 / 0.6, rel=1e-4)
    for vertex, flops in zip(result["vertices"], BUDGETS):
        assert vertex["inside"]
        assert vertex["loss"] == pytest.approx(1.2 + 40 * flops**-0.1, rel=1e-6)
        assert len(vertex["points"]) == 7
    low, high = result["n_exponent_interval_95"]
    assert high - low < 1e-4


def test_intervals_hold_the_true_exponent_and_grow_with_noise():
    widths = []
    for noise in (0.002, 0.01):
        result = fit_table(bowls(noise=noise), "parabola", bootstrap=400)
        low, high = result["n_exponent_interval_95"]
        assert low < 0.45 < high
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_walls_are_interpolated_because_a_quadratic_misses_their_bottom():
    table = bowls(width=30.0, sizes=15, wall=0.03)
    automatic = fit_table(table, "parabola", bootstrap=0)
    assert automatic["interpolation"] == "akima"
    bias = {
        method: np.mean([abs(np.log10(v["scale_opt"] / (0.1 * v["total_flops"] ** 0.45))) for v in fit["vertices"]])
        for method, fit in (
            ("akima", automatic),
            ("parabola", fit_table(table, "parabola", bootstrap=0, interpolation="parabola")),
        )
    }
    assert bias["akima"] < 0.05 < bias["parabola"]


def test_a_budget_with_two_sizes_is_refused_by_name():
    table = bowls()
    keep = (table.columns["total_flops"] != BUDGETS[2]) | (np.arange(table.n_rows) % 7 < 2)
    with pytest.raises(FitError, match=r"1 of 6 budgets have fewer than three model sizes: 1\.58e\+16 \(2\)"):
        fit_table(table.select(keep), "parabola")


def test_vertices_outside_the_tested_range_are_left_out_then_refused():
    one = bowls(BUDGETS[:1], shift=20.0)
    both = {name: np.concatenate([one.columns[name], bowls(BUDGETS[1:]).columns[name]]) for name in one.columns}
    result = fit_table(Table(both), "parabola", bootstrap=0)
    assert result["n_budgets_used"] == 5
    assert [vertex["used"] for vertex in result["vertices"]] == [False] + [True] * 5
    assert result["n_exponent"] == pytest.approx(0.45, abs=1e-6)
    assert any("lies below the tested" in text and "add smaller sizes" in text for text in result["warnings"])
    with pytest.raises(FitError, match=r"vertex outside the tested range in 6 of 6 budgets.*add smaller sizes"):
        fit_table(bowls(shift=20.0), "parabola")
    with pytest.raises(FitError, match=r"vertex outside the tested range.*lowest loss is at the edge"):
        fit_table(bowls(shift=20.0), "parabola", interpolation="akima")


def test_a_vertex_just_outside_is_kept_only_within_its_standard_error():
    noisy = fit_table(bowls(shift=3.3, noise=0.02, sizes=9), "parabola", bootstrap=0)
    kept = [vertex for vertex in noisy["vertices"] if vertex["used"] and not vertex["inside"]]
    assert kept
    assert any("within its standard error" in text for text in noisy["warnings"])
    with pytest.raises(FitError, match="outside the tested range"):
        fit_table(bowls(shift=3.3), "parabola")  # the same place without noise is plainly outside


def test_a_cloud_of_runs_is_not_taken_for_budgets():
    flops = np.geomspace(1e15, 1e17, 60)
    cloud = {"total_flops": flops, "n_params": flops**0.5, "n_tokens": flops**0.5 / 6, "loss_nats": flops**-0.1}
    with pytest.raises(FitError, match="without a gap"):
        fit_table(Table(cloud), "parabola")


def test_labels_group_the_runs_and_counted_compute_is_the_axis():
    table = bowls()
    third = table.adding(budget_flops=table.columns["total_flops"] / 3)
    assert fit_table(third, "parabola", bootstrap=0)["n_coefficient"] == pytest.approx(0.1, rel=1e-4)
    jitter = table.columns["total_flops"] * (1 + 1e-3 * np.sin(np.arange(table.n_rows)))
    scattered = fit_table(table.adding(total_flops=jitter), "parabola", bootstrap=0)
    assert scattered["n_budgets"] == 6


def test_weights_zero_out_points_of_the_quadratic():
    x, loss = np.linspace(0, 4, 6), (np.linspace(0, 4, 6) - 1.5) ** 2 + 2
    spoiled = loss.copy()
    spoiled[4] += 3
    weight = np.ones((2, 6))
    weight[1, 4] = 0
    position, bottom = quadratic_vertices(x, spoiled, weight)
    assert position[1] == pytest.approx(1.5, abs=1e-6)
    assert bottom[1] == pytest.approx(2.0, abs=1e-6)
    assert abs(position[0] - 1.5) > 0.05


def test_power_weighs_optima_and_reads_both_columns():
    flops = np.geomspace(1e16, 1e19, 6)
    best = 0.1 * flops**0.5
    best[0] *= 3  # an optimum that its large deviation makes worthless
    deviation = np.append(100.0, np.full(5, 0.1))
    table = Table({"total_flops": flops, "n_params": best, "n_tokens": flops / 6 / best, "log_n_std": deviation})
    result = fit_table(weighted(table, "log_n_std"), "power")
    assert result["n_exponent"] == pytest.approx(0.5, abs=1e-4)
    assert result["d_exponent"] == pytest.approx(0.5, abs=1e-4)
    assert abs(fit_table(table, "power", bootstrap=0)["n_exponent"] - 0.5) > 0.02
    assert result["n_exponent_interval_95"][0] <= result["n_exponent"] + 1e-6
    with pytest.raises(FitError, match="two budgets"):
        fit_table(table.select(np.arange(1)), "power")
    with pytest.raises(FitError, match="n_params or flops_per_token or n_tokens"):
        fit_table(Table({"total_flops": flops}), "power")


def test_lstar_recovers_its_constants_from_optima_and_from_curves():
    flops = np.geomspace(1e16, 1e19, 7)
    optima = Table({"total_flops": flops, "bits_per_byte": 0.5 + 0.6 * (flops / 1e18) ** -0.15})
    result = fit_table(optima, "lstar", bootstrap=50)
    at_reference = 0.6 * (result["reference_flops"] / 1e18) ** -0.15
    assert (result["E"], result["k"], result["g"]) == pytest.approx((0.5, at_reference, 0.15), rel=1e-3)
    assert result["max_relative_residual"] < 1e-6
    curves = fit_table(bowls(), "lstar", bootstrap=50)
    assert (curves["E"], curves["g"]) == pytest.approx((1.2, 0.1), rel=1e-2)
    assert len(curves["vertices"]) == 6
    with pytest.raises(FitError, match="at least three"):
        fit_table(optima.select(np.arange(2)), "lstar")


def test_lstar_says_when_a_pure_power_law_fits_as_well():
    flops = np.geomspace(1e16, 1e19, 7)
    result = fit_table(Table({"total_flops": flops, "loss_nats": 3 * (flops / 1e18) ** -0.05}), "lstar", bootstrap=0)
    assert result["E"] < 0.05
    bent = Table({"total_flops": flops, "loss_nats": 5 - 0.1 * np.log(flops) - 0.001 * np.log(flops / 1e16) ** 2})
    falling = fit_table(bent, "lstar", bootstrap=0)
    assert falling["E"] == 0
    assert any("pure power law" in text for text in falling["warnings"])


def shared_bowls(noise=0.0, seed=0):
    """Bowls whose depth follows the reducible loss, as those of a three-term law do: 4 budgets x 5 sizes."""
    flops, offset = np.repeat(np.geomspace(3e11, 2.4e12, 4), 5), np.tile(np.linspace(-0.9, 0.9, 5), 4)
    scale = 0.2 * flops**0.5 * np.exp(offset)
    loss = 0.8 + 60 * flops**-0.15 * (1 + 0.08 * offset**2)
    return flops, scale, loss * (1 + noise * np.random.default_rng(seed).normal(size=20))


def test_curves_fitted_together_recover_their_shared_constants():
    flops, scale, loss = shared_bowls()
    curve = fit_pooled(flops, scale, loss, np.ones((1, 20)))
    np.testing.assert_allclose(curve.lstar()[0], [0.8, 60, 0.15], rtol=1e-2)
    np.testing.assert_allclose(curve.allocation()[0], [0.2, 0.5], rtol=1e-3)
    floor, rate, decay = curve.lstar()[0]
    np.testing.assert_allclose(floor + rate * 1e13**-decay, 0.8 + 60 * 1e13**-0.15, rtol=1e-3)


def test_curves_fitted_together_find_the_bottom_more_surely_than_one_by_one():
    alone, together = [], []
    budgets = np.geomspace(3e11, 2.4e12, 4)
    for seed in range(60):
        flops, scale, loss = shared_bowls(noise=0.004, seed=seed)
        parts = [flops == budget for budget in np.unique(flops)]
        alone.append([quadratic_vertices(np.log10(scale[p]), loss[p], np.ones((1, 5)))[1][0] for p in parts])
        floor, rate, decay = fit_pooled(flops, scale, loss, np.ones((1, 20))).lstar()[0]
        together.append(floor + rate * budgets**-decay)
    truth = 0.8 + 60 * budgets**-0.15
    errors = [np.sqrt(np.nanmean((np.array(found) / truth - 1) ** 2)) for found in (alone, together)]
    assert errors[0] > 1.2 * errors[1], errors
