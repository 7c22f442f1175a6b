"""Published fits, reproduced from the authors' own measurements as a user would, through tables on disk.

The data lies in a folder `shared` beside the checkout (see its README for sources); without it these tests are skipped.
Every line of every set's expected.json is checked, by its name and within its tolerance.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from places import SHARED

from isoflop.scaling.fit.run import fit_table, run_fit
from isoflop.scaling.fit.selection import load_table
from isoflop.scaling.laws import Surface

DATA = SHARED / "scaling"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder shared/data/scaling beside the checkout")

PLAIN = "n_params=params,n_tokens=tokens,loss_nats=loss"
OPTIMA = "total_flops=flops,n_params=n_opt,n_tokens=d_opt"
SURFACE_KEYS = ("E", "A", "B", "alpha", "beta", "a", "ln_A", "ln_B", "objective")
WITHOUT_A_LAW = {"multipower-schedules", "olmo-ladder"}
"""Sets whose forms are not built yet: laws of schedules, and from bits per byte of answers to accuracy."""


def expected(folder: str) -> list[dict[str, Any]]:
    return json.loads((DATA / folder / "expected.json").read_text(encoding="utf-8"))


def flat(prefix: str, fit: dict[str, Any]) -> dict[str, float]:
    """Numbers of one surface fit under the names of expected.json."""
    found = {f"{prefix}.{name}": fit[name] for name in SURFACE_KEYS}
    return found | {f"{prefix}.bootstrap_sd.{name}": sd for name, sd in fit.get("bootstrap_sd", {}).items()}


def named(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a nested result under dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from named(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


def chinchilla() -> dict[str, float]:
    table, mapping = DATA / "chinchilla-epoch" / "runs.csv", PLAIN + ",total_flops=flops"
    dropped = run_fit(table, "surface", mapping=mapping, drop_highest_loss=5, bootstrap=600)
    assert dropped["fits"]["log_huber"]["finalists_at_minimum"] >= 0.9 * dropped["finalists"]
    found = flat("huber_log.drop5", dropped["fits"]["log_huber"])
    found |= flat("huber_log.all", run_fit(table, "surface", mapping=mapping, bootstrap=0)["fits"]["log_huber"])
    small = run_fit(table, "surface", mapping=mapping, where=["total_flops<1e21"], drop_highest_loss=5, bootstrap=0)
    assert small["n_rows"] == 217
    squares, projected = (flat("mse_raw.c_lt_1e21_drop5", small["fits"][name]) for name in ("mse", "varpro"))
    assert projected == pytest.approx(squares, rel=1e-4)
    curves = run_fit(
        DATA / "chinchilla-epoch" / "isoflop.csv",
        "parabola",
        mapping=PLAIN + ",budget_flops=flops_bin",
        bootstrap=100,
    )
    return found | squares | {f"parabola.{key}": value for key, value in curves.items()}


def porian() -> dict[str, float]:
    found = {}
    for name in (line["check"] for line in expected("porian-refinedweb")):
        kind, _, experiment = name.partition(".")
        weighted = kind == "weighted"
        fit = run_fit(
            DATA / "porian-refinedweb" / ("optima.csv" if weighted else "isoflop_points.csv"),
            "power" if weighted else "parabola",
            mapping=OPTIMA if weighted else PLAIN + ",total_flops=flops",
            where=[f"experiment={experiment}"],
            weights="log_n_std" if weighted else "",
            bootstrap=50,
        )
        found[name] = fit["n_exponent"]
        low, high = fit["n_exponent_interval_95"]
        assert low < fit["n_exponent"] < high
    return found


def marin() -> dict[str, float]:
    found = {}
    table = DATA / "marin-isoflop" / "runs.csv"
    for corpus in ("nemotron", "comma"):
        where = ["kind=isoflop", f"dataset={corpus}"]
        for compute in ("total_flops=flops_logged", "budget_flops=flops_logged"):  # whichever way it is mapped
            fit = run_fit(table, "parabola", mapping=f"{PLAIN},{compute}", where=where, bootstrap=100)
            curves = {f"{corpus}.parabola.{key}": fit[key] for key in ("n_exponent", "d_exponent")}
            assert found.get(f"{corpus}.parabola.n_exponent", fit["n_exponent"]) == pytest.approx(fit["n_exponent"])
            labelled = any("3.0000 times the label budget_flops" in text for text in fit["warnings"])
            assert labelled == compute.startswith("total")
            found |= curves
        fits = run_fit(table, "surface", mapping=PLAIN, where=where, bootstrap=0)["fits"]
        found |= flat(f"{corpus}.huber_log", fits["log_huber"])
        found[f"{corpus}.huber_raw_mean_x1e6"] = fits["raw_huber"]["objective_mean_x1e6"]
    return found


def delphi() -> dict[str, float]:
    table, loss = DATA / "delphi" / "winners.csv", "bits_per_byte=c4_en_bpb"
    fit = run_fit(table, "lstar", mapping=f"{loss},total_flops=flops", bootstrap=200, at_flops=1e20)
    assert fit["optimum"]["loss"] == pytest.approx(fit["E"] + fit["k"])
    low, high = fit["optimum"]["interval_95"]
    assert low < fit["optimum"]["loss"] < high
    assert fit["standard_error"]["g"] == pytest.approx(0.0030, abs=2e-4)  # README of the set
    both = run_fit(table, "lstar", mapping=f"{loss},total_flops=flops,budget_flops=budget_label", bootstrap=0)
    assert any("in 2 of 7 rows (budget_flops 2e+19, 2e+20); the label may be rounded" in t for t in both["warnings"])
    rounded = run_fit(table, "lstar", mapping=f"{loss},total_flops=budget_label", bootstrap=0)
    assert any("one significant digit" in text for text in rounded["warnings"])
    assert rounded["standard_error"]["E"] > 5 * fit["standard_error"]["E"]
    return fit


def nanochat() -> dict[str, float]:
    found = {}
    for counting in ("projections_plus_lm_head", "all_parameters", "transformer_only"):
        table = DATA / "nanochat-optima" / "optima.csv"
        fit = run_fit(table, "power", mapping=OPTIMA, where=[f"counting={counting}"])
        found |= {f"{counting}.{key}": fit[key] for key in ("n_exponent", "d_exponent")}
    return found


def steplaw() -> dict[str, float]:
    mapping = PLAIN + ",learning_rate=lr,batch_tokens=batch_seqs*seq_len"
    fit = run_fit(DATA / "steplaw-dense" / "runs.csv", "hyper", mapping=mapping, bootstrap=200)
    assert fit["regret"]["deepseek"]["mean"] > fit["regret"]["steplaw"]["mean"]
    return {name: float(value) for name, value in named(fit)}


def gadre() -> dict[str, float]:
    """Laws of five runs (and the 1.4B one for errors), judged on the larger ones."""
    found: dict[str, float] = {}
    table = DATA / "gadre-overtraining" / "runs.csv"
    names = "n_params=params,n_tokens=tokens,loss_nats=loss_c4_val,error=err_avg17"
    for corpus in ("redpajama", "c4"):
        rows = load_table(table, mapping=names, where=[f"dataset={corpus}"])
        n, times = rows.columns["n_params"], rows.columns["chinchilla_multiplier"]
        five = (times == 1) & (n < 1e9) | (times == 16) & (n < 2e7)
        law = fit_table(rows.select(five), "overtraining", bootstrap=0)
        b, six = -law["exponent"], 6 ** (law["exponent"] / 2)
        surface = Surface(law["E"], law["alpha"], six * law["beta"], b, b)
        error = fit_table(rows.select(five | (times == 1) & (n < 2e9)), "error", bootstrap=0)
        found |= {f"{corpus}.{key}": law[key] for key in ("exponent", "E")}
        for name, size, ratio in (("1.4B_M640", 1.4e9, 32), ("6.9B_M20", 6.9e9, 1)):
            chosen = np.flatnonzero((times == ratio) & (np.abs(n / size - 1) < 0.1))
            if not len(chosen):
                continue
            row = int(chosen[0])
            loss = float(surface.loss(n[row], rows.columns["n_tokens"][row]))
            err = error["eps"] - error["k"] * np.exp(-error["gamma"] * loss)
            measured = {"loss": rows.columns["loss_nats"][row], "err17": rows.columns["error"][row]}
            for kind, value in (("loss", loss), ("err17", err)):
                found[f"{corpus}.{kind}_relerr.{name}"] = abs(value / measured[kind] - 1)
    return found


def datablations() -> dict[str, float]:
    fit = run_fit(
        DATA / "datablations" / "runs.csv",
        "repeated",
        mapping=PLAIN,
        where=["in_published_fit=1"],
        base="muennighoff",
        bootstrap=200,
    )
    low, high = fit["interval_95"]["repeat_tokens"]
    assert low < 15.4 and high > 95.4  # the data does not fix it
    return {
        "objective.published": fit["published"]["objective"],
        "r2.published": fit["published"]["r2"],
        "r2.no_repeat_decay": fit["r2_all_fresh"],
        "objective.best": fit["objective"],
    }


def routing() -> dict[str, float]:
    found = {}
    mapping = "n_params=dense_parameter_count,n_experts=num_experts,loss_nats=loss_validation"
    for name, other, n_rows in (("sbase", "RL-R", 61), ("rl_r", "S-Base", 62)):
        where = ["k=1", "routing_frequency=0.5", "num_experts<=512", f"router_type!={other}"]
        table = DATA / "routing-moe" / "runs.csv"
        fit = run_fit(table, "experts", form="clark", mapping=mapping, where=where, bootstrap=0)
        assert fit["fits"]["clark"]["n_rows"] == n_rows
        found |= {f"{name}.with_dense.{key}": value for key, value in fit["fits"]["clark"].items()}
        found["dense.exponent"] = fit["dense"]["exponent"]
    return found


SETS: dict[str, Callable[[], dict[str, float]]] = {
    "chinchilla-epoch": chinchilla,
    "datablations": datablations,
    "delphi": delphi,
    "gadre-overtraining": gadre,
    "marin-isoflop": marin,
    "nanochat-optima": nanochat,
    "porian-refinedweb": porian,
    "routing-moe": routing,
    "steplaw-dense": steplaw,
}


@pytest.mark.parametrize("folder", SETS)
def test_every_expected_number_of_a_set_is_found_within_its_tolerance(folder):
    found = SETS[folder]()
    lines = expected(folder)
    assert not [line["check"] for line in lines if line["check"] not in found]
    for line in lines:
        distance = found[line["check"]] - line["value"]
        one_sided = "at most" in line["how"] or "not be higher" in line["how"]
        assert (distance if one_sided else abs(distance)) <= line["tolerance"], (line, found[line["check"]])


def test_every_shared_set_is_checked():
    assert {path.parent.name for path in DATA.glob("*/expected.json")} - WITHOUT_A_LAW == {*SETS}


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


def test_an_overflown_column_is_named_and_costs_no_row_where_it_is_not_read():
    mapping = "n_params=params,n_tokens=tokens,total_flops=flops,loss_nats=loss_c4_val"
    table = DATA / "gadre-overtraining" / "runs.csv"
    fit = run_fit(table, "surface", mapping=mapping, where=["dataset=c4"], bootstrap=0)
    assert fit["n_rows"] == 34
    assert any("total_flops is 0 or below in 8 of 34 rows" in text for text in fit["warnings"])
    assert np.isfinite(fit["fits"]["log_huber"]["objective"])
