"""Laws of learning rate and batch: a known optimum is recovered, published grids give their published numbers."""

import math

import numpy as np
import pytest
from places import SHARED as SHARED_DATA

from isoflop.errors import FitError
from isoflop.scaling.fit.lr_batch import fit_hyper
from isoflop.scaling.lr_batch_law import hyper_law

SHARED = SHARED_DATA / "scaling" / "steplaw-dense"


def grids(settings, *, rate=(2.0, -0.7, 0.3), batch=(0.5, 0.57), noise=0.0, seed=0, steps=7):
    """Grids whose loss is quadratic around lr = rate[0] N^rate[1] D^rate[2], batch = batch[0] D^batch[1]."""
    generator = np.random.default_rng(seed)
    rows = []
    for n_params, n_tokens in settings:
        x0 = math.log(rate[0]) + rate[1] * math.log(n_params) + rate[2] * math.log(n_tokens)
        y0 = math.log(batch[0]) + batch[1] * math.log(n_tokens)
        for i in range(steps):
            for j in range(steps):
                # The grid is shifted against the optimum, so that no run sits on it.
                dx, dy = 0.35 * (i - steps // 2) + 0.1, 0.4 * (j - steps // 2) - 0.15
                loss = 2.5 * (1 + 0.01 * dx**2 + 0.006 * dy**2 - 0.008 * dx * dy)
                loss *= 1 + noise * generator.standard_normal()
                rows.append((n_params, n_tokens, math.exp(x0 + dx), math.exp(y0 + dy), loss))
    names = ("n_params", "n_tokens", "learning_rate", "batch_tokens", "loss_nats")
    return dict(zip(names, np.array(rows).T))


SETTINGS = [(n, d) for n in (1e8, 3e8, 1e9) for d in (2e9, 8e9, 3e10)]


def test_the_surface_recovers_known_exponents_and_coefficients():
    found = fit_hyper(grids(SETTINGS), bootstrap=100).tree()
    rate, batch = found["learning_rate"]["surface"], found["batch"]["surface"]
    assert (rate["n_exponent"], rate["d_exponent"]) == pytest.approx((-0.7, 0.3), abs=1e-6)
    assert batch["d_exponent"] == pytest.approx(0.57, abs=1e-6)
    assert rate["coefficient"] == pytest.approx(2.0, rel=1e-4)
    assert batch["coefficient"] == pytest.approx(0.5, rel=1e-4)
    assert found["surface"]["lr"] == rate and found["regret"]["own_law"]["max"] < 1e-3


def test_intervals_hold_the_truth_under_noise():
    found = fit_hyper(grids(SETTINGS, noise=0.0005, seed=3), bootstrap=300).tree()
    rate = found["learning_rate"]["surface"]
    for name, truth in (("n_exponent", -0.7), ("d_exponent", 0.3)):
        low, high = rate["interval_95"][name]
        assert low - 0.02 < truth < high + 0.02 and high - low < 0.3


def test_settings_that_vary_in_compute_only_give_a_law_of_compute():
    settings = [(1e8 * 2**i, 2e9 * 2**i) for i in range(4)]
    found = fit_hyper(grids(settings), bootstrap=50).tree()
    assert "surface" not in found["learning_rate"]
    law = found["learning_rate"]["surface_compute"]
    assert law["c_exponent"] == pytest.approx((-0.7 + 0.3) / 2, abs=1e-6)
    choice = hyper_law(found).choose(total_flops=6 * 4e8 * 8e9, seq_len=2048)
    expected = 2.0 * 4e8**-0.7 * 8e9**0.3
    assert choice.learning_rate == pytest.approx(expected, rel=1e-3)


def test_a_rate_sweep_at_one_batch_gives_a_rate_law_and_says_so():
    table = grids(SETTINGS)
    keep = np.abs(np.log(table["batch_tokens"]) - np.log(0.5) - 0.57 * np.log(table["n_tokens"]) + 0.15) < 0.01
    table = {name: column[keep] for name, column in table.items()}
    table["batch_tokens"] = np.full(keep.sum(), 4096.0)
    found = fit_hyper(table, bootstrap=50).tree()
    assert found["batch"] == {} and any("does not vary" in text for text in found["warnings"])
    assert found["learning_rate"]["surface"]["n_exponent"] == pytest.approx(-0.7, abs=1e-3)
    assert hyper_law(found).batch_tokens.coefficient == pytest.approx(4096.0)


def test_a_vertex_outside_the_grid_is_refused_and_named():
    table = grids(SETTINGS, steps=7)
    rate0 = 2.0 * table["n_params"] ** -0.7 * table["n_tokens"] ** 0.3
    keep = (table["learning_rate"] > 1.3 * rate0) | (table["n_params"] < 5e8)
    found = fit_hyper({name: column[keep] for name, column in table.items()}, bootstrap=20).tree()
    refused = [row for row in found["settings"] if "refused" in row]
    assert len(refused) == 3 and all("below the tested range" in row["refused"] for row in refused)
    assert found["learning_rate"]["surface"]["settings"] == 6


def test_a_saddle_is_refused():
    table = grids(SETTINGS[:1] + SETTINGS[-1:])
    dx = np.log(table["learning_rate"] / (2.0 * table["n_params"] ** -0.7 * table["n_tokens"] ** 0.3))
    dy = np.log(table["batch_tokens"] / (0.5 * table["n_tokens"] ** 0.57))
    table["loss_nats"] = 2.5 * (1 + 0.003 * dx**2 - 0.002 * dy**2)
    found = fit_hyper(table, bootstrap=20).tree()
    assert all("saddle" in row["refused"] for row in found["settings"])
    assert "surface_compute" not in found["learning_rate"] and "band_compute" in found["learning_rate"]


def test_diverged_runs_are_left_out_and_counted():
    table = grids(SETTINGS)
    table["loss_nats"][:5] = np.nan
    found = fit_hyper(table, bootstrap=20).tree()
    assert any(text.startswith("5 runs without a finite loss") for text in found["warnings"])
    assert found["learning_rate"]["surface"]["n_exponent"] == pytest.approx(-0.7, abs=1e-6)


def test_missing_columns_are_named_with_a_mapping():
    with pytest.raises(FitError, match=r"learning_rate, loss_nats or bits_per_byte.*--map"):
        fit_hyper({"n_params": np.ones(3), "n_tokens": np.ones(3)})


def test_seeds_of_one_rate_are_no_grid():
    table = grids(SETTINGS)
    extra = {name: np.repeat(column[:1], 4) for name, column in table.items()}
    extra["n_params"], extra["loss_nats"] = extra["n_params"] * 100, np.array([2.0, 2.01, 2.02, 2.03])
    found = fit_hyper({name: np.append(column, extra[name]) for name, column in table.items()}, bootstrap=20).tree()
    assert len(found["settings"]) == len(SETTINGS)
    assert any(text.startswith("4 runs belong to no grid") for text in found["warnings"])


def test_one_setting_is_too_few():
    with pytest.raises(FitError, match="a law needs two or more"):
        fit_hyper(grids(SETTINGS[:1]))
