"""Checkpoints are complete, checksummed and atomic; damage is named and the one before is used."""

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from isoflop.errors import CheckpointError
from isoflop.training import checkpoint
from isoflop.training.optim import adamw


def model_and_optimizer(seed: int = 0, width: int = 4):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.LayerNorm(width))
    optimizer = adamw(model, learning_rate=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    return model, optimizer


def take_steps(model, optimizer, n: int, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(folder: Path, *steps: int):
    model, optimizer = model_and_optimizer()
    for step in steps:
        take_steps(model, optimizer, 1)
        checkpoint.save(folder, step=step, model=model, optimizer=optimizer, state={"trajectory": "t", "first_step": 0})
    return model, optimizer


def test_loading_restores_weights_moments_and_state_bitwise(tmp_path):
    model, optimizer = saved(tmp_path, 7)
    other, other_optimizer = model_and_optimizer(seed=9)
    state = checkpoint.load(tmp_path / "step_00000007", other, other_optimizer)
    assert (state["step"], state["trajectory"]) == (7, "t")
    take_steps(model, optimizer, 5)
    take_steps(other, other_optimizer, 5)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


DAMAGE = {
    "truncated weights": lambda c: os.truncate(c / "model.safetensors", 100),
    "flipped bit in the moments": lambda c: _flip(c / "optimizer.safetensors"),
    "empty weights": lambda c: (c / "model.safetensors").write_bytes(b""),
    "no optimizer file": lambda c: (c / "optimizer.safetensors").unlink(),
    "no state": lambda c: (c / "state.json").unlink(),
    "truncated state": lambda c: os.truncate(c / "state.json", 20),
    "state that is no object": lambda c: (c / "state.json").write_text("[]", encoding="utf-8"),
    "another step in the state": lambda c: _edit(c / "state.json"),
    "an empty folder": lambda c: [path.unlink() for path in c.iterdir()],
}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _edit(path: Path) -> None:
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, "step": state["step"] + 1}), encoding="utf-8")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, kind):
    saved(tmp_path, 5, 10)
    DAMAGE[kind](tmp_path / "step_00000010")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest(tmp_path) == tmp_path / "step_00000005"
    assert "damaged checkpoint" in caplog.text and "step_00000010" in caplog.text


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path):
    saved(tmp_path, 5, 10)
    for folder in tmp_path.glob("step_*"):
        DAMAGE["truncated weights"](folder)
    with pytest.raises(
        CheckpointError, match=r"all 2 checkpoints in .* are damaged.*restore one.*or delete the folder"
    ):
        checkpoint.newest(tmp_path)


def test_adopted_weights_are_a_checkpoint_of_step_0_without_optimizer_state(tmp_path):
    model, _ = model_and_optimizer(seed=1)

    def write(path):
        save_file({name: value.half() for name, value in model.state_dict().items()}, path)  # any number format
        return hashlib.sha256(path.read_bytes()).hexdigest()

    adopted = checkpoint.adopt(tmp_path, write, state={"imported": "x"})
    assert checkpoint.newest(tmp_path) == adopted == tmp_path / "step_00000000"
    other, other_optimizer = model_and_optimizer(seed=2)
    state = checkpoint.load(adopted, other, other_optimizer)
    assert (state["step"], state["imported"]) == (0, "x") and not other_optimizer.state
    for name, value in other.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, model.state_dict()[name].half().float())


