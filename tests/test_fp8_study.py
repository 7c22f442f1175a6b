"""The FP8 study: which runs its stages train, and what its figure says of those that are there."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

STUDY = ROOT / "recipes/study"


def stage(*words: str) -> list[str]:
    """Commands of a stage of fp8.sh, none of them run."""
    asked = subprocess.run(
        ["sh", STUDY / "fp8.sh", *words], cwd=ROOT, env={**os.environ, "PYTHON": "echo", "OUT": "runs/x"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return asked.stdout.splitlines()


def test_a_run_is_its_recipe_with_a_format_and_a_seed(monkeypatch):
    monkeypatch.setenv("SEED", "1")
    names = ("bfloat16", "bfloat16_again", "fp8_block", "fp8_tensorwise_until")
    commands = [stage("train", "mixture", name, "train.device=cpu")[0] for name in names]
    assert [command.split("--out ")[1] for command in commands] == [f"runs/x/mixture/seed1/{name}" for name in names]
    assert all("fp8_mixture.toml" in command and "train.seed=1 " in command for command in commands)
    formats = [command.partition('format="')[2].partition('"')[0] for command in commands]
    assert formats == ["", "", "fp8_block", "fp8_tensorwise"]
    assert ["numerics.until=0.8" in command for command in commands] == [False, False, False, True]
    assert ["train.micro_batch=32" in command for command in commands] == [False, True, False, False]
    assert all(command.index("train.device=cpu") > command.index("train.seed") for command in commands)


def test_the_figure_compares_runs_with_bf16_of_their_seed(tmp_path):
    decline = 3 + np.exp(-np.arange(200) / 50)
    over = {("seed0", "bfloat16"): 1.0, ("seed0", "fp8_block"): 1.005, ("seed1", "bfloat16"): 1.1}
    over |= {("seed1", "fp8_block"): 1.1011, ("seed1", "fp8_block_until"): 1.1}
    for (seed, name), factor in over.items():
        run = tmp_path / "dense" / seed / name
        run.mkdir(parents=True)
        early = 1.1 if seed == "seed1" else 1.0
        losses = decline * np.where(np.arange(200) < 100, early, factor)
        (run / "metrics.jsonl").write_text("".join(f'{{"loss_nats": {loss}}}\n' for loss in losses))
        result = {"loss_nats": 3 * factor, "n_tokens": 2e8, "n_steps": 200, "tokens_per_s": 1.0, "device": "x"}
        (run / "result.json").write_text(json.dumps({**result, "numerics": name}))
    (tmp_path / "dense/seed1/fp8_rowwise").mkdir()  # not finished: left out
    asked = [sys.executable, str(STUDY / "fp8_figure.py"), str(tmp_path / "dense"), "--out", str(tmp_path / "out")]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    found = json.loads((tmp_path / "out/dense.json").read_text())
    assert (tmp_path / "out/dense.png").stat().st_size > 1000 and len(found["runs"]) == 5
    rows = [row for row in found["runs"] if "held_out" in row]
    gaps = {("seed0", "fp8_block"): 0.005, ("seed1", "fp8_block"): 0.001, ("seed1", "fp8_block_until"): 0.0}
    assert {(row["seed"], row["run"]) for row in rows} == set(gaps)
    for row in rows:
        gap = gaps[row["seed"], row["run"]]
        assert [row[key] for key in ("held_out", "most", "last")] == pytest.approx([gap] * 3) and row["mean"] <= gap
        line = next(line for line in printed if line.split()[:2] == [row["run"], row["seed"]])
        assert line.count(f"{gap:+.2%}") >= 3
    assert found["mean_excess"]["fp8_block"]["held_out"] == pytest.approx(0.003)
    assert sum(line.split()[1] == "mean" for line in printed) == 2


def test_the_figure_needs_a_bf16_run(tmp_path):
    asked = [sys.executable, str(STUDY / "fp8_figure.py"), str(tmp_path)]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert answer.returncode == 1 and "holds no finished seed*/bfloat16" in answer.stderr
