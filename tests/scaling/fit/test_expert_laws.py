"""Laws of experts: published fits reproduced, known constants found within their own intervals, gaps named."""

import numpy as np
import pytest
from places import SHARED

from isoflop.errors import FitError
from isoflop.scaling.fit.expert_forms import FORMS, PUBLISHED_FORMS, Runs, leverage_at, saturated
from isoflop.scaling.fit.expert_runs import read_runs
from isoflop.scaling.fit.experts import fit_experts
from isoflop.scaling.fit.run import run_fit
from isoflop.scaling.fit.table import Table

ROUTING = SHARED / "scaling" / "routing-moe"
JOINT = np.array(list(PUBLISHED_FORMS["joint"].constants.values()))
GRANULAR = np.array(list(PUBLISHED_FORMS["granularity"].constants.values()))
LING = np.array([1.6, 60.0, 0.1, 1.23, -0.0761, 0.0167, -0.117, 0.0163])


def losses(form, constants, runs):
    internal = FORMS[form].internal(np.array([constants]), runs.centre)
    return np.exp(FORMS[form].log_loss(internal, runs)[0])


def noisy(values, seed, noise):
    return values * np.exp(noise * np.random.default_rng(seed).standard_normal(len(values)))


def grid(*axes):
    return [part.ravel() for part in np.meshgrid(*axes, indexing="ij")]


def joint_table(seed=0, noise=0.002, experts=(1, 2, 4, 8, 16, 32, 64)):
    n, d, e = grid(np.geomspace(2e7, 2e9, 5), np.geomspace(1e9, 1e11, 5), np.array(experts, dtype=float))
    nothing = np.full(len(n), np.nan)
    loss = losses("joint", JOINT, Runs(n, d, nothing, e, nothing))
    return Table({"n_params": n, "n_tokens": d, "n_experts": e, "loss_nats": noisy(loss, seed, noise)})


def leverage_table(seed=0, noise=0.001, kinds=((8, 4), (16, 8), (64, 8), (64, 16), (32, 2), (256, 32))):
    """Optima only: dense ones and mixtures of (experts per active one, granularity) at six budgets."""
    budgets = np.geomspace(1e18, 1e22, 6)
    flops = np.tile(budgets, 1 + len(kinds))
    e = np.repeat([1.0, *(kind[0] for kind in kinds)], len(budgets))
    g = np.repeat([np.nan, *(kind[1] for kind in kinds)], len(budgets))
    nothing = np.full(len(e), np.nan)
    loss = losses("leverage", LING, Runs(nothing, nothing, flops, e, g))
    columns = {"total_flops": flops, "n_experts": e, "granularity": g, "loss_nats": noisy(loss, seed, noise)}
    return Table(columns)


def covered(fit, truth):
    names = [name for name in truth if name not in fit["held"]]
    return [fit["interval_95"][name][0] <= truth[name] <= fit["interval_95"][name][1] for name in names]


needs_routing = pytest.mark.skipif(not ROUTING.is_dir(), reason="no folder shared/data/scaling beside the checkout")
ROUTED = {"mapping": "n_params=dense_parameter_count,n_experts=num_experts,loss_nats=loss_validation"}


@needs_routing
@pytest.mark.parametrize("other", ["RL-R", "S-Base"])
def test_clarks_law_carries_intervals_on_his_own_runs(other):
    where = ["k=1", "routing_frequency=0.5", "num_experts<=512", f"router_type!={other}"]
    found = run_fit(ROUTING / "runs.csv", "experts", form="clark", where=where, bootstrap=200, **ROUTED)
    fit = found["fits"]["clark"]
    low, high = fit["interval_95"]["a"]
    assert low < fit["a"] < high and high - low < 0.01
    assert fit["interval_95"]["E_max"][1] > 1.5 * fit["interval_95"]["E_max"][0]  # they trade against each other
    assert set(found["skipped"]) == set() and fit["published"]["source"].startswith("Clark")


@needs_routing
def test_forms_that_the_columns_cannot_carry_are_skipped_with_the_reason():
    where = ["k=1", "routing_frequency=0.5", "router_type!=RL-R"]
    found = run_fit(ROUTING / "runs.csv", "experts", where=where, bootstrap=0, **ROUTED)
    assert set(found["fits"]) == {"clark"} and set(found["skipped"]) == {"joint", "granularity", "leverage"}
    assert "n_tokens" in found["skipped"]["joint"]


