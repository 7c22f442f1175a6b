"""One supervisor as seen from the parent: start it, hand it a job, collect what comes back, never wait without an end.

The parent reads pipes up to a cap, decodes typed values and compares them. It never runs anything, and it never
believes an exit code.
"""

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import SandboxError
from isoflop.sandbox.child import OUT_OF_MEMORY
from isoflop.sandbox.jobs import Call, Calls, Job, Outcome, Tests, Verdict
from isoflop.sandbox.values import ValueRefused, decode, encode, frame, same, split_frames

START_S = 30.0  # assumption: for the interpreter and the layers, on a busy machine
LATE_S = 10.0  # assumption: how long after the job's limit the supervisor may take to answer
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    "MALLOC_ARENA_MAX": "2",  # each arena reserves address space, which is limited
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # the same order of sets in every job
    "PYTHONDONTWRITEBYTECODE": "1",
}
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from isoflop.sandbox.supervisor import main; main()"


@dataclass
class _Pipes:
    """Descriptors of one job: what the roles get, and what the parent reads."""

    given: list[int] = field(default_factory=list)
    roles: list[tuple[str, int]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    """Printed text: of the answer, of the tests."""
    result: int = -1

    def close(self) -> None:
        for fd in (*self.given, *self.outputs, self.result):
            with contextlib.suppress(OSError):
                os.close(fd)


class Worker:
    """A supervisor process; one job at a time."""

    def __init__(self, packages: tuple[str, ...] = ()) -> None:
        self.packages = packages
        self.layers: dict[str, Any] = {}
        self.python = ""
        self.busy = False
        """A job was handed over and has not ended: also after an interruption, when the supervisor still has it."""
        self.broken = ""
        """Why no further job is run."""
        self._start()

    def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="isoflop-sandbox-"))
        self.folder.chmod(0o711)  # passable, not readable: jobs of another user have their folders in it
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parts = [_BOOT, str(Path(__file__).resolve().parents[2]), str(theirs.fileno()), str(self.folder)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-P", "-B", "-c", *parts, *self.packages],
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        self.connection = ours
        hello = self._receive(START_S)
        if hello is None:
            error = self._stop()
            raise SandboxError(
                f"sandbox: the supervisor did not start ({error or 'no message'}); it needs {sys.executable} and its "
                "standard library to be readable"
            )
        self.layers, self.python = hello["layers"], hello["python"]

    def _receive(self, within_s: float) -> dict[str, Any] | None:
        self.connection.settimeout(within_s)
        try:
            text = self.connection.recv(2**16)
        except OSError:
            return None
        return json.loads(text) if text else None

    def _stop(self) -> str:
        """End the supervisor, and with it all it started; what it said last."""
        self.connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        with self.process.stderr as file:
            os.set_blocking(file.fileno(), False)
            text = (file.read(2**14) or b"").decode("utf-8", "replace").strip()
        shutil.rmtree(self.folder, ignore_errors=True)
        return text.splitlines()[-1][:300] if text else ""

    def close(self) -> None:
        self._stop()

    def _restart(self) -> str:
        """A fresh supervisor, which must have the layers of the first; what the old one said last."""
        said, before = self._stop(), set(self.layers["missing"])
        try:
            self._start()
        except SandboxError as error:
            self.broken = str(error)
        if set(self.layers["missing"]) != before:
            self.broken = f"a restarted supervisor lacks other layers: {self.layers['missing']}"
        self.busy = False
        return said

    def run(self, job: Job) -> Outcome:
        """Run one job; whatever it does, this returns within its limit and `LATE_S`."""
        if self.busy and not self.broken:
            self._restart()
        if self.broken:
            return Outcome(Verdict.REFUSED, self.broken)
        try:
            pipes = _open(job)
        except ValueRefused as error:
            return Outcome(Verdict.REFUSED, str(error))
        self.busy = True
        try:
            request = {"limits": asdict(job.limits), "roles": pipes.roles}
            socket.send_fds(self.connection, [json.dumps(request).encode()], pipes.given)
            for fd in pipes.given:
                os.close(fd)
            pipes.given.clear()
            texts, answer, above = self._collect(job, pipes)
        except OSError as error:
            answer, texts, above = None, {}, str(error)
        finally:
            pipes.close()
        self.busy = False
        if answer is None:
            said = self._restart()
            return Outcome(Verdict.REFUSED, f"the supervisor ended or fell silent: {said or above or 'no message'}")
        return _judge(job, pipes, texts, answer, above)

    def _collect(self, job: Job, pipes: _Pipes) -> tuple[dict[int, bytearray], dict[str, Any] | None, str]:
        """Read all pipes up to the cap until the supervisor has answered and everything is closed."""
        readable = [*pipes.outputs, pipes.result]
        texts, answer, above = {fd: bytearray() for fd in readable}, None, ""
        caps = dict.fromkeys(readable, job.limits.output_bytes)
        if isinstance(job.check, Calls):
            caps[pipes.result] += 64 * (len(job.check.calls) + 1)  # what frames add
        deadline = time.monotonic() + job.limits.wall_s + LATE_S
        with selectors.DefaultSelector() as selector:
            for fd in (*readable, self.connection.fileno()):
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    return texts, answer, "no end in time"
                for key, _ in events:
                    if key.fd == self.connection.fileno():
                        answer = self._receive(1.0)
                        if answer is None:
                            return texts, None, ""
                        selector.unregister(key.fd)
                        continue
                    room = caps[key.fd] - len(texts[key.fd])
                    part = os.read(key.fd, min(2**16, room + 1))
                    texts[key.fd] += part[:room]
                    if len(part) > room and not above:
                        above = "printed" if key.fd in pipes.outputs else "handed back"
                        if answer is None:
                            self.connection.send(b'{"kill": true}')
                    if not part or len(part) > room:
                        selector.unregister(key.fd)
        return texts, answer, above


def _open(job: Job) -> _Pipes:
    """The descriptors that a job needs; code and calls lie in memory files, so nobody waits for a reader."""
    pipes = _Pipes()
    readers: list[int] = []

    def pipe(read_here: bool) -> tuple[int, int]:
        read, write = os.pipe()
        if read_here:
            readers.append(read)
        return read, write

    try:
        answer = frame({"code": job.code})
        if isinstance(job.check, Calls):
            wanted = job.check
            requests = b"".join(frame(_request(wanted.function, call)) for call in wanted.calls)
            out, replies = pipe(True), pipe(True)
            pipes.given = [out[1], _memory_file(answer), _memory_file(requests), replies[1]]
            pipes.roles, pipes.outputs, pipes.result = [("answer", 4)], [out[0]], replies[0]
        else:
            tests = {"code": job.check.code, "helpers": job.check.helpers, "remote": job.check.remote}
            out, said, calls, replies, result = pipe(True), pipe(True), pipe(False), pipe(False), pipe(True)
            pipes.given = [out[1], _memory_file(answer), calls[0], replies[1]]
            pipes.given += [said[1], _memory_file(frame(tests)), calls[1], replies[0], result[1]]
            pipes.roles, pipes.outputs = [("answer", 4), ("tests", 5)], [out[0], said[0]]
            pipes.result = result[0]
    except BaseException:
        pipes.close()
        for fd in readers:
            os.close(fd)
        raise
    return pipes


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("job")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _request(function: str, call: Call) -> dict[str, Any]:
    keywords = {name: encode(value) for name, value in call.keywords.items()}
    return {"do": "call", "on": function, "arguments": [encode(a) for a in call.arguments], "keywords": keywords}


def _judge(job: Job, pipes: _Pipes, texts: dict[int, bytearray], answer: dict[str, Any], above: str) -> Outcome:
    """The verdict, from what the supervisor saw and what the parent compared."""
    ends = answer["ends"]
    output = bytes(texts[pipes.outputs[0]]).decode("utf-8", "replace")
    used = {
        "output": output,
        "wall_s": answer["wall_s"],
        "cpu_s": ends[0].get("cpu_s", 0.0),
        "max_rss_bytes": ends[0].get("max_rss_bytes", 0),
    }
    if answer["setup"] or not (any(ends) or answer["timeout"] or above or answer["disk"]):
        return Outcome(Verdict.REFUSED, f"not run: {answer['setup'] or 'the process was not set up'}", **used)
    if above:
        return Outcome(Verdict.OUTPUT, f"{above} more than {job.limits.output_bytes} bytes", **used)
    seconds = job.limits.wall_s
    if answer["timeout"] or any(end.get("status") in (-9, -24) and end["cpu_s"] >= seconds for end in ends):
        return Outcome(Verdict.TIMEOUT, f"more than {seconds:g} s", **used)
    if answer["disk"]:
        limits = job.limits
        return Outcome(Verdict.FAILED, f"wrote more than {limits.disk_bytes} bytes or {limits.n_files} files", **used)
    passed, detail, values = _result(job.check, bytes(texts[pipes.result]))
    if passed:
        return Outcome(Verdict.PASSED, "", values=values, **used)
    code = ends[0].get("status", 0)
    if detail.startswith("MemoryError") or code == OUT_OF_MEMORY:
        return Outcome(Verdict.MEMORY, f"more than {job.limits.memory_bytes} bytes", values=values, **used)
    if code < 0:
        return Outcome(Verdict.KILLED, f"signal {-code}", values=values, **used)
    return Outcome(Verdict.FAILED, detail, values=values, **used)


def _result(check: Calls | Tests, data: bytes) -> tuple[bool, str, tuple[Any, ...]]:
    """Whether the check holds, what does not, and the values that came."""
    values: list[Any] = []
    try:
        frames = split_frames(data)
        if isinstance(check, Tests):
            if not frames:
                return False, "the tests did not end", ()
            *names, text = map(str, frames[0].get("raised", [""]))
            return frames[0]["passed"] is True, _error(names, text), ()
        if not frames:
            return False, "the answer ended while it was loaded", ()
        for i, reply in enumerate(frames):
            if "raised" in reply:
                *names, text = map(str, reply["raised"])
                return False, _error(names, text), tuple(values)
            value = decode(reply["value"])
            if i == 0:
                continue  # it was loaded
            values.append(value)
            if i > len(check.calls):
                return False, "more values than calls", tuple(values)
            if not same(check.calls[i - 1].expected, value, check.tolerance):
                return False, f"call {i - 1} returned another value", tuple(values)
    except (ValueRefused, TypeError, KeyError, AttributeError, ValueError) as error:
        return False, f"what came back is no value: {str(error)[:200]}", tuple(values)
    if len(values) < len(check.calls):
        return False, f"{len(values)} of {len(check.calls)} calls returned", tuple(values)
    return True, "", tuple(values)


def _error(names: list[str], text: str) -> str:
    return f"{names[0]}: {text}" if names and text else (names or [""])[0]
