"""A run of any kind through training/run.py: trained, killed, gone on with, finished, refused, watched."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killing import ENVIRONMENT, kill, n_lines, wait_until
from safetensors.torch import load_file
from toy_runs import Toy

from isoflop.errors import CheckpointError
from isoflop.training import checkpoint
from isoflop.training.run import run

KINDS = ("masked", "policy")
SOURCE = Path(__file__).with_name("toy_runs.py")


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """(kind, folder, result, what was shown) of an undisturbed run."""
    folder, shown = tmp_path_factory.mktemp(request.param), []
    torch.set_num_threads(1)
    return request.param, folder, run(Toy(request.param), folder, on_progress=shown.append), shown


def same(a: Path, b: Path) -> bool:
    """Metrics to the byte; weights and moments to the bit."""
    last = [checkpoint.newest(folder / "checkpoints") for folder in (a, b)]
    assert last[0] is not None and last[1] is not None and last[0].name == last[1].name
    tensors = [{**load_file(at / "model.safetensors"), **load_file(at / "optimizer.safetensors")} for at in last]
    equal = all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    return equal and (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.mark.dist
def test_a_run_killed_twice_ends_as_the_undisturbed_one_to_the_last_bit(whole, tmp_path):
    kind, folder, result, _ = whole
    command = [sys.executable, str(SOURCE), kind, str(tmp_path)]
    killed = 0
    for n in (30, 95):
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        killed += wait_until(lambda n=n: n_lines(tmp_path / "metrics.jsonl") > n, process)
        kill(process)
        assert list((tmp_path / "checkpoints").glob("step_*")) and not (tmp_path / "result.json").exists()
    assert killed == 2
    resumed = run(Toy(kind), tmp_path)
    assert same(folder, tmp_path)
    assert {key: resumed[key] for key in ("step", "loss_nats", "train_loss_nats", "n_tokens")} == {
        key: result[key] for key in ("step", "loss_nats", "train_loss_nats", "n_tokens")
    }


def test_a_result_says_how_the_run_went_and_is_not_made_again(whole):
    kind, folder, result, _ = whole
    assert (result["status"], result["step"], result["n_tokens"], result["start_step"]) == ("finished", 150, 1800, 0)
    assert result["kind"] == kind and result["wall_s"] > 0 and result["tokens_per_s"] > 0 and result["torch"]
    before = (folder / "result.json").read_bytes()
    assert json.loads(before) == json.loads(json.dumps(result)) == run(Toy(kind), folder)
    assert (folder / "result.json").read_bytes() == before
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "validation" in row] == [100]


def test_progress_is_shown_while_it_trains(whole):
    _, _, _, shown = whole
    assert shown and all(0 < seen.step <= 150 == seen.n_steps for seen in shown)
    assert all(seen.tokens_per_s > 0 and seen.seconds_left >= 0 for seen in shown)


def test_both_learn_what_they_are_after(whole):
    kind, folder, _, _ = whole
    last = checkpoint.newest(folder / "checkpoints")
    assert last is not None
    weights = load_file(last / "model.safetensors")
    if kind == "policy":  # the answer is 3 whatever is asked
        assert weights["bias"].item() > 2.0
    else:  # points are counted where they are positive: their mean is sqrt(2 / pi)
        assert weights["bias"].item() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.15)


def test_a_folder_of_another_run_is_refused(whole):
    kind, folder, _, _ = whole
    other = Toy(kind)
    other.identity = {**other.identity, "kind": "other"}
    with pytest.raises(CheckpointError, match=r"step_00000150 was trained with another recipe; choose another folder"):
        run(other, folder)


def test_a_trunk_is_gone_on_with_by_another_folder(whole, tmp_path):
    kind, folder, _, _ = whole
    stopped = run(Toy(kind), tmp_path / "trunk", stop_at=50, keep_steps=frozenset({30}))
    assert (stopped["status"], stopped["step"]) == ("stopped", 50) and not (tmp_path / "trunk/result.json").exists()
    start = tmp_path / "trunk/checkpoints/step_00000030"
    branch = run(Toy(kind), tmp_path / "branch", start_from=start)
    assert (branch["status"], branch["start_step"]) == ("finished", 30)
    lines = [
        (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for path in (folder, tmp_path / "branch")
    ]
    assert lines[0][30:] == lines[1]
    (start / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot start from .*train that trunk again"):
        run(Toy(kind), tmp_path / "late", start_from=start)


@pytest.mark.parametrize("name", ["Masked", "Policy", "Toy"])
def test_a_new_kind_of_training_is_short(name):
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assert found.end_lineno is not None and found.end_lineno - found.lineno < 30
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) < 90  # both of them, and the job
