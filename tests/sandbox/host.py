"""A parent of the sandbox in a process of its own, without some system calls; one JSON a line.

Started as `python host.py LAYER,LAYER`: it denies itself what the named layers need, with a filter written here, so
that the sandbox meets a kernel without them. Answers requests on standard input:
`{"job": ...}`, `{"bare": code}` (runs the code as a plain child, to show that an attack works outside), `{"look": 1}`.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import time

_X86 = platform.machine() == "x86_64"
SECCOMP, PRCTL, UNSHARE, MOUNT, SETRESUID, SETRLIMIT, PRLIMIT = (
    (317, 157, 272, 165, 117, 160, 302) if _X86 else (277, 167, 97, 40, 147, 164, 261)
)
ANY = None
DENIED = {  # layer -> (system call, index of an argument, mask, its value under the mask) with the error
    "seccomp": [(SECCOMP, 0, 0xFFFFFFFF, 1, 22), (PRCTL, 0, 0xFFFFFFFF, 22, 22)],
    "landlock": [(444, ANY, 0, 0, 38)],
    "namespaces": [(UNSHARE, ANY, 0, 0, 1)],
    "net": [(UNSHARE, 0, 0x40000000, 0x40000000, 1)],
    "pid": [(UNSHARE, 0, 0x20000000, 0x20000000, 1)],
    "ipc": [(UNSHARE, 0, 0x08000000, 0x08000000, 1)],
    "mount": [(MOUNT, ANY, 0, 0, 1)],
    "mount_setattr": [(442, ANY, 0, 0, 38)],
    "user": [(SETRESUID, ANY, 0, 0, 1)],
    "limits": [(SETRLIMIT, ANY, 0, 0, 1), (PRLIMIT, 2, ANY, 0, 1)],
}


def deny(layers):
    """Install a filter under which the kernel seems to lack `layers`."""
    program = [(0x20, 0, 0, 0)]
    for layer in layers:
        for call, argument, mask, value, error in DENIED[layer]:
            fail = (0x06, 0, 0, 0x00050000 | error)
            if argument is ANY:
                program += [(0x15, 0, 1, call), fail]
            elif mask is ANY:  # the pointer is not null
                low, high = 16 + 8 * argument, 20 + 8 * argument
                block = [(0x20, 0, 0, low), (0x15, 0, 2, 0), (0x20, 0, 0, high), (0x15, 1, 0, 0), fail, (0x20, 0, 0, 0)]
                program += [(0x15, 0, len(block), call), *block]
            else:
                block = [
                    (0x20, 0, 0, 16 + 8 * argument),
                    (0x54, 0, 0, mask),
                    (0x15, 0, 1, value),
                    fail,
                    (0x20, 0, 0, 0),
                ]
                program += [(0x15, 0, len(block), call), *block]
    program.append((0x06, 0, 0, 0x7FFF0000))
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    assert libc.syscall(SECCOMP, 1, 0, head) == 0, os.strerror(ctypes.get_errno())


def main():
    without = [name for name in sys.argv[1].split(",") if name]
    if without:
        deny(without)
    from isoflop.sandbox.jobs import Call, Calls, Job, Limits, Tests
    from isoflop.sandbox.sandbox import Sandbox

    victim = subprocess.Popen(["sleep", "1000"])
    say = lambda message: print(json.dumps(message), flush=True)
    begin = time.monotonic()
    with Sandbox() as sandbox:
        found = sandbox.protection
        layers = sandbox._workers[0].layers["missing"] if sandbox._workers else {}
        say(
            {
                "holds": found.holds,
                "properties": found.properties,
                "missing": layers,
                "start_s": time.monotonic() - begin,
            }
        )
        for line in sys.stdin:
            request = json.loads(line)
            if "bare" in request:
                code = subprocess.run(
                    [sys.executable, "-c", request["bare"]], capture_output=True, text=True, timeout=20
                )
                say({"output": code.stdout, "error": code.stderr[-300:]})
                continue
            if "look" in request:
                with open(f"/proc/{victim.pid}/stat") as file:
                    state = file.read().rpartition(")")[2].split()[0]
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                folders = [str(worker.folder) for worker in sandbox._workers]
                supervisors = [worker.process.pid for worker in sandbox._workers]
                own = {"pid": os.getpid(), "victim": victim.pid, "supervisors": supervisors, "folders": folders}
                say({**own, "state": state, "peak_kib": peak, "children": n_children()})
                continue
            given = request["job"]
            if "tests" in given:
                check = Tests(given["tests"], given.get("helpers", ""), tuple(given.get("remote", ())))
            else:
                calls = [Call(tuple(arguments), expected) for arguments, expected in given["calls"]]
                check = Calls(given["function"], tuple(calls))
            begin = time.monotonic()
            outcome = sandbox.run(Job(given["code"], check, Limits(**given.get("limits", {}))))
            took = time.monotonic() - begin
            text = {"detail": outcome.detail, "output": outcome.output, "values": repr(outcome.values)}
            say({"verdict": outcome.verdict, "took_s": took, **text})
    victim.kill()
    victim.wait()


def n_children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return len(file.read().split())


if __name__ == "__main__":
    main()
