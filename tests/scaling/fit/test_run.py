"""The entrance to the fits and the law set of a sweep: what it holds, what it leaves out, what it promises."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from law_examples import example_records

from isoflop.errors import FitError, IsoflopError, PlanError
from isoflop.scaling.fit import law_set
from isoflop.scaling.fit.joint import fit
from isoflop.scaling.fit.run import LAWS, fit_table, run_fit
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import Laws, Surface
from isoflop.scaling.plan.predict import predict
from isoflop.scaling.sweep.records import RunRecord

TRUTH = Surface(0.8, 120.0, 150.0, 0.4, 0.38)
TRUTH_OF_TABLE = Surface(1.8172, 477.83, 2143.4, 0.34731, 0.36717)  # Besiroglu et al. (arXiv 2404.10102)


def sweep(budgets=4, sizes=5, noise=0.003, seed=0):
    """Records of a ladder centred near the truth's optimum."""
    return example_records(
        TRUTH.constants,
        np.geomspace(3e11, 2.4e12, budgets),
        np.geomspace(0.4, 2.5, sizes),
        noise=noise,
        seed=seed,
        off=0.15,
        conventions={"flops": "M D"},
    )


def at_optimum(laws, flops):
    """Loss at the truth's optimum by the two surfaces and L*."""
    scale, tokens, _ = TRUTH.optimum(flops, 1.0)
    found = [laws.surfaces[name].loss(scale, tokens) for name in ("log_huber", "varpro")]
    return [*map(float, found), laws.lstar.E + laws.lstar.k * flops**-laws.lstar.g]


def test_a_law_set_holds_what_the_planner_reads(tmp_path):
    laws = fit(sweep(), bootstrap=60, seed=1)
    assert (laws.scale, laws.loss, laws.n_runs) == ("flops_per_token", "bits_per_byte", 20)
    assert laws.budgets == pytest.approx(np.geomspace(3e11, 2.4e12, 4))
    assert laws.largest_budget_flops == pytest.approx(2.4e12, rel=1e-5)
    assert laws.conventions["flops"] == "M D"
    widths = {
        "surface_log_huber": 5,
        "surface_varpro": 5,
        "lstar": 3,
        "bottoms": 3,
        "n_allocation": 2,
        "d_allocation": 2,
    }
    assert {name: rows.shape for name, rows in laws.resamples.items()} == {n: (60, w) for n, w in widths.items()}
    assert laws.allocation.n_exponent + laws.allocation.d_exponent == pytest.approx(1, abs=0.01)
    assert 0.001 < laws.noise.relative_sd < 0.006
    assert laws.rehearsal.extrapolation_factor == pytest.approx(2)
    assert abs(laws.rehearsal.relative_error) < 0.03
    laws.write(tmp_path / "laws.json")
    assert json.loads((tmp_path / "laws.json").read_text())["lstar"]["E"] == laws.lstar.E
    assert fit(sweep(), bootstrap=60, seed=1).tree() == laws.tree()


def test_a_laws_file_is_read_back_as_it_was_written(tmp_path):
    laws = fit(sweep(), bootstrap=20)
    laws.write(tmp_path / "laws.json")
    again = Laws.read(tmp_path / "laws.json")
    assert again.tree() == laws.tree() | {"format": 2}
    assert {name: rows.tolist() for name, rows in again.resamples.items()} == {
        name: rows.tolist() for name, rows in laws.resamples.items()
    }
    assert (again.surfaces, again.lstar, again.allocation) == (laws.surfaces, laws.lstar, laws.allocation)
    assert again.name == str(tmp_path / "laws.json") and len(again.sha256) == 64


def test_files_of_before_the_format_number_are_read_and_of_a_later_one_refused(tmp_path):
    tree = fit(sweep(), bootstrap=20).tree()
    old = {key: value for key, value in tree.items() if key != "format"}
    assert Laws.from_tree(old).tree() == tree
    with pytest.raises(PlanError, match=r"format = 3 must be at most 2.*update isoflop"):
        Laws.from_tree({**tree, "format": 3})
    with pytest.raises(PlanError, match="laws: lstar has no g; fit again"):
        Laws.from_tree({**tree, "lstar": {"E": 1.0, "k": 2.0}})


