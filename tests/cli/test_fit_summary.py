"""What fit prints: laws, exponents with intervals, vertices as a table, warnings, the next command."""

import dataclasses
import re
from pathlib import Path

from places import ROOT

from isoflop.cli.fit_summary import print_law, print_laws
from isoflop.scaling.fit.joint import fit
from isoflop.scaling.fit.run import run_fit
from isoflop.scaling.sweep.records import read_records

STUDY = ROOT / "docs" / "studies" / "h100"


def test_laws_are_told_in_tables_with_intervals_and_the_command_that_plans_with_them(capsys):
    records = STUDY / "records.jsonl"
    laws = fit(read_records(records), bootstrap=60)
    print_laws(laws, Path("laws.json"), [records])
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    (row,) = [line.split() for line in lines if line.strip().startswith("log_huber")]
    fitted = laws.surfaces["log_huber"]
    assert row[1:] == [f"{getattr(fitted, name):.4g}" for name in ("E", "A", "B", "alpha", "beta", "a")]
    low, high = laws.allocation.n_exponent_interval_95
    assert re.search(rf"best M with C +{laws.allocation.n_exponent:.4g} +{low:.4g} to {high:.4g}", text)
    assert sum("inside" in line for line in lines) == sum(vertex.inside for vertex in laws.allocation.vertices)
    assert "outside, left out" in text and "nan" not in text
    assert all(f"warning: {warning}" in text for warning in laws.warnings)
    budget = f"{10 * laws.largest_budget_flops:.3g}"
    assert lines[-1] == f"next: isoflop plan laws.json --ladder {STUDY / 'ladder.toml'} --budget-flops {budget}"
    assert "{" not in text and len(lines) < 50


def test_no_plan_follows_losses_that_rise_with_compute(capsys):
    runs = read_records(STUDY / "records.jsonl")
    rising = [dataclasses.replace(run, bits_per_byte=2 + 1e-5 * run.total_flops**0.3) for run in runs]
    print_laws(fit(rising, bootstrap=0), Path("laws.json"), [])
    printed = capsys.readouterr().out
    assert printed.endswith("next: check these runs and their losses, and fit again\n")
    assert "isoflop plan" not in printed


def test_one_law_is_told_with_its_intervals_warnings_and_what_was_counted(capsys):
    found = run_fit(STUDY / "records.jsonl", "surface", where=["budget_flops<2e16"], bootstrap=30)
    print_law(found)
    text = capsys.readouterr().out
    assert f"alpha                 {found['fits']['mse']['alpha']:.6g}  (95%: " in text and "mse:" in text
    assert all(warning in text for warning in found["warnings"]) and "counted: law" in text and "{" not in text