def test_no_checkpoint_yet_is_no_error(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_a_model_of_other_sizes_is_refused(tmp_path):
    saved(tmp_path, 5)
    with pytest.raises(CheckpointError, match="model of other sizes"):
        checkpoint.load(tmp_path / "step_00000005", *model_and_optimizer(width=6))


def test_an_undamaged_checkpoint_is_not_written_again_and_a_damaged_one_is(tmp_path):
    model, optimizer = saved(tmp_path, 5)
    weights = tmp_path / "step_00000005" / "model.safetensors"
    before = weights.stat().st_ino
    arguments = {"model": model, "optimizer": optimizer, "state": {}}
    checkpoint.save(tmp_path, step=5, **arguments)
    assert weights.stat().st_ino == before
    _flip(weights)
    checkpoint.save(tmp_path, step=5, **arguments)
    assert checkpoint.damage(tmp_path / "step_00000005") is None


def test_pruning_keeps_the_newest_and_the_pinned_and_clears_up_after_killed_writers(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / ".writing-00000006-1").mkdir()
    checkpoint.prune(tmp_path, step=5, keep=2, pinned={2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000004", "step_00000005"]


def test_damaged_checkpoints_of_later_steps_do_not_push_good_ones_out(tmp_path):
    saved(tmp_path, 10, 20, 30)
    for step in (20, 30):
        DAMAGE["truncated weights"](tmp_path / f"step_000000{step}")
    assert checkpoint.newest(tmp_path) == tmp_path / "step_00000010"
    saved(tmp_path, 15)
    checkpoint.prune(tmp_path, step=15, keep=2, pinned=set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000015"]


def no_space(*_: object, **__: object):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_in_safetensors(*_: object, **__: object):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "place, failure", [("save_file", no_space), ("save_file", no_space_in_safetensors), ("write_json", no_space)]
)
def test_a_full_disk_is_one_clear_error_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, place, failure):
    model, optimizer = saved(tmp_path, 5)
    monkeypatch.setattr(checkpoint, place, failure)
    with pytest.raises(
        CheckpointError, match=r"step 10 could not be written.*disk is full.*earlier checkpoints are int"
    ):
        checkpoint.save(tmp_path, step=10, model=model, optimizer=optimizer, state={})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step_00000005"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_really_full_disk_is_the_same_error(small_disk):
    model, optimizer = model_and_optimizer()
    checkpoint.save(small_disk / "c", step=1, model=model, optimizer=optimizer, state={})
    wide = torch.nn.Linear(400, 400)
    with pytest.raises(CheckpointError, match="disk is full"):
        checkpoint.save(small_disk / "c", step=2, model=wide, optimizer=optimizer, state={})
    assert checkpoint.newest(small_disk / "c") == small_disk / "c" / "step_00000001"


COPIES = ["step_00000009.bak", "step_best", "step_00000009 (1)", "step_9", "step_00000009-old", "step_latest", "step_"]


@pytest.mark.parametrize("name", COPIES)
def test_copies_beside_the_checkpoints_are_neither_taken_nor_counted_nor_deleted(tmp_path, name):
    saved(tmp_path, 2, 4, 9)
    shutil.copytree(tmp_path / "step_00000009", tmp_path / name)
    shutil.rmtree(tmp_path / "step_00000009")
    assert checkpoint.newest(tmp_path) == tmp_path / "step_00000004"
    assert list(checkpoint.saved(tmp_path)) == [2, 4]
    checkpoint.prune(tmp_path, step=4, keep=1, pinned=set())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["step_00000004", name])


def test_a_file_of_a_checkpoints_name_is_not_a_checkpoint(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "step_00000005").write_text("notes", encoding="utf-8")
    assert checkpoint.newest(tmp_path) == tmp_path / "step_00000002"


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path, caplog):
    saved(tmp_path, 2, 4)
    (tmp_path / "step_00000004").rename(tmp_path / "step_00000008")
    assert checkpoint.newest(tmp_path) == tmp_path / "step_00000002"
    assert "holds step 4: somebody renamed it" in caplog.text


def test_a_link_to_other_storage_counts_and_is_never_deleted(tmp_path):
    saved(tmp_path / "run", 2, 4)
    (tmp_path / "run" / "step_00000002").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "step_00000002").symlink_to(tmp_path / "elsewhere")
    assert list(checkpoint.saved(tmp_path / "run")) == [2, 4]
    checkpoint.prune(tmp_path / "run", step=4, keep=1, pinned=set())
    assert (tmp_path / "run" / "step_00000002" / "state.json").is_file()


def test_what_a_link_in_the_folder_leads_to_is_not_pruned(tmp_path):
    saved(tmp_path, 2, 4, 6)
    (tmp_path / "step_latest").symlink_to("step_00000002")
    checkpoint.prune(tmp_path, step=6, keep=1, pinned=set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000006", "step_latest"]