def test_a_table_is_fitted_from_a_file_from_rows_and_from_records(tmp_path):
    records = sweep()
    columns = ("flops_per_token", "n_tokens", "total_flops", "budget_flops", "bits_per_byte")
    rows = [{name: getattr(record, name) for name in columns} for record in records]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    found = [fit(source, bootstrap=0) for source in (path, [path], rows, records, Table.from_rows(rows))]
    assert all(laws.surfaces == found[0].surfaces and laws.lstar == found[0].lstar for laws in found)
    renamed = [
        {"C": row["total_flops"], "M": row["flops_per_token"], "D": row["n_tokens"], "y": row["bits_per_byte"]}
        for row in rows
    ]
    mapping = "total_flops=C,flops_per_token=M,n_tokens=D,bits_per_byte=y"
    assert fit(renamed, mapping=mapping, bootstrap=0).surfaces == found[0].surfaces


@pytest.mark.parametrize(
    ("runs", "mapping", "message"),
    [
        (None, "", "runs = NoneType must be files, or a list with one mapping per run"),
        ({"n_params": [1, 2]}, "", "runs = dict must be files"),
        ([5], "", "row 1 of the runs is 5: runs must be files"),
        ([{"N": 1e6}], {"n_params": "N"}, "mapping = {'n_params': 'N'} must be text, as 'n_params=params"),
    ],
)
def test_what_is_no_table_and_no_mapping_is_refused_in_one_sentence(runs, mapping, message):
    with pytest.raises(IsoflopError, match=re.escape(message)):
        fit(runs, mapping=mapping)


def test_losses_that_rise_with_compute_are_named_and_no_number_is_lost():
    rising = [dataclasses.replace(run, bits_per_byte=run.total_flops**0.1 / 10) for run in sweep()]
    laws = fit(rising, bootstrap=0)
    assert laws.steepening == 0.0 and any(text.startswith(law_set.LOSS_RISES) for text in laws.warnings)


def test_without_noise_every_law_predicts_eight_times_the_compute():
    laws = fit(sweep(noise=0.0), bootstrap=0)
    truth = TRUTH.optimum(2e13, 1.0)[2]
    assert at_optimum(laws, 2e13) == pytest.approx([truth] * 3, rel=0.01)
    assert laws.resamples == {}