def test_the_joint_law_finds_its_constants_within_their_intervals():
    truth = dict(zip(FORMS["joint"].constants, JOINT.tolist()))
    hits = []
    for seed in range(3):
        fit = fit_experts(joint_table(seed), form="joint", bootstrap=120).found["fits"]["joint"]
        hits += covered(fit, truth)
        assert fit["held"] == {} and fit["rmse_ln"] == pytest.approx(0.002, rel=0.2)
        assert fit["c"] == pytest.approx(truth["c"], rel=0.1)
    assert len(hits) == 33 and np.mean(hits) > 0.85


def test_the_granularity_law_finds_its_constants_within_their_intervals():
    n, d, g = grid(np.geomspace(1e9, 1e11, 5), np.geomspace(4e9, 2e11, 5), np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
    runs = Runs(n, d, np.full(len(n), np.nan), np.full(len(n), 64.0), g)
    loss = losses("granularity", GRANULAR, runs)
    truth = dict(zip(FORMS["granularity"].constants, GRANULAR.tolist()))
    hits = []
    for seed in range(3):
        columns = {"n_params": n, "n_tokens": d, "granularity": g, "n_experts": runs.n_experts}
        dense = {"n_params": [1e9], "n_tokens": [1e10], "granularity": [np.nan], "n_experts": [1.0]}
        columns = {name: np.concatenate([values, dense[name]]) for name, values in columns.items()}
        columns["loss_nats"] = np.append(noisy(loss, seed, 0.001), 3.0)
        fit = fit_experts(Table(columns), form="granularity", bootstrap=120).found["fits"]["granularity"]
        hits += covered(fit, truth)
        assert fit["n_rows"] == len(n)  # the dense row has no granularity
    assert len(hits) == 21 and np.mean(hits) > 0.85


def test_the_leverage_law_finds_its_constants_and_multipliers_within_their_intervals():
    truth = dict(zip(FORMS["leverage"].constants, LING.tolist()))
    hits, rows_hit = [], []
    for seed in range(4):
        fit = fit_experts(leverage_table(seed), form="leverage", bootstrap=120).found["fits"]["leverage"]
        hits += covered(fit, truth)
        for row in fit["leverage"]:
            true = leverage_at(LING[3:], row["activated_share"], row["granularity"], row["total_flops"])
            rows_hit.append(row["interval_95"][0] <= true <= row["interval_95"][1])
            assert row["leverage"] == pytest.approx(true, rel=0.1)
    assert len(hits) == 32 and np.mean(hits) > 0.85
    assert len(rows_hit) == 24 and np.mean(rows_hit) > 0.85


def test_one_family_beside_dense_runs_fixes_the_level_and_holds_the_rest_at_the_published_values():
    table = leverage_table(kinds=((16, 8),))
    fitted = fit_experts(table, form="leverage", bootstrap=100)
    fit = fitted.found["fits"]["leverage"]
    assert set(fit["held"]) == {"gamma", "beta", "A_start"}
    assert fit["gamma"] == pytest.approx(0.0167) and fit["A_start"] == pytest.approx(0.0163)
    assert any("held at ling_leverage's value" in text for text in fitted.warnings)
    (row,) = fit["leverage"]
    assert row["leverage"] == pytest.approx(leverage_at(LING[3:], 1 / 16, 8, 1e22), rel=0.1)


def test_clarks_law_is_not_fitted_across_token_counts():
    table = joint_table()
    with pytest.raises(FitError, match=r"n_tokens runs from 1e.09 to 1e.11; this law holds at one count"):
        fit_experts(table, form="clark", bootstrap=0)
    one = table.select(table.columns["n_tokens"] == table.columns["n_tokens"][0])
    assert fit_experts(one, form="clark", bootstrap=0).found["fits"]["clark"]["rmse_ln"] < 0.01


def test_few_expert_counts_hold_the_saturation():
    fit = fit_experts(joint_table(experts=(1, 8)), form="joint", bootstrap=0).found["fits"]["joint"]
    assert set(fit["held"]) == {"E_start", "E_max"} and fit["rmse_ln"] < 0.003


def test_the_leverage_reads_the_bottom_of_isoflop_curves():
    optima = leverage_table(noise=0.0, kinds=((8, 4), (16, 8)))
    rows = []
    for index in range(optima.n_rows):
        flops, loss = optima.columns["total_flops"][index], optima.columns["loss_nats"][index]
        best = 0.17 * flops**0.52 * np.exp(0.2 * (optima.columns["n_experts"][index] > 1))
        for step in (-1.0, -0.5, 0.0, 0.5, 1.0):
            row = {name: column[index] for name, column in optima.columns.items()}
            scale = best * np.exp(step + 0.1)
            row |= {"flops_per_token": scale, "n_tokens": flops / scale, "budget_flops": flops}
            rows.append(row | {"loss_nats": loss * (1 + 0.01 * (step + 0.1) ** 2)})
    wide = fit_experts(Table.from_rows(rows), form="leverage", bootstrap=0).found["fits"]["leverage"]
    narrow = fit_experts(optima, form="leverage", bootstrap=0).found["fits"]["leverage"]
    assert wide["n_rows"] == narrow["n_rows"]
    assert [row["leverage"] for row in wide["leverage"]] == pytest.approx(
        [row["leverage"] for row in narrow["leverage"]], rel=1e-3
    )


def test_own_records_give_active_parameters_expansion_and_granularity():
    dense = {"n_params_total": 5e6, "n_params_active": 5e6, "n_params_non_embedding": 4e6, "n_tokens": 1e8}
    mixture = {**dense, "n_params_total": 2e7, "n_params_active": 6e6, "n_params_non_embedding": 1.9e7}
    mixture |= {"n_experts": 64, "n_active": 6, "n_shared": 2, "d_model": 256, "d_expert": 88}
    runs, conventions = read_runs(Table.from_rows([dense, mixture]))
    assert runs.n_params.tolist() == [4e6, 5e6] and runs.n_experts.tolist() == [1.0, 66 / 8]
    assert runs.granularity[1] == pytest.approx(2 * 256 / 88) and "N" in conventions


def test_saturation_meets_its_ends_and_the_internal_constants_are_the_published_ones():
    assert saturated(1.0, np.log(2.0), np.log(150.0)) == pytest.approx(2.0)
    assert saturated(1e12, np.log(2.0), np.log(150.0)) == pytest.approx(300.0)
    for law in PUBLISHED_FORMS.values():
        if set(law.constants) == set(law.form.constants):
            given, centre = np.array([list(law.constants.values())]), (19.0, 23.0, 46.0)
            assert law.form.natural(law.form.internal(given, centre), centre) == pytest.approx(given, rel=1e-12)


def test_the_published_joint_law_prefers_experts_at_equal_active_size():
    nothing = np.full(2, np.nan)
    dense, mixture = PUBLISHED_FORMS["joint"].loss(
        Runs(np.array([1e9, 1e9]), np.array([2e10, 2e10]), nothing, np.array([1.0, 16.0]), nothing)
    )
    assert 2.0 < mixture < dense < 3.0


def test_the_joint_laws_signs_give_the_papers_rule_of_thumb():
    """At equal total parameters up to 8 experts beat a dense model if they see as many times more tokens."""

    def loss(n_experts):
        active = 1.1e9 / (1 / 3 + n_experts * 2 / 3)  # a third of a block is attention
        runs = [np.array([value]) for value in (active, 20 * 1.1e9 * n_experts, np.nan, n_experts, np.nan)]
        return float(PUBLISHED_FORMS["joint"].loss(Runs(*runs))[0])

    assert loss(4.0) < loss(1.0) and loss(8.0) < loss(1.0)
    assert loss(16.0) == pytest.approx(loss(1.0), abs=0.005) and loss(64.0) > loss(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_experts": None}, "needs the column n_experts"),
        ({"n_experts": np.ones(175)}, "give both tables"),
        ({"n_tokens": None}, "form joint: n_tokens missing"),
    ],
)
def test_a_table_that_cannot_carry_a_law_of_experts_says_why(change, message):
    columns = {**joint_table().columns, **change}
    table = Table({name: values for name, values in columns.items() if values is not None})
    with pytest.raises(FitError, match=message):
        fit_experts(table, form="joint", bootstrap=0)


def test_an_unknown_form_is_named():
    with pytest.raises(FitError, match="form = 'clarke' must be one of clark, joint, granularity, leverage"):
        fit_experts(joint_table(), form="clarke")
