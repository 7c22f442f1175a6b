"""Benchmarks from records: the published ladder to four digits, known laws in their intervals, refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from places import SHARED

from isoflop.errors import FitError, PlanError
from isoflop.recipe import read_tree
from isoflop.scaling.fit.parametric import Points
from isoflop.scaling.fit.run import fit_files
from isoflop.scaling.fit.task_law import Seen, fit_task
from isoflop.scaling.laws import Laws, surface_loss, task_metric
from isoflop.scaling.plan.choose import plan
from isoflop.scaling.plan.predict import predict_benchmarks
from isoflop.scaling.plan.score import score_benchmarks
from isoflop.scaling.report.plan_rows import plan_rows

LADDER = SHARED / "scaling/olmo-ladder"
SIZES, LENGTHS = ("190M", "370M", "760M", "1B"), ("1xC", "2xC", "5xC", "10xC")
TARGET = {"scale": 13_202_396_160, "n_tokens": 5_000_088_518_656}


def running_mean(values: np.ndarray, n: int = 5) -> np.ndarray:
    """Of the last `n` values, or as many as there are."""
    return np.array([values[max(0, at - n + 1) : at + 1].mean() for at in range(len(values))])


def ladder_law(task: str, n_resamples: int):
    """The published method: ends of runs for the first step, smoothed checkpoints after 10% for the second."""
    runs: dict[str, list[dict[str, str]]] = {}
    with (LADDER / "checkpoints.csv").open() as file:
        for row in csv.DictReader(file):
            if row["run"] in {f"{size}-{length}" for size in SIZES for length in LENGTHS}:
                runs.setdefault(row["run"], []).append(row)
    assert len(runs) == 16
    scale = np.array([float(rows[0]["params_no_emb"]) for rows in runs.values()])
    tokens = np.array([float(rows[-1]["tokens"]) for rows in runs.values()])
    bits = [np.array([float(row[f"bpb_{task}"]) for row in rows]) for rows in runs.values()]
    score = [np.array([float(row[f"acc_{task}"]) for row in rows]) for rows in runs.values()]
    late = [slice(-(-len(one) // 10), None) for one in bits]
    pairs = Seen(
        np.concatenate([running_mean(one[cut]) for one, cut in zip(bits, late)]),
        np.concatenate([running_mean(one[cut]) for one, cut in zip(score, late)]),
        np.concatenate([np.full(len(one[cut]), run) for run, (one, cut) in enumerate(zip(bits, late))]),
    )
    points = Points(scale, tokens, np.array([one[-5:].mean() for one in bits]), np.ones(16), np.arange(16))
    weight_RS = np.random.default_rng(0).exponential(size=(n_resamples, 16))
    return fit_task(points, {"acc": pairs}, weight_RS)


@pytest.mark.skipif(not LADDER.is_dir(), reason="needs the shared ladder data")
def test_predictions_of_the_ladder_equal_the_published_ones_to_four_digits():
    known = {row["check"]: row for row in json.loads((LADDER / "expected.json").read_text())}
    tasks = sorted({name.partition(".")[0] for name in known})
    assert len(tasks) == 8
    for task in tasks:
        law = ladder_law(task, 0)
        bits = float(surface_loss(np.array(law.bits[0]), *TARGET.values()))
        score = float(task_metric(np.array(law.metrics["acc"][0]), bits))
        assert bits == pytest.approx(known[f"{task}.bpb"]["value"], abs=1.01e-4), task
        assert score == pytest.approx(known[f"{task}.accuracy"]["value"], abs=1.51e-4), task


@pytest.mark.skipif(not LADDER.is_dir(), reason="needs the shared ladder data")
def test_intervals_of_the_ladder_hold_the_centre_and_are_wider_for_noisier_tasks():
    widths = {}
    for task in ("hellaswag", "openbookqa"):
        laws = Laws("n_params", "bits_per_byte", benchmarks={task: ladder_law(task, 40)})
        found = predict_benchmarks(laws, **TARGET)[task]["acc"]
        assert found["low"] < found["value"] < found["high"]
        widths[task] = found["high"] - found["low"]
    assert widths["hellaswag"] < widths["openbookqa"]


TRUE_BITS = np.array([0.6, 900.0, 500.0, 0.42, 0.38])
TRUE_SIGMOID = np.array([0.25, 0.97, 4.0, 2.2])


def made_sweep(folder: Path, *, seed: int = 0, n_cells: int = 28, asked: str = "a", chance: float = 0.25) -> Path:
    """Records of a sweep, and evaluations of its cells that follow known laws with a little noise."""
    rng, rows = np.random.default_rng(seed), []
    for budget in (1e13, 4e13, 1.6e14, 6.4e14):
        for share in np.geomspace(0.2, 5, n_cells // 4):
            scale = share * (budget / 200) ** 0.5 * 10
            rows.append({"run_id": f"c{len(rows)}", "budget_flops": budget, "total_flops": budget})
            rows[-1] |= {"flops_per_token": scale, "n_tokens": budget / scale}
            loss = float(surface_loss(np.array([0.9, 300.0, 900.0, 0.4, 0.38]), scale, budget / scale))
            rows[-1]["bits_per_byte"] = loss * (1 + 0.003 * rng.normal())
            bits = float(surface_loss(TRUE_BITS, scale, budget / scale)) * (1 + 0.01 * rng.normal())
            score = float(np.clip(task_metric(TRUE_SIGMOID, bits) + 0.01 * rng.normal(), 0, 1))
            evaluation = {
                "task": "quiz",
                "metrics": {"answer_bits_per_byte": {"value": bits, "n": 1000}, "acc": {"value": score, "n": 1000}},
                "chance": chance,
                "items_sha256": asked,
                "n_items": 1000,
            }
            path = folder / "cells" / rows[-1]["run_id"] / "evaluation.jsonl"
            path.parent.mkdir(parents=True)
            older = {**evaluation, "items_sha256": "of an earlier recipe"}
            path.write_text(f"{json.dumps(older)}\n{json.dumps(evaluation)}\n")
    records = folder / "records.jsonl"
    records.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return records


def truth(scale: float, n_tokens: float) -> tuple[float, float]:
    bits = float(surface_loss(TRUE_BITS, scale, n_tokens))
    return bits, float(task_metric(TRUE_SIGMOID, bits))


def test_a_made_sweep_predicts_ten_times_its_compute_and_laws_files_keep_it(tmp_path):
    laws = fit_files(made_sweep(tmp_path), bootstrap=100)
    laws.write(tmp_path / "laws.json")
    run = {"scale": 2e8, "n_tokens": 3.2e7}
    found = predict_benchmarks(laws, **run)
    assert found == predict_benchmarks(Laws.read(tmp_path / "laws.json"), **run)
    for value, (metric, row) in zip(truth(**run), found["quiz"].items(), strict=True):
        assert row["low"] < value < row["high"], (metric, value, row)
    assert found["quiz"]["acc"]["high"] - found["quiz"]["acc"]["low"] < 0.3
    wider = predict_benchmarks(laws, **run, level=0.99)["quiz"]["acc"]
    assert wider["high"] - wider["low"] > found["quiz"]["acc"]["high"] - found["quiz"]["acc"]["low"]


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say(tmp_path):
    run, inside = {"scale": 2e8, "n_tokens": 3.2e7}, []
    for seed in range(20):
        laws = fit_files(made_sweep(tmp_path / str(seed), seed=seed), bootstrap=100)
        found = predict_benchmarks(laws, **run)["quiz"]
        inside.append([row["low"] < v < row["high"] for v, row in zip(truth(**run), found.values(), strict=True)])
    assert np.mean(inside, axis=0).min() >= 0.8, np.mean(inside, axis=0)


def test_cells_that_were_asked_different_items_have_no_law(tmp_path):
    records = made_sweep(tmp_path)
    path = tmp_path / "cells/c3/evaluation.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(FitError, match="task quiz: cells were asked different items"):
        fit_files(records, bootstrap=0)


def test_a_metric_at_chance_and_a_task_of_few_cells_are_left_out_and_named(tmp_path):
    laws = fit_files(made_sweep(tmp_path / "a", chance=0.85), bootstrap=0)
    assert laws.benchmarks["quiz"].metrics == {} and any("above chance" in text for text in laws.warnings)
    records = made_sweep(tmp_path / "b")
    for number in range(20):
        (tmp_path / f"b/cells/c{number}/evaluation.jsonl").unlink()
    laws = fit_files(records, bootstrap=0)
    assert laws.benchmarks == {} and any("evaluated on 8 cells" in text for text in laws.warnings)


PREDICTED = {"benchmarks": {"quiz": {"acc": {"value": 0.5, "low": 0.4, "high": 0.6}}}, "asked": {"quiz": "aa, 5 items"}}


def evaluated(value: float, n_items: int = 5):
    return {"quiz": {"items_sha256": "aa", "n_items": n_items, "metrics": {"acc": {"value": value}}}}


def test_benchmarks_are_scored_like_the_loss():
    row = score_benchmarks(PREDICTED, evaluated(0.7))["quiz"]["acc"]
    assert row == {
        "predicted": 0.5,
        "interval": [0.4, 0.6],
        "measured": 0.7,
        "error": pytest.approx(-0.2),
        "inside_interval": False,
    }
    assert score_benchmarks(PREDICTED, evaluated(0.45))["quiz"]["acc"]["inside_interval"] is True
    assert score_benchmarks(PREDICTED, {})["quiz"]["acc"]["measured"] is None
    with pytest.raises(PlanError, match="the run was asked aa, 4 items"):
        score_benchmarks(PREDICTED, evaluated(0.5, 4))


def test_a_plan_states_the_benchmarks_and_its_recipe_carries_them(tmp_path):
    fit_files(made_sweep(tmp_path), bootstrap=100).write(tmp_path / "laws.json")
    made = plan(tmp_path / "laws.json", budget_flops=6.4e15, vocab_size=1024, seq_len=64)
    found = made.tree()["benchmarks"]
    assert set(found) == {"quiz"} and set(found["quiz"]) == {"answer_bits_per_byte", "acc"}
    assert list(found["quiz"]["acc"]) == ["value", "low", "high"]
    assert "predicted quiz" in dict(plan_rows(made))
    made.write(tmp_path / "plan.toml")
    written = read_tree(tmp_path / "plan.toml")["prediction"]
    assert written["benchmarks"] == found and written["asked"] == {"quiz": "a, 1000 items"}
    assert json.loads((tmp_path / "plan.json").read_text())["benchmarks"] == found
