"""What a machine of a cluster must have to run tasks: the same software, a GPU that PyTorch sees, the shared folder.

The driver writes a token into the folder, and every machine reads it: a folder of the same name on a disk of its own
has none. A machine that joins later says what it lacks with its first task.
"""

import hashlib
import os
import socket
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class Ticket(NamedTuple):
    """What a task must find where it runs."""

    threads: int
    gpus: float
    device: str
    software: tuple[tuple[str, str], ...]
    cwd: str
    folder: str = ""
    token: str = ""
    read: tuple[str, ...] = ()


@cache
def software() -> tuple[tuple[str, str], ...]:
    """What decides numbers: versions, and of isoflop a hash of its code, as checkouts of one version differ."""
    package = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    versions = [(name, metadata.version(name)) for name in ("torch", "numpy", "ray")]
    return (("isoflop", f"code {code.hexdigest()[:12]}"), *versions)


def lacks(ticket: Ticket) -> str:
    """On a worker: what is wrong with this machine, or nothing."""
    here, name = dict(software()), socket.gethostname()
    for package, wanted in ticket.software:
        if here.get(package) != wanted:
            return (
                f"machine {name} of the cluster has {package} {here.get(package)}, this one {wanted}: records would "
                f"differ; install the same on both"
            )
    if ticket.gpus and ticket.device != "cpu":
        import torch

        if not torch.cuda.is_available() and _ray_has_gpus():
            return (
                f"machine {name} has GPUs for Ray, but its PyTorch sees none; install a PyTorch with CUDA there, or "
                f'set train.device = "cpu"'
            )
    if ticket.folder and (problem := _shared(ticket)):
        return (
            f"machine {name} of the cluster {problem}; give --out and data.tokens on a folder that all machines share"
        )
    return ""


def _ray_has_gpus() -> bool:
    import ray

    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and node["Resources"].get("GPU", 0) for node in ray.nodes())


def _shared(ticket: Ticket) -> str:
    try:
        found = token_file(Path(ticket.folder)).read_text(encoding="utf-8")
    except OSError as error:
        return f"does not see what this one writes to {ticket.folder} ({error.strerror})"
    if found != ticket.token:
        return f"sees another {ticket.folder}"
    for path in ticket.read:
        if not Path(path).exists():
            return f"does not see {path}"
    if not os.access(ticket.folder, os.W_OK):
        return f"cannot write to {ticket.folder}"
    return ""


def token_file(folder: Path) -> Path:
    return folder / ".cluster_token"