def test_joint_resamples_agree_in_sign_at_the_target():
    """Row i of every law comes from one resample, so the two surfaces move together."""
    laws = fit(sweep(seed=3), bootstrap=200)
    scale, tokens, _ = TRUTH.optimum(2e13, 1.0)
    moved = [
        [float(Surface.of(row).loss(scale, tokens)) for row in laws.resamples[f"surface_{name}"]]
        for name in ("log_huber", "varpro")
    ]
    assert np.corrcoef(moved)[0, 1] > 0.5


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Ten sweeps of twenty cells, eight times the compute."""
    inside = 0
    scale, tokens, truth = TRUTH.optimum(2e13, 1.0)
    for seed in range(10):
        laws = fit(sweep(seed=seed, noise=0.004), bootstrap=150, seed=seed, hyper=False)
        found = predict(laws, scale, tokens)
        inside += bool(found.low <= truth <= found.high)
        assert found.center == pytest.approx(truth, rel=0.03)
    assert inside >= 7


def test_targets_controls_diverged_and_uncooled_runs_are_left_out():
    records = sweep()
    kinds = {"kind": "target"}, {"kind": "control"}, {"status": "diverged"}, {"cooled": False}
    same = {"flops_per_token": 1e6, "n_tokens": 10**6, "total_flops": 1e12, "bits_per_byte": 9.0}
    spoiled = [RunRecord(str(what), **what, **same) for what in kinds]
    laws = fit(records + spoiled, bootstrap=20)
    assert laws.n_runs == 20
    assert laws.surfaces == fit(records, bootstrap=20).surfaces
    for word in ("target", "diverged", "cooled = false"):
        assert any(word in text for text in laws.warnings)


def test_a_budget_that_lost_its_sizes_is_left_out_but_not_the_sweep():
    records = [record for index, record in enumerate(sweep()) if index not in (0, 1, 2)]
    laws = fit(records, bootstrap=20)
    assert len(laws.budgets) == 3
    assert len(laws.rehearsals) == 1 and laws.rehearsal == laws.rehearsals[0]
    assert any("2 finished sizes" in text for text in laws.warnings)
    with pytest.raises(FitError, match=r"5 finished runs of 5 sizes.*at least 8 runs, 3 sizes and 3 token counts"):
        fit(sweep(budgets=1), bootstrap=0)


def test_vertices_outside_leave_the_allocation_to_the_curves_fitted_together():
    records = example_records(TRUTH.constants, np.geomspace(3e11, 2.4e12, 4), (1.6, 2.5, 4.0, 6.0))
    laws = fit(records, bootstrap=20)
    assert laws.allocation.source == "pooled curve"
    assert any("outside the tested range" in text for text in laws.warnings)
    optimum = laws.allocation.best("n", 1e12)
    assert optimum == pytest.approx(TRUTH.optimum(1e12, 1.0)[0], rel=0.5)


def test_run_fit_reads_maps_and_filters_like_the_command(tmp_path):
    path = tmp_path / "runs.csv"
    rows = [f"{r.total_flops},{r.flops_per_token},{r.n_tokens},{r.bits_per_byte},x" for r in sweep()]
    path.write_text("\n".join(["C,M,D,bpb,tag", *rows, "1e12,1e6,1e6,99,y"]) + "\n")
    mapping = "total_flops=C,flops_per_token=M,n_tokens=D,bits_per_byte=bpb"
    found = run_fit(path, "surface", mapping=mapping, where=["tag=x"], bootstrap=0)
    assert found["n_rows"] == 20
    assert found["conventions"]["loss"] == "bits_per_byte"
    assert found == run_fit([path], "surface", mapping=mapping, drop_highest_loss=1, bootstrap=0) | {
        "conventions": found["conventions"]
    }
    for law in LAWS:
        with pytest.raises(FitError):  # nothing is mapped: every law says what it needs
            run_fit(path, law)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "parbola"}, "must be one of parabola, surface"),
        ({"law": "surface", "bootstrap": -1}, "must be 0"),
        ({"law": "parabola", "interpolation": "spline"}, "auto, parabola or akima"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(FitError, match=message):
        fit_table(Table.of(sweep()), **options)


def test_importing_the_fit_imports_no_torch():
    modules = ("fit.run", "fit.joint", "plan.choose", "plan.score", "report.folder")
    code = "\n".join([f"import isoflop.scaling.{name}" for name in modules])
    code += "\nimport sys; print([name for name in sys.modules if name.split('.')[0] == 'torch'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_priors_tame_a_noisy_narrow_sweep_and_yield_to_a_quiet_one(monkeypatch):
    """At eight times the compute; the truth's E is not the prior's median, its exponents are above the prior's."""
    flops = 2e13
    truth = TRUTH.optimum(flops, 1.0)[2]

    def misses(noise, seeds):
        found = [at_optimum(fit(sweep(noise=noise, seed=s), bootstrap=0, hyper=False), flops) for s in seeds]
        return np.abs(np.array(found) / truth - 1)

    noisy, quiet = misses(0.012, range(6)), misses(0.0005, range(2))
    monkeypatch.setattr(law_set, "FLOOR_SPREAD", 50.0)
    monkeypatch.setattr(law_set, "EXPONENT_SPREAD", 50.0)
    free = misses(0.012, range(6))
    assert noisy.mean() < 0.03 < 0.6 * free.max()
    assert noisy.mean() < 0.9 * free.mean()
    assert quiet.max() < 0.01


