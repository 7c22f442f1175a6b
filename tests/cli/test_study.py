"""A study is one folder: the commands of the README, one after the other, leave what `report` and `score` look for."""

import json
import re
from pathlib import Path

import pytest
from golden_runs import CPU, RECIPES, ROOT, asked, isoflop, write_inputs

from isoflop.scaling.sweep.records import append_record, read_records

pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install isoflop[report]")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The chain of the README with every place at its default; in place of a sweep, the cells of a recorded one."""
    folder = tmp_path_factory.mktemp("chain")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        isoflop("corpus", "build", RECIPES / "corpus.toml")
        isoflop("tokens", RECIPES / "tokens.toml")
        recorded = ROOT / "docs/studies/demo-seed0-d86ed22/records.jsonl"
        for record in read_records(recorded):
            if record.kind == "cell":
                append_record("runs/sweep/records.jsonl", record)
        isoflop("fit", "runs/sweep/records.jsonl", "--bootstrap", 100)
        isoflop("plan", "--budget-flops", 1.3e9, "--vocab-size", 264, "--seq-len", 16)
        isoflop("report", "runs", "--out", "planned.html")
        isoflop(
            "train", "runs/plan.toml", *CPU, "train.micro_batch=0", 'data.tokens="runs/tokens"', "--out", "runs/target"
        )
        isoflop("score", "runs/target")
        isoflop("report", "runs")
    return folder


def test_every_part_of_the_study_is_in_its_report(study):
    page = (study / "runs/report.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([a-z]+)"', page)
    assert {"data", "sweep", "laws", "allocation", "plan", "target", "savings", "reproduce"} <= set(sections)
    score = json.loads((study / "runs/target/score.json").read_text(encoding="utf-8"))
    assert f"The prediction was {100 * abs(score['relative_error']):.2f}% off" in page
    assert "no run predicted yet" not in page and "The optimum is flat" in page


def test_a_plan_that_has_not_run_is_shown_as_predicted(study):
    page = (study / "planned.html").read_text(encoding="utf-8")
    assert "Predicted, not yet measured" in page and 'id="plan"' in page and 'id="target"' not in page


def test_the_score_joins_the_records_of_the_sweep_and_stays_one_target(study, monkeypatch):
    monkeypatch.chdir(study)
    isoflop("score", "runs/target")
    records = read_records("runs/sweep/records.jsonl")
    assert [record.kind for record in records].count("target") == 1 and len(records) > 1
    before, after = (
        json.loads(Path("runs/laws.json").read_text(encoding="utf-8")),
        asked("fit", "runs/sweep/records.jsonl", "--bootstrap", 100, "--out", "again.json"),
    )
    assert after.pop("warnings")[:1] == ["1 target runs left out: a law is not fitted to what it predicts"]
    assert {key: after[key] for key in ("surface", "lstar", "parabola")} == {
        key: before[key] for key in ("surface", "lstar", "parabola")
    }
