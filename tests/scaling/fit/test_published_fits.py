"""Published fits, reproduced from the authors' own measurements as a user would, through tables on disk.

The data lies in a folder `shared` beside the checkout (see its README for sources); without it these tests are skipped.
The expected values and tolerances are read from each set's expected.json.
"""

import json
from typing import Any

import numpy as np
import pytest
from places import SHARED

from isoflop.scaling.fit.run import run_fit

DATA = SHARED / "scaling"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder shared/data/scaling beside the checkout")

PLAIN = "n_params=params,n_tokens=tokens,loss_nats=loss"
SURFACE_KEYS = ("E", "A", "B", "alpha", "beta", "a", "ln_A", "ln_B", "objective")


def check(folder: str, found: dict[str, float], prefixes: tuple[str, ...] = ("",)) -> None:
    """Compare with every line of expected.json that starts with one of the prefixes; an 'at most' line is one-sided."""
    lines = json.loads((DATA / folder / "expected.json").read_text())
    chosen = [line for line in lines if line["check"].startswith(prefixes)]
    assert chosen
    missing = [line["check"] for line in chosen if line["check"] not in found]
    assert not missing
    for line in chosen:
        value, distance = found[line["check"]], found[line["check"]] - line["value"]
        one_sided = "at most" in line["how"] or "not be higher" in line["how"]
        assert (distance if one_sided else abs(distance)) <= line["tolerance"], (line, value)


def flat(prefix: str, fit: dict[str, Any]) -> dict[str, float]:
    """Numbers of one surface fit under the names of expected.json."""
    found = {f"{prefix}.{name}": fit[name] for name in SURFACE_KEYS}
    return found | {f"{prefix}.bootstrap_sd.{name}": sd for name, sd in fit.get("bootstrap_sd", {}).items()}


def test_chinchilla_surface_with_besiroglus_objective_and_its_bootstrap():
    table, mapping = DATA / "chinchilla-epoch" / "runs.csv", PLAIN + ",total_flops=flops"
    dropped = run_fit(table, "surface", mapping=mapping, drop_highest_loss=5, bootstrap=600)
    found = flat("huber_log.drop5", dropped["fits"]["log_huber"])
    found |= flat("huber_log.all", run_fit(table, "surface", mapping=mapping, bootstrap=0)["fits"]["log_huber"])
    check("chinchilla-epoch", found, ("huber_log",))
    assert dropped["fits"]["log_huber"]["finalists_at_minimum"] >= 0.9 * dropped["finalists"]


@pytest.mark.parametrize("objective", ["mse", "varpro"])
def test_chinchilla_least_squares_below_1e21_flops(objective):
    table, mapping = DATA / "chinchilla-epoch" / "runs.csv", PLAIN + ",total_flops=flops"
    fit = run_fit(table, "surface", mapping=mapping, where=["total_flops<1e21"], drop_highest_loss=5, bootstrap=0)
    assert fit["n_rows"] == 217
    check("chinchilla-epoch", flat("mse_raw.c_lt_1e21_drop5", fit["fits"][objective]), ("mse_raw",))


def test_chinchilla_parabola():
    mapping = PLAIN + ",budget_flops=flops_bin"
    fit = run_fit(DATA / "chinchilla-epoch" / "isoflop.csv", "parabola", mapping=mapping, bootstrap=100)
    check("chinchilla-epoch", {f"parabola.{key}": value for key, value in fit.items()}, ("parabola",))


def test_porian_weighted_regressions_on_the_published_optima():
    found = {}
    expected = json.loads((DATA / "porian-refinedweb" / "expected.json").read_text())
    names = [line["check"].split(".")[1] for line in expected if line["check"].startswith("weighted")]
    for name in names:
        fit = run_fit(
            DATA / "porian-refinedweb" / "optima.csv",
            "power",
            mapping="total_flops=flops,n_params=n_opt,n_tokens=d_opt",
            where=[f"experiment={name}"],
            weights="log_n_std",
            bootstrap=50,
        )
        found[f"weighted.{name}"] = fit["n_exponent"]
        low, high = fit["n_exponent_interval_95"]
        assert low < fit["n_exponent"] < high
    check("porian-refinedweb", found, ("weighted",))


def test_porian_own_optima_by_the_interpolation_that_the_data_asks_for():
    found = {}
    expected = json.loads((DATA / "porian-refinedweb" / "expected.json").read_text())
    names = [line["check"].split(".")[1] for line in expected if line["check"].startswith("own_optimum")]
    for name in names:
        fit = run_fit(
            DATA / "porian-refinedweb" / "isoflop_points.csv",
            "parabola",
            mapping=PLAIN + ",total_flops=flops",
            where=[f"experiment={name}"],
            bootstrap=50,
        )
        found[f"own_optimum.{name}"] = fit["n_exponent"]
    check("porian-refinedweb", found, ("own_optimum",))


