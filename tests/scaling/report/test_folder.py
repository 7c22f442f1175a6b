"""A study on disk becomes a page, whatever of it is there."""

import json
from pathlib import Path

import pytest
from synthetic_study import make_corpus_manifest, make_metrics, make_study, make_tokens_manifest

from isoflop.errors import DataError
from isoflop.recipe import write_json, write_recipe
from isoflop.scaling.report.folder import report_study
from isoflop.scaling.report.run_figures import training_figure
from isoflop.scaling.sweep.cells import model_tree
from isoflop.scaling.sweep.family import ExpertFamily, Family
from isoflop.scaling.sweep.shapes import shape

pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install isoflop[report]")


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def study(tmp_path):
    """What `isoflop demo` leaves."""
    records, laws, plan, score = make_study()
    write_lines(tmp_path / "records.jsonl", records)
    write_lines(tmp_path / "target" / "metrics.jsonl", make_metrics())
    for name, value in {"laws": laws, "plan": plan, "score": score}.items():
        write_json(tmp_path / f"{name}.json", value)
    write_json(tmp_path / "corpus" / "manifest.json", make_corpus_manifest())
    write_json(tmp_path / "tokens" / "manifest.json", make_tokens_manifest())
    write_json(tmp_path / "commands.json", {"commands": ["isoflop demo --out here"]})
    return tmp_path


def test_the_page_has_what_the_folder_has_and_figures_where_asked_for(study):
    found = report_study(study, study / "page" / "report.html", figures=study / "figures", title="A study of laws")
    page = (study / "page" / "report.html").read_text(encoding="utf-8")
    assert found["report"] == str(study / "page" / "report.html")
    for text in ("A study of laws", "isoflop demo --out here", "Target run", "Laws"):
        assert text in page, text
    assert {"isoflop", "compute"} <= set(found["figures"])
    for paths in found["figures"].values():
        assert {Path(path).suffix for path in paths} == {".svg", ".png"}
        assert all(Path(path).stat().st_size > 1000 for path in paths)


def test_the_folder_of_a_bare_sweep_gives_a_page_too(tmp_path):
    records, *_ = make_study(target=False, hyper=False)
    write_lines(tmp_path / "records.jsonl", records)
    cells = [{"cell_id": "a", "budget_flops": 1e12, "trunk_id": "", "recipe": {}}]
    write_json(tmp_path / "ladder.json", {"cells": cells})  # what a sweep leaves, not the summary of a ladder
    found = report_study(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert found["figures"] == {} and f"Scaling study: {tmp_path.name}" in page


def test_records_are_found_in_the_sweep_of_a_study(tmp_path):
    records, *_ = make_study(target=False, hyper=False)
    write_lines(tmp_path / "sweep" / "records.jsonl", records)
    report_study(tmp_path, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no records.jsonl; run isoflop sweep first"):
        report_study(tmp_path, tmp_path / "report.html")


def test_a_metrics_file_that_a_killed_run_left_is_read_up_to_the_torn_line(study):
    with (study / "target" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 601, "loss_na')
    report_study(study, study / "report.html")
    assert (study / "report.html").exists()


def test_what_the_commands_leave_one_by_one_is_found(study):
    """The plan only as a recipe, the score in the folder of the run, as in the studies of docs/ and in the README."""
    plan = json.loads((study / "plan.json").read_text(encoding="utf-8"))
    (study / "plan.json").unlink()
    (study / "score.json").rename(study / "target" / "score.json")
    train = {"n_tokens": 12345, "learning_rate": 0.003, "schedule": "cosine"}
    write_recipe(study / "plan.toml", {"model": plan["model"], "train": train, "prediction": plan["prediction"]})
    report_study(study, study / "report.html")
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "The prediction was 0.30% off" in page and 'id="plan"' in page and "12.3k" in page and "cosine" in page


def test_a_damaged_part_of_a_study_is_named(study):
    (study / "laws.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"laws.json is not JSON .*; make it again"):
        report_study(study, study / "report.html")
    (study / "laws.json").unlink()
    for name in ("plan.json", "score.json", "corpus/manifest.json", "commands.json"):
        before = (study / name).read_bytes()
        write_json(study / name, ["no", "object"])
        with pytest.raises(DataError, match=rf"{name} is damaged .no JSON object.; make it again"):
            report_study(study, study / "report.html")
        (study / name).write_bytes(before)
    (study / "plan.json").unlink()
    (study / "plan.toml").write_bytes(b'title = "caf\xe9"\n')
    with pytest.raises(DataError, match=r"plan.toml is not TOML .*; make it again"):
        report_study(study, study / "report.html")


def test_the_folder_of_one_run_gives_a_page_with_its_expert_load(tmp_path):
    config = shape(128, vocab_size=512, seq_len=64, family=Family(experts=ExpertFamily(16, 3)))
    lines = make_metrics()
    load = {"max_violation": [0.5, 0.2], "entropy": [0.9, 0.99], "dead": [0, 0]}
    lines += [{"step": step, "expert_load": load} for step in (100, 200, 300)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    write_recipe(tmp_path / "recipe.toml", {"model": model_tree(config)})
    write_json(tmp_path / "result.json", {"status": "finished", "bits_per_byte": 1.234, "n_tokens": 614400})
    found = report_study(tmp_path, tmp_path / "report.html", figures=tmp_path / "figures")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(found["figures"]) == {"training", "load"}
    assert "16 experts, 3 active" in page and "1.234" in page and "Load of the experts" in page


def test_the_page_of_a_run_shows_its_planned_curve_its_forecasts_and_its_warning(tmp_path):
    lines = make_metrics()
    last = max(line["step"] for line in lines)
    final = {"center": 2.3, "low": 2.2, "high": 2.4}
    forecasts = [{"step": step, "loss_nats": 3.0, "final": final} for step in range(last // 10, last, last // 10)]
    forecasts[4]["warning"] = "step 5: the loss is above its band & more"
    curve = {"steps": [last // 2, last], "of_final": [1.1, 1.0], "gain_nats": 0.3, "final_nats": [2.3, 2.2, 2.4]}
    config = shape(16, vocab_size=64, seq_len=16, family=Family())
    write_lines(tmp_path / "metrics.jsonl", lines)
    write_lines(tmp_path / "forecast.jsonl", forecasts)
    write_recipe(tmp_path / "recipe.toml", {"model": model_tree(config), "prediction": {"curve": curve}})
    report_study(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "above its band &amp; more" in page
    axes = training_figure(lines, curve=curve, forecasts=forecasts)
    assert axes is not None
    assert axes.axes[0].get_legend_handles_labels()[1] == ["planned", "forecast of the end (90%)"]
