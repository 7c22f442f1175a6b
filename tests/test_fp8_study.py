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


def test_each_run_can_be_trained_alone_and_all_of_them_are_trained_together():
    names = {"train_bfloat16": "bfloat16", "train_fp8_block": "fp8_block", "train_until": "fp8_block_until"}
    alone = [stage(name, "train.seed=1") for name in names]
    assert [commands[0].split("--out ")[1] for commands in alone] == [f"runs/x/{name}" for name in names.values()]
    assert stage("train", "train.seed=1") == [command for commands in alone for command in commands]
    assert ["numerics.rules" in commands[0] for commands in alone] == [False, True, True]
    assert ["numerics.until=0.8" in commands[0] for commands in alone] == [False, False, True]
    assert all("train.seed=1" in commands[0] for commands in alone)


@pytest.mark.parametrize("late", [{}, {"fp8_block_until": 1.001}], ids=["two runs", "three runs"])
def test_the_figure_compares_the_fp8_runs_that_are_there(tmp_path, late):
    decline = 3 + np.exp(-np.arange(200) / 50)
    over = {"bfloat16": 1.0, "fp8_block": 1.005, **late}
    for name, factor in over.items():
        (tmp_path / name).mkdir()
        losses = decline * np.where(np.arange(200) < 100, 1.0, factor)
        (tmp_path / name / "metrics.jsonl").write_text("".join(f'{{"loss_nats": {loss}}}\n' for loss in losses))
        result = {"loss_nats": 3 * factor, "n_tokens": 2e8, "n_steps": 200, "tokens_per_s": 1.0, "device": "x"}
        (tmp_path / name / "result.json").write_text(json.dumps({**result, "numerics": name}))
    asked = [sys.executable, str(STUDY / "fp8_figure.py"), str(tmp_path), "--out", str(tmp_path / "out")]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = json.loads((tmp_path / "out/fp8.json").read_text())
    assert list(found["training_loss_excess"]) == list(over)[1:] and (tmp_path / "out/fp8.png").stat().st_size > 1000
    for name, factor in list(over.items())[1:]:
        gaps = found["training_loss_excess"][name]
        assert gaps["most"] == pytest.approx(factor - 1) == gaps["last"] and 0 < gaps["mean"] < factor - 1
        assert found["held_out_loss_excess"][name] == pytest.approx(factor - 1)
        row = next(line for line in printed.splitlines() if line.split()[0] == name)
        assert row.count(f"{factor - 1:+.2%}") == 3, "held out, at most and at the end"