@pytest.mark.parametrize("corpus", ["nemotron", "comma"])
@pytest.mark.parametrize("compute", ["total_flops=flops_logged", "budget_flops=flops_logged"])
def test_marin_parabola_whichever_way_the_counted_compute_is_mapped(corpus, compute):
    fit = run_fit(
        DATA / "marin-isoflop" / "runs.csv",
        "parabola",
        mapping=f"{PLAIN},{compute}",
        where=["kind=isoflop", f"dataset={corpus}"],
        bootstrap=100,
    )
    check("marin-isoflop", {f"{corpus}.parabola.{k}": v for k, v in fit.items()}, (f"{corpus}.parabola",))
    labelled = any("3.0000 times the label budget_flops" in text for text in fit["warnings"])
    assert labelled == compute.startswith("total")


@pytest.mark.parametrize("corpus", ["nemotron", "comma"])
def test_marin_surface(corpus):
    table, where = DATA / "marin-isoflop" / "runs.csv", ["kind=isoflop", f"dataset={corpus}"]
    fits = run_fit(table, "surface", mapping=PLAIN, where=where, bootstrap=0)["fits"]
    found = flat(f"{corpus}.huber_log", fits["log_huber"])
    found[f"{corpus}.huber_raw_mean_x1e6"] = fits["raw_huber"]["objective_mean_x1e6"]
    check("marin-isoflop", found, (f"{corpus}.huber",))


def test_marin_loss_at_the_optimum_matches_the_independent_fit():
    mapping, where = PLAIN + ",total_flops=flops_logged", ["kind=isoflop", "dataset=nemotron"]
    fit = run_fit(DATA / "marin-isoflop" / "runs.csv", "lstar", mapping=mapping, where=where, bootstrap=50)
    at_1e19 = fit["k"] * (1e19 / fit["reference_flops"]) ** -fit["g"]
    assert (fit["E"], at_1e19, fit["g"]) == pytest.approx((0.883, 2.605, 0.0747), rel=2e-3)  # README of the set


def test_marin_fitted_without_filters_names_both_traps():
    mapping = PLAIN + ",total_flops=flops_logged"
    warnings = run_fit(DATA / "marin-isoflop" / "runs.csv", "surface", mapping=mapping, bootstrap=0)["warnings"]
    assert any("in 173 of 180 rows (all of kind=isoflop, no others)" in text for text in warnings)
    assert any("column dataset holds 2 kinds of runs" in text for text in warnings)


def test_delphi_loss_against_compute_and_the_rounded_labels():
    table, loss = DATA / "delphi" / "winners.csv", "bits_per_byte=c4_en_bpb"
    fit = run_fit(table, "lstar", mapping=f"{loss},total_flops=flops", bootstrap=200)
    check("delphi", fit)
    assert fit["standard_error"]["g"] == pytest.approx(0.0030, abs=2e-4)  # README of the set
    both = run_fit(table, "lstar", mapping=f"{loss},total_flops=flops,budget_flops=budget_label", bootstrap=0)
    assert any("in 2 of 7 rows (budget_flops 2e+19, 2e+20); the label may be rounded" in t for t in both["warnings"])
    rounded = run_fit(table, "lstar", mapping=f"{loss},total_flops=budget_label", bootstrap=0)
    assert any("one significant digit" in text for text in rounded["warnings"])
    assert rounded["standard_error"]["E"] > 5 * fit["standard_error"]["E"]


def test_nanochat_exponents_depend_on_what_is_counted():
    found = {}
    for counting in ("projections_plus_lm_head", "all_parameters", "transformer_only"):
        fit = run_fit(
            DATA / "nanochat-optima" / "optima.csv",
            "power",
            mapping="total_flops=flops,n_params=n_opt,n_tokens=d_opt",
            where=[f"counting={counting}"],
        )
        found |= {f"{counting}.{key}": fit[key] for key in ("n_exponent", "d_exponent")}
    check("nanochat-optima", found)


def test_an_overflown_column_is_named_and_costs_no_row_where_it_is_not_read():
    mapping = "n_params=params,n_tokens=tokens,total_flops=flops,loss_nats=loss_c4_val"
    table = DATA / "gadre-overtraining" / "runs.csv"
    fit = run_fit(table, "surface", mapping=mapping, where=["dataset=c4"], bootstrap=0)
    assert fit["n_rows"] == 34
    assert any("total_flops is 0 or below in 8 of 34 rows" in text for text in fit["warnings"])
    assert np.isfinite(fit["fits"]["log_huber"]["objective"])
