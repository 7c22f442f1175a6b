"""What a run was: commit, software, hardware, time. Written beside every result so that a number has an origin."""

import contextlib
import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from isoflop.errors import RecipeError


def now() -> str:
    """UTC time in ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str:
    """The commit of the checkout this package runs from, with `+` when it has changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip()[:12] + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""


def processor() -> str:
    """Name of the CPU and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def require_run_folder(folder: Path) -> None:
    """Refuse a folder that something else has filled, before anything is written to it.

    Raises:
        RecipeError: it has files, and no recipe of a run.
    """
    if folder.is_dir() and not (folder / "recipe.toml").is_file():
        foreign = sorted({path.name for path in folder.iterdir()} - {".lock", "tensorboard"})
        if foreign:
            raise RecipeError(f"--out {folder} has {foreign[0]} and no recipe.toml: give a run's folder, or a new one")


@contextlib.contextmanager
def _tidy(folder: Path, made: bool) -> Iterator[None]:
    """Leave nothing of a folder made for work that was refused before it wrote anything."""
    try:
        yield
    except BaseException:
        if made and [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()
        raise


@contextlib.contextmanager
def only_one(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `folder` for this process; a second one gets a clear error instead of a corrupted run.

    The lock is the operating system's, so it ends with the process however that ends. `wait_s` gives a process that
    is just being stopped the time to go.

    Raises:
        RecipeError: another process works in the folder.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _tidy(folder, made), (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise RecipeError(
                        f"another process is working in {folder}; wait for it or choose another folder"
                    ) from error
                time.sleep(0.1)
        yield
