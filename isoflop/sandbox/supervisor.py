"""The process that starts jobs: small, single-threaded, nothing but the standard library, started once per worker.

It passes descriptors and never reads what is in them, so no job's memory, which begins as a copy of this process's,
holds anything of another job. For each process of a job it starts

    starter -> keeper (first process of a pid namespace) -> the process that runs the code

and waits: for its end, for the clock, for a word of the parent, for the parent's end. Then it kills what is left,
answers with numbers, and is ready for the next job.

On the wire: JSON messages over a socket that keeps their borders. In: `{"limits", "roles"}` with the descriptors of
each role; `{"kill"}`. Out: the layers, once; then for each job `{"ends", "timeout", "disk", "setup", "wall_s"}`.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.sandbox import child, layers, linux

PRELOADED = (
    *("abc", "array", "bisect", "calendar", "cmath", "collections", "collections.abc", "copy", "dataclasses"),
    *("datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools"),
    *("json", "keyword", "logging", "math", "numbers", "operator", "queue", "random", "re", "statistics", "string"),
    *("struct", "sys", "tempfile", "textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata"),
)
"""Imported once here rather than in every job."""
WATCH_S = 0.02  # assumption: how often a folder without a fixed size is measured
SWEEP_S = 5.0  # assumption: for killed processes to be gone
GRACE_S = 0.2  # assumption: for the answer's process to end after the tests have
MOST_BYTES = 2**16
MOST_FDS = 1024
REPORT = 50
"""Where the report's descriptor lies during set-up, above all others."""


class Started(NamedTuple):
    pid: int
    status: int
    """Pipe on which the keeper says how the process ended."""


def main() -> None:
    """Arguments: the descriptor of the socket, this worker's folder, further readable folders."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    folder, packages = Path(sys.argv[2]), sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    linux.adopt_orphans()
    for name in PRELOADED:
        __import__(name)
    sys.path[-1:] = packages  # in place of our own package, which is loaded and not there for answers
    held = layers.detach(folder, packages)
    linux.hide_memory()
    gc.collect()
    gc.freeze()
    connection.send(json.dumps({"layers": asdict(held), "python": sys.version.split()[0]}).encode())
    n_jobs = 0
    while True:
        request, fds = _receive(connection)
        if request is None:
            return
        if "roles" not in request:
            continue  # a kill that came after the end
        n_jobs += 1
        answer = _run(connection, held, request, fds, folder / f"{n_jobs}")
        if answer is None:
            return
        connection.send(json.dumps(answer).encode())


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message with its descriptors; None when the parent is gone."""
    try:
        text, ancillary, _, _ = connection.recvmsg(MOST_BYTES, socket.CMSG_LEN(32 * 4))
    except ConnectionError:
        return None, []
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return (json.loads(text) if text else None), list(fds)


def _run(
    connection: socket.socket, held: layers.Layers, request: dict[str, Any], fds: list[int], folder: Path
) -> dict[str, Any] | None:
    limits, started, at = request["limits"], [], 0
    deadline = (begin := time.monotonic()) + limits["wall_s"]
    watched = []
    for role, n_fds in request["roles"]:
        mine, at = fds[at : at + n_fds], at + n_fds
        own = f"{folder}-{role}"
        if not held.has("mount"):
            _make_folder(own, held.users[child.ROLES[role]] if held.users else None)
            watched.append(own)
        started.append(_start(role, mine, limits, held, own if watched else layers.JOB))
    for fd in fds:
        os.close(fd)
    ends: list[dict[str, Any]] = [{} for _ in started]
    answer: dict[str, Any] = {"timeout": False, "disk": False, "setup": "", "ends": ends}
    waiting, killed = {s.status: i for i, s in enumerate(started)}, False
    last = started[-1].status
    while waiting and not killed:
        left = deadline - time.monotonic()
        if left <= 0:
            answer["timeout"] = last in waiting
            break
        ready, _, _ = select.select([connection, *waiting], [], [], min(left, WATCH_S) if watched else left)
        if connection in ready:
            message, _ = _receive(connection)
            if message is None:
                _end(started)
                return None  # the parent is gone
            killed = True
        for fd in [fd for fd in waiting if fd in ready]:
            ends[waiting.pop(fd)].update(_read_status(fd))
            if fd == last:
                deadline = time.monotonic() + GRACE_S
        answer["setup"] = next((end["setup"] for end in ends if "setup" in end), "")
        answer["disk"] = any(_is_above(own, limits) for own in watched)
        killed = killed or bool(answer["setup"]) or answer["disk"]
    if not _end(started):
        return None  # something cannot be ended: no further job is run
    for fd, i in waiting.items():
        ends[i].update(_read_status(fd))
    for own in watched:
        remove_folder(own)
    answer["wall_s"] = time.monotonic() - begin
    return answer


