"""Run a command and watch the memory of it and all its children: proportional set size, so that pages shared between
processes count once. Linux only."""

import os
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
    """Of all its processes, those that nobody waits for as they were last seen: comparable on a machine that others
    use too."""
    peak_pss_bytes: int
    output: str


def watch(command: list[str], *, every_s: float = 0.1, quiet: bool = False) -> Watched:
    """Run `command` to its end, sampling memory and CPU time of its process tree; `quiet` hides what it complains of.
    Raises if it fails."""
    began, peak, before, cpu_seconds = time.perf_counter(), 0, _waited_seconds(), dict[int, float]()
    complaints = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:
        while process.poll() is None:
            found = _tree(process.pid)
            peak = max(peak, sum(_pss_bytes(pid) for pid in found))
            for pid in found:
                cpu_seconds[pid] = max(cpu_seconds.get(pid, 0.0), _cpu_seconds(pid))
            time.sleep(every_s)
        seconds = time.perf_counter() - began
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Watched(seconds, max(sum(cpu_seconds.values()), _waited_seconds() - before), peak, output)


def _waited_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_seconds(pid: int) -> float:
    """Of this process alone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it ended in between
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
