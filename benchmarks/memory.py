"""Run a command and watch the memory of it and all its children: proportional set size, so that pages shared between
processes count once. Linux only."""

import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Watched:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """Of the command and the children that it waited for: comparable on a machine that others use too."""
    peak_pss_bytes: int
    output: str


def watch(command: list[str], *, every_s: float = 0.1) -> Watched:
    """Run `command` to its end, sampling the memory of its process tree. Raises if it fails."""
    began, peak, before = time.perf_counter(), 0, _cpu_seconds()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, sum(_pss_bytes(pid) for pid in _tree(process.pid)))
            time.sleep(every_s)
        seconds = time.perf_counter() - began
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Watched(seconds, _cpu_seconds() - before, peak, output)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue  # it ended in between
    return found


def _pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended in between
    return 0