@pytest.mark.parametrize("unit", ["bits_per_byte", "loss_nats"])
def test_a_forecast_is_the_same_in_every_unit(unit):
    scale, tokens, _ = TRUTH.optimum(2e13, 1.0)
    found = []
    for factor in (1.0, 0.37, 2.5):
        rows = [
            {"flops_per_token": r.flops_per_token, "n_tokens": r.n_tokens, unit: factor * r.bits_per_byte}
            for r in sweep()
        ]
        said = predict(fit(rows, bootstrap=120), scale, tokens)
        found.append([said.center / factor, said.low / factor, said.high / factor])
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-4)


def test_a_table_without_budgets_has_surfaces_an_allocation_and_an_interval():
    generator = np.random.default_rng(0)
    flops, ratio = 10 ** generator.uniform(17, 19, 24), 10 ** generator.normal(0, 0.4, 24)
    scale = np.array([TRUTH_OF_TABLE.optimum(c, 6.0)[0] for c in flops]) * ratio
    tokens = flops / (6 * scale)
    loss = TRUTH_OF_TABLE.loss(scale, tokens) * (1 + 0.004 * generator.standard_normal(24))
    rows = [{"n_params": n, "n_tokens": d, "loss_nats": y} for n, d, y in zip(scale, tokens, loss)]
    laws = fit(rows, bootstrap=120)
    assert laws.budgets == () and set(laws.draws()) == {"surface_log_huber", "surface_varpro"}
    assert any("no IsoFLOP curves" in text for text in laws.warnings) and laws.rehearsals
    scale, tokens, truth = TRUTH_OF_TABLE.optimum(1e20, 6.0)
    said = predict(laws, scale, tokens)
    assert said.low < truth < said.high and said.center == pytest.approx(truth, rel=0.03)
    assert laws.allocation.best("n", 1e20) == pytest.approx(scale, rel=0.5)
    for few in (rows[:7], [row | {"n_params": 1e8} for row in rows]):
        with pytest.raises(FitError, match=r"at least 8 runs, 3 sizes and 3 token counts"):
            fit(few, bootstrap=0)
    eight = predict(fit(rows[:8], bootstrap=120), scale, tokens)
    assert eight.low < eight.center < eight.high


def test_a_loss_that_falls_faster_at_the_end_is_said_and_widens_the_interval():
    """The smallest budgets are late, as small models are on the first plateau."""
    records = sweep(noise=0.0005, budgets=5)
    budgets = sorted({r.budget_flops for r in records})
    lag = dict(zip(budgets, (0.06, 0.06, 0.06, 0.05, 0.0)))
    late = [dataclasses.replace(r, bits_per_byte=r.bits_per_byte * (1 + lag[r.budget_flops])) for r in records]
    scale, tokens, _ = TRUTH.optimum(2e13, 1.0)
    quiet, steep = (fit(runs, bootstrap=120, hyper=False) for runs in (records, late))
    assert quiet.steepening == 0 and not any("plateau" in text for text in quiet.warnings)
    assert steep.steepening > 0.01 and any("plateau" in text for text in steep.warnings)
    said = predict(steep, scale, tokens)
    assert said.components["steepening"] == pytest.approx(steep.steepening * np.log(2e13 / 2.4e12) / 2, rel=1e-2)


def test_what_only_small_budgets_do_matters_less(monkeypatch):
    """The smallest budget 2% above the law, as models are that have not yet learnt to use their context."""
    records = sweep(noise=0.0)
    least = min(r.budget_flops for r in records)
    late = [
        r if r.budget_flops > least else dataclasses.replace(r, bits_per_byte=1.02 * r.bits_per_byte) for r in records
    ]
    truth = TRUTH.optimum(2e13, 1.0)[2]

    def miss():
        laws = fit(late, bootstrap=0, hyper=False)
        return np.abs(np.array(at_optimum(laws, 2e13)) / truth - 1).mean()

    weighted = miss()
    monkeypatch.setattr(law_set, "NEARNESS", 0.0)
    assert weighted < 0.9 * miss()
