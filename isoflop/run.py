"""What a run was (commit, software, hardware, time), who works in its folder, and the one way records are written.

Records are JSON lines that others may read while a study goes on. A record is one write followed by a flush to disk, a
last line without its end is what a killed writer left and is ignored, and a run that was repeated replaces its earlier
line.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isoflop.errors import DataError, RecipeError
from isoflop.recipe import plain

log = logging.getLogger(__name__)


def now() -> str:
    """UTC time in ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str:
    """The commit of the checkout this package runs from, with `+` when it has changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]  # no tags: hashes alone
    try:
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def processor() -> str:
    """Name of the CPU and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {cores()} cores"


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def append_json_line(path: str | Path, row: dict[str, Any]) -> None:
    """Add one line and flush it to disk; what a killed writer left of a line is cut off first.

    Raises:
        DataError: the file holds something else than JSON lines.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also when the process dies
        file.seek(0)
        if not _may_be_record(file.readline()):
            raise DataError(f"records {path} has something else than records; give another file")
        size, whole = _whole_bytes(file)
        if whole < size:
            log.warning("records %s: cut off %d bytes of an unfinished last line", path, size - whole)
            file.truncate(whole)
        elif whole > size:
            line = b"\n" + line  # the last line was complete but for its end
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(
    path: Path, pairs: Callable[..., Any] | None = None, data: bytes | None = None
) -> list[dict[str, Any]]:
    """Objects of a JSONL file, split on the newline character only; a torn last line is ignored with a warning.

    `pairs` makes an object of its (name, value) pairs where `dict`, by which the last of one name wins, will not do.
    `data` is the content as UTF-8, where the caller has read it.
    """
    rows: list[dict[str, Any]] = []
    lines = (path.read_bytes() if data is None else data).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=pairs)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline follows it
                log.warning("%s: ignored line %d, which ends in the middle (a killed writer)", path, number)
                continue
            raise DataError(f"{path} line {number} is not JSON ({error}); repair or remove that line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is not a JSON object; one run is one object")
        rows.append(row)
    return rows


def latest_of_each_run(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of every `run_id`, in the order of the first ones; rows without one are kept."""
    latest: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        latest[str(row.get("run_id") or f"line {index}")] = row
    return list(latest.values())


def _may_be_record(first: bytes) -> bool:
    """Whether the first line of a file is a record, or the beginning of one that a killed writer left."""
    if not first.endswith(b"\n"):
        return first[:1] in (b"", b"{")
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False  # such as the lone brace of an indented JSON file


def _whole_bytes(file: Any) -> tuple[int, int]:
    """Size, and how much of it is whole lines (one more than the size: only the last newline is missing)."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    if size == 0:
        return 0, 0
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end == size:
        return size, size
    try:
        complete = isinstance(json.loads(content[end:]), dict)
    except ValueError:
        complete = False
    return (size, size + 1) if complete else (size, end)
