"""SIGKILL at any moment of SFT and of DPO, half a reference, a full disk: the numbers are the same afterwards."""

import random

import pytest
from killing import finish, kill, size, start, wait_until
from safetensors import SafetensorError

from isoflop.alignment import reference
from isoflop.alignment.dpo import run_dpo
from isoflop.alignment.sft import run_sft
from isoflop.errors import CheckpointError
from isoflop.recipe import write_recipe

N_KILLS = 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_ten_kills_at_random_moments_change_no_bit(kind, make, tmp_path):
    options = {"train": {"epochs": 25, "batch": 8}, "checkpoint": {"every_steps": 3}, "answers": {"prompts": 0}}
    write_recipe(tmp_path / "recipe.toml", make(kind, **options))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(kind, tmp_path / "recipe.toml", "--out", whole))[0] == 0
    metrics = cut / "metrics.jsonl"
    n_steps = len((whole / "metrics.jsonl").read_bytes().splitlines())
    n_killed = 0
    for step in sorted(random.Random(kind).sample(range(n_steps * 9 // 10), N_KILLS)):
        process = start(kind, tmp_path / "recipe.toml", "--out", cut)
        n_killed += wait_until(lambda at=step: size(metrics) and len(metrics.read_bytes().splitlines()) > at, process)
        kill(process)
    code, errors = finish(start(kind, tmp_path / "recipe.toml", "--out", cut))
    assert code == 0, errors
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    newest = sorted((whole / "checkpoints").glob("step_*"))[-1].name
    files = ["model.safetensors", "optimizer.safetensors"]
    for name in files:
        assert (cut / "checkpoints" / newest / name).read_bytes() == (
            whole / "checkpoints" / newest / name
        ).read_bytes()
    assert n_killed >= 3


def test_a_full_disk_leaves_no_half_reference_and_the_same_command_goes_on(make, tmp_path, monkeypatch):
    recipe = make("dpo", train={"epochs": 1})
    whole = run_dpo(recipe, tmp_path / "whole")

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(reference, "save_file", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*run the same command again"):
            run_dpo(recipe, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*reference*"))
    assert run_dpo(recipe, tmp_path / "cut")["loss_nats"] == whole["loss_nats"]


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(make, tmp_path, monkeypatch):
    from isoflop.training import checkpoint

    recipe = make(checkpoint={"every_steps": 1})
    whole = run_sft(recipe, tmp_path / "whole")
    save, calls = checkpoint.save_file, iter(range(99))

    def sometimes(*arguments, **options):
        if next(calls) == 5:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", sometimes)
        with pytest.raises(CheckpointError, match="the disk is full"):
            run_sft(recipe, tmp_path / "cut")
    assert run_sft(recipe, tmp_path / "cut")["loss_nats"] == whole["loss_nats"]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
