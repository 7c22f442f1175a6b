"""Log-probabilities of the reference: computed once and kept beside the run, or refused where they are not its own.

The file holds one number for each side of each pair, and a key: reference weights, tokens of all pairs, chat template,
number formats and precision. It is written under a temporary name, flushed and renamed, so half a file never has the
name that is read. Training pairs are scored in the groups of the first epoch, so that at step 0 reference and policy
have computed the same thing in the same order, and the loss is ln 2 exactly.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isoflop.errors import CheckpointError

FILE = "reference.safetensors"
NAMES = ("train.chosen", "train.rejected", "valid.chosen", "valid.rejected")


def key_of(**decides: Any) -> str:
    """Hash of all that the numbers depend on."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def write_reference(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """All four tensors, float32 [n pairs].

    Raises:
        CheckpointError: the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {name: tensors[name].float().contiguous() for name in NAMES}
        save_file(held, temporary, metadata={"key": key, "sha256": _digest(held)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written ({error}); free some space and run the same command again"
        ) from error


def read_reference(path: Path, key: str) -> dict[str, Tensor] | None:
    """What `write_reference` wrote, None where there is no file.

    Raises:
        CheckpointError: a damaged file, or one for other weights, pairs, template or number formats.
    """
    if not path.is_file():
        return None
    way_out = f"delete {path} to compute it again"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {way_out}") from error
    if metadata.get("key") != key:
        raise CheckpointError(
            f"{path} was made with other reference weights, pairs, template or number formats; {way_out}"
        )
    if set(tensors) != set(NAMES) or metadata.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: its hash differs; {way_out}")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in NAMES:
        found.update(name.encode() + tensors[name].to(torch.float32).numpy().tobytes())
    return found.hexdigest()
