"""Real processes of the command line, and ways to kill them: shared by the kill tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def start(*arguments: object) -> subprocess.Popen[str]:
    """`isoflop ARGUMENTS` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "isoflop", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 900.0) -> tuple[int, str]:
    """Exit code and what it wrote to standard error."""
    _, errors = process.communicate(timeout=timeout_s)
    return process.returncode, errors


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def wait_until(condition, process: subprocess.Popen[str], timeout_s: float = 300.0) -> bool:
    """True when the condition came true before the process ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise AssertionError(f"nothing happened for {timeout_s} s")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_after(path: Path, n: int, *arguments: object) -> bool:
    """Start, wait until `path` was written to and has more than `n` lines, then SIGKILL; False when it ended before."""
    before, process = size(path), start(*arguments)
    alive = wait_until(lambda: size(path) != before and n_lines(path) > n, process) and process.poll() is None
    kill(process)
    return alive


def workers_of(pid: int) -> list[int]:
    """Worker processes of a sweep (its other child watches over shared resources)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    except OSError:
        return []
    return [child for child, line in lines.items() if b"spawn_main" in line]
