"""Checkpoints: complete, atomic, checksummed; the newest undamaged one is what a run resumes from.

    checkpoints/step_00001200/model.safetensors      what is trained and selection biases by name, float32
                              optimizer.safetensors  moments and step counts by parameter name
                              state.json             step, trajectory, sha256 of the two files above and of itself

A folder is written under a temporary name, flushed to disk and renamed, so a killed writer leaves no half checkpoint.
Only folders named as above are checkpoints of a run (`saved`): copies that somebody keeps beside them are left alone.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isoflop.errors import CheckpointError
from isoflop.recipe import write_json
from isoflop.run import file_sha256

log = logging.getLogger(__name__)

_FILES = ("model.safetensors", "optimizer.safetensors")
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written and which stay."""

    every_steps: int = 0
    """0: by time only."""
    every_s: float = 300.0
    """0: never by time."""
    keep: int = 2
    at_end: bool = True
    at_steps: frozenset[int] = frozenset()
    """Steps (counted after the optimizer step) at which one is written and kept for good: branch points."""

    def at(self, step: int, since_s: float) -> bool:
        """Whether one is due after finished step `step`, `since_s` after the last one; the end is the loop's matter."""
        by_time, by_step = self.every_s and since_s > self.every_s, self.every_steps and step % self.every_steps == 0
        return bool(by_time or by_step or step in self.at_steps)


def saved(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint folder, in the order of the steps: the one place that says which folders count.

    Others (`step_best`, `step_00000004.bak`) are not checkpoints: not resumed from, not counted, not deleted.
    """
    found = {}
    for path in sorted(folder.glob("step_*")):
        name = _NAME.fullmatch(path.name)
        if name and path.is_dir() and path.name == name_of(int(name[1])):
            found[int(name[1])] = path
        else:
            log.info("%s is no checkpoint of this run (step_ and eight digits): left alone", path)
    return dict(sorted(found.items()))


def name_of(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step_{step:08d}"


def save(folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write `folder`/step_N and return it; an existing checkpoint of that step is left alone.

    Raises:
        CheckpointError: the disk is full; what was there before is untouched.
    """
    final = folder / name_of(step)
    if final.exists():
        if damage(final) is None:
            return final
        shutil.rmtree(final)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{step:08d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save_file({name: tensor.cpu() for name, tensor in trained_state(model).items()}, temporary / _FILES[0])
        save_file(_optimizer_tensors(model, optimizer), temporary / _FILES[1])
        sums = {name: file_sha256(temporary / name) for name in _FILES}
        content = {**state, "step": step, "sha256": sums}
        write_json(temporary / "state.json", {**content, "state_sha256": _state_sha256(content)})
        for name in _FILES:
            _flush(temporary / name)
        _flush(temporary)
        temporary.rename(final)
        _flush(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(error, folder, step) from error
    except SafetensorError as error:  # how safetensors reports a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise _explained(OSError(errno.ENOSPC if full else errno.EIO, str(error)), folder, step) from error
    return final


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without parameters that are frozen: those stay as the run's base has them."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def adopt(folder: Path, write_model: Callable[[Path], str], *, state: dict[str, Any]) -> Path:
    """A checkpoint of step 0 from weights that no run of ours made; the optimizer starts anew from it.

    `write_model` writes the safetensors file it is given and returns the file's sha256. The caller sees to it that a
    half-written folder goes away.
    """
    final = folder / name_of(0)
    final.mkdir(parents=True)
    sums = {_FILES[0]: write_model(final / _FILES[0])}
    save_file({}, final / _FILES[1])
    sums[_FILES[1]] = file_sha256(final / _FILES[1])
    content = {**state, "step": 0, "sha256": sums}
    write_json(final / "state.json", {**content, "state_sha256": _state_sha256(content)})
    return final


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None when all checksums hold and its step is that of its name."""
    try:
        name = _NAME.fullmatch(checkpoint.name)
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if state.pop("state_sha256") != _state_sha256(state):
            return f"{checkpoint / 'state.json'} does not match its sha256"
        if name and int(name[1]) != state["step"]:
            return f"{checkpoint} holds step {state['step']}: somebody renamed it"
        for file in _FILES:
            if file_sha256(checkpoint / file) != state["sha256"][file]:
                return f"{checkpoint / file} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{checkpoint / 'state.json'} or a file it names cannot be read ({error})"
    return None


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run, None when it has none yet. Damaged ones are named in the log.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    found = saved(folder)
    for checkpoint in reversed(found.values()):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        log.warning("damaged checkpoint: %s; trying the one before it", problem)
    if found:
        raise CheckpointError(
            f"all {len(found)} checkpoints in {folder} are damaged (named above); "
            f"restore one of them, or delete the folder to start this run over"
        )
    return None


def load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Restore parameters, buffers and optimizer state in place; returns the state dictionary with `step`."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    weights = load_file(checkpoint / _FILES[0])
    held = trained_state(model)
    if {k: tuple(v.shape) for k, v in weights.items()} != {k: tuple(v.shape) for k, v in held.items()}:
        raise CheckpointError(f"{checkpoint} holds a model of other sizes; use the recipe it was trained with")
    with torch.no_grad():
        for name, tensor in held.items():  # shares its memory with the model's own
            tensor.copy_(weights[name])
    if optimizer is not None:
        named = dict(model.named_parameters())
        for key, value in load_file(checkpoint / _FILES[1]).items():
            name, _, slot = key.rpartition("/")
            device = "cpu" if slot == "step" and not named[name].is_cuda else named[name].device
            optimizer.state[named[name]][slot] = value.to(device)
    return state


def prune(folder: Path, *, step: int, keep: int, pinned: set[int]) -> None:
    """After saving `step`: delete all but the newest `keep` checkpoints and the steps in `pinned`.

    Beyond `step` there are only damaged ones (a run resumes from the newest good one), which must not count as kept.
    Leftovers of killed writers go too.
    """
    by_step = saved(folder)
    kept = set(sorted(found for found in by_step if found <= step)[-keep:]) | {p for p in pinned if p <= step}
    # Somebody's own storage behind a link, and what somebody's link (step_latest) leads to, are left alone.
    linked = {path.resolve() for path in folder.iterdir() if path.is_symlink()}
    for found, path in by_step.items():
        if found not in kept and not path.is_symlink() and path.resolve() not in linked:
            shutil.rmtree(path, ignore_errors=True)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{slot}"] = value.detach().cpu().contiguous()
    return tensors


def _state_sha256(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(error: OSError, folder: Path, step: int) -> CheckpointError:
    reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
    return CheckpointError(
        f"checkpoint of step {step} could not be written to {folder}: {reason}; earlier checkpoints are intact: "
        f"free some space and run the same command again, it resumes from the newest of them"
    )