def _start(role: str, fds: list[int], limits: dict[str, Any], held: layers.Layers, folder: str) -> Started:
    """Fork the starter; it never returns."""
    status, report = os.pipe()
    pid = os.fork()
    if pid:
        os.close(report)
        return Started(pid, status)
    try:
        os.setsid()
        linux.die_with_parent()
        if held.has("pid"):
            linux.unshare(linux.NEWPID)
            keeper = os.fork()
            if keeper:
                os.closerange(3, MOST_FDS)
                os.waitpid(keeper, 0)
                os._exit(0)
            linux.die_with_parent()
        _keep(role, fds, limits, held, folder, report)
    except OSError as error:
        _report(report, {"setup": str(error)})
    finally:
        child.leave(1)


def _keep(role: str, fds: list[int], limits: dict[str, Any], held: layers.Layers, folder: str, report: int) -> None:
    """Fork the process that runs the code, wait for it, report how it ended."""
    if held.has("mount"):
        layers.own_folder(limits, held.users[child.ROLES[role]] if held.users else None)
    pid = os.fork()
    if pid == 0:
        try:
            linux.die_with_parent()
            if held.has("pid"):
                os.setsid()  # signals to a group cross namespaces; without one they are filtered
            _arrange(fds, report)
            report = REPORT
            os.chdir(folder)
            layers.confine(held, limits, role=child.ROLES[role], folder=folder)
        except (OSError, ValueError, MemoryError) as error:
            _report(report, {"setup": f"{type(error).__name__}: {error}"})
            os._exit(1)
        os.close(REPORT)
        os.environ["TMPDIR"] = os.environ["HOME"] = folder
        child.main(role, limits)
    os.closerange(3, report)
    os.closerange(report + 1, MOST_FDS)
    while True:
        ended, status, usage = os.wait4(-1, 0)  # as the first process of a namespace it also reaps orphans
        if ended == pid:
            break
    cpu_s, rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    _report(report, {"status": os.waitstatus_to_exitcode(status), "cpu_s": cpu_s, "max_rss_bytes": rss})
    os._exit(0)


def _arrange(fds: list[int], report: int) -> None:
    """Nothing at 0, output at 1 and 2, the role's others from 3 on, the report at `REPORT`; all others closed."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    high = [os.dup2(fd, REPORT + 1 + i) for i, fd in enumerate([nothing, fds[0], fds[0], *fds[1:]])]
    os.dup2(report, REPORT)
    for fd, source in enumerate(high):
        os.dup2(source, fd)
    os.closerange(len(high), REPORT)
    os.closerange(REPORT + 1, MOST_FDS)


def _report(fd: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(message).encode() + b"\n")


def _read_status(fd: int) -> dict[str, Any]:
    """Everything on a status pipe whose writers have ended."""
    with open(fd, "rb") as file:
        lines = file.read().splitlines()
    found: dict[str, Any] = {}
    for line in lines:
        found = {**json.loads(line), **found}
    return found


def _end(started: list[Started]) -> bool:
    """Kill and reap until nothing is left: the end of a keeper ends its namespace, orphans come to this process."""
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    for process in started:
        os.waitpid(process.pid, 0)
    deadline = time.monotonic() + SWEEP_S
    while time.monotonic() < deadline:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if not ended:
            _kill_orphans()
            time.sleep(0.001)
    return False


def _kill_orphans() -> None:
    """Where there is no pid namespace there is /proc, which names the processes that this one has adopted."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split():
            os.kill(int(pid), signal.SIGKILL)


def _make_folder(path: str, user: int | None) -> None:
    Path(path).mkdir(0o700)
    if user is not None:
        os.chown(path, user, user)


def _is_above(path: str, limits: dict[str, Any]) -> bool:
    """Whether a job's folder holds more than it may; what cannot be measured counts as more."""
    n_files, n_bytes, folders = 0, 0, [path]
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        n_files, n_bytes = n_files + 1, n_bytes + found.st_blocks * 512
                        if stat.S_ISDIR(found.st_mode):
                            folders.append(entry.path)
                    if n_files > limits["n_files"] or n_bytes > limits["disk_bytes"]:
                        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def remove_folder(path: str) -> None:
    """Remove a tree of any depth: folders inside folders are moved up, so no path gets long and nothing recurses."""
    n_moved, again = 0, True
    while again:
        again = False
        for inner in list(Path(path).iterdir()):
            if not stat.S_ISDIR(inner.lstat().st_mode):
                inner.unlink()
                continue
            inner.chmod(0o700)
            for below in list(inner.iterdir()):
                n_moved += 1
                below.rename(f"{path}/.moved-{n_moved}")
                again = True
            inner.rmdir()
    Path(path).rmdir()
