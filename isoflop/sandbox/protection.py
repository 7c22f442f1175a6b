"""Does the sandbox hold on this machine? The layers that could be set up, and small attacks that must not get through.

Four properties are required: network denied, files outside denied, processes contained, memory and time limited. Each
needs one of two combinations of layers, and each is attacked once before the first job is accepted.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.sandbox.jobs import MIB, Call, Calls, Job, Limits, Outcome, Verdict

NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "network": (("seccomp",), ("net", "mount")),
    "files": (("mount",), ("landlock", "seccomp")),
    "processes": (("seccomp",), ("pid", "user")),
    "limits": (("limits", "seccomp"), ("limits", "ipc", "nested")),
}
"""Property -> combinations of layers of which one is enough. A socket with a path is a file, so a network namespace
alone leaves it; Landlock alone leaves chmod; limits alone leave memory of System V and file systems in memory."""

PROBE = """
import os, socket

def attempt(work):
    try:
        work()
    except BaseException as error:
        return type(error).__name__
    return "done"

def connect(kind, family, address):
    with socket.socket(family, kind) as s:
        s.settimeout(1)
        s.connect(address)
        s.send(b"x")

def network(port, path, name):
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    return [
        attempt(lambda: connect(stream, socket.AF_INET, ("127.0.0.1", port))),
        attempt(lambda: connect(datagram, socket.AF_INET, ("127.0.0.1", port))),
        attempt(lambda: connect(stream, socket.AF_UNIX, path)),
        attempt(lambda: connect(stream, socket.AF_UNIX, chr(0) + name)),
    ]

def files(path):
    return [
        attempt(lambda: open(path).read()),
        attempt(lambda: open(path, "w").write("x")),
        attempt(lambda: os.chmod(path, 0o600)),
        attempt(lambda: os.unlink(path)),
        attempt(lambda: os.listdir(os.path.dirname(path))),
    ]

def processes():
    try:
        pid = os.fork()
    except OSError:
        return "denied"
    if pid == 0:
        os.setsid()
        while True:
            pass
    return "started"

def memory(n):
    try:
        return len(bytearray(n))
    except MemoryError:
        return "denied"

def hidden(n):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return [libc.shmget(0, n, 0o1600) < 0, libc.unshare(0x10000000) < 0]

def endless():
    while True:
        pass
"""


@dataclass(frozen=True)
class Protection:
    """What holds here: for the report of everything that the sandbox has judged."""

    properties: dict[str, str]
    """Property -> empty where it holds, otherwise what is wrong."""
    missing_layers: dict[str, str]
    landlock_version: int
    python: str

    @property
    def holds(self) -> bool:
        return not any(self.properties.values())

    def refusal(self) -> str:
        """Why no job is run, in one line."""
        wrong = "; ".join(f"{name}: {why}" for name, why in self.properties.items() if why)
        return f"the sandbox cannot hold here ({wrong}); give it Linux 5.13+ with seccomp, and Landlock or namespaces"


class _Planted(NamedTuple):
    path: str
    socket_path: str
    name: str
    port: int
    listeners: list[socket.socket]

    def heard(self) -> bool:
        """Whether anything reached a listener."""
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(1)
                return True
        return False


def assess(layers: dict[str, Any], python: str, run: Callable[[Job], Outcome]) -> Protection:
    """Which properties hold, by the layers there are and by the attacks that `run` contains."""
    missing = layers["missing"]
    wrong = dict.fromkeys(NEEDS, "")
    for name, ways in NEEDS.items():
        lacking = [[layer for layer in way if layer in missing] for way in ways]
        if all(lacking):
            wrong[name] = " and ".join(
                f"{layer} is missing ({missing[layer]})"
                for layer in sorted({layer for way in lacking for layer in way})
            )
    if not any(wrong.values()):
        with _plant() as planted:
            wrong |= _attack(planted, run)
    return Protection(wrong, missing, layers["landlock_version"], python)


@contextlib.contextmanager
def _plant() -> Iterator[_Planted]:
    """A readable, writable file and four listeners that nothing may reach."""
    with tempfile.TemporaryDirectory(prefix="isoflop-probe-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o777)
        path = Path(folder, "planted")
        path.write_text("planted", encoding="ascii")
        path.chmod(0o666)
        kinds = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
        kinds += [(socket.AF_UNIX, socket.SOCK_STREAM)] * 2
        listeners = [stack.enter_context(socket.socket(*kind)) for kind in kinds]
        name = f"isoflop-probe-{os.getpid()}-{time.monotonic_ns()}"
        listeners[0].bind(("127.0.0.1", 0))
        port = listeners[0].getsockname()[1]
        listeners[1].bind(("127.0.0.1", port))
        listeners[2].bind(f"{folder}/socket")
        Path(folder, "socket").chmod(0o777)
        listeners[3].bind(f"\0{name}")
        for listener in listeners:
            listener.setblocking(False)
            if listener.type == socket.SOCK_STREAM:
                listener.listen()
        yield _Planted(str(path), f"{folder}/socket", name, port, listeners)


def _attack(planted: _Planted, run: Callable[[Job], Outcome]) -> dict[str, str]:
    path, least = Path(planted.path), 128 * MIB
    before = path.stat()
    found = {
        "network": _ask(run, "network", (planted.port, planted.socket_path, planted.name)),
        "files": _ask(run, "files", (planted.path,)),
        "processes": _ask(run, "processes", ()),
        "limits": _ask(run, "memory", (4 * least,), memory_bytes=least),
    }
    wrong = {name: "" if ok else said for name, (ok, said) in found.items()}
    results = {name: said for name, (ok, said) in found.items() if ok}
    if "network" in results and ("'done'" in results["network"] or planted.heard()):
        wrong["network"] = f"a connection went out: {results['network']}"
    after = path.stat() if path.exists() else None
    kept = after is not None and (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    if "files" in results and ("'done'" in results["files"] or not kept or path.read_text("ascii") != "planted"):
        wrong["files"] = f"a file outside was reached: {results['files']}"
    if "limits" in results and results["limits"] != "('denied',)":
        wrong["limits"] = "a process got four times its memory"
    ok, said = _ask(run, "hidden", (MIB,))
    if not ok or said != "([True, True],)":
        wrong["limits"] = wrong["limits"] or f"memory beside the limit can be had: {said}"
    begin = time.monotonic()
    late = run(Job(PROBE, Calls("endless", (Call((), 0),)), Limits(wall_s=0.3)))
    if late.verdict != Verdict.TIMEOUT or time.monotonic() - begin > 5:
        wrong["limits"] = wrong["limits"] or f"an endless loop was {late.verdict}, not stopped"
    return wrong


def _ask(run: Callable[[Job], Outcome], function: str, arguments: tuple[Any, ...], **limits: Any) -> tuple[bool, str]:
    """Whether a probe came back, and with what; its expected value is one that never comes."""
    outcome = run(Job(PROBE, Calls(function, (Call(arguments, "no such value"),)), Limits(wall_s=10, **limits)))
    if outcome.values:
        return True, str(outcome.values)
    return False, f"the probe {function} was {outcome.verdict}: {outcome.detail}"
