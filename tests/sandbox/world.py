"""What the attacks aim at: a file anyone may change, sockets anyone may reach, a secret; and hosts of the sandbox."""

import contextlib
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import isoflop

HERE = Path(__file__).parent
SECRET = "correct-horse-battery-staple"
CONTENT = f"planted {SECRET}\n"
LIMITS = {"wall_s": 10.0}


def interpreter(user: str) -> str:
    """A Python that `user` can start: this one, or the system's where ours lies in a closed home."""
    if not user:
        return sys.executable
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        check = "import sys; assert sys.version_info >= (3, 11)"
        with contextlib.suppress(OSError):
            if subprocess.run([path, "-c", check], capture_output=True, cwd="/", **as_user(user)).returncode == 0:
                return path
    pytest.skip(f"no Python 3.11 that {user} may start")


def as_user(name: str) -> dict[str, Any]:
    """Arguments of `subprocess` that make a child of another user."""
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []} if name else {}


class World:
    """Planted things, and whether they are as they were."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="planted-"))
        self.file = self.folder / "file"
        self.sockets: dict[str, socket.socket] = {}
        for name, family, kind in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM),
            ("unix_dgram", socket.AF_UNIX, socket.SOCK_DGRAM),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM),
        ):
            self.sockets[name] = opened = socket.socket(family, kind)
            where = {"tcp": ("127.0.0.1", 0), "udp": ("127.0.0.1", 0), "abstract": f"\0planted-{os.getpid()}"}
            opened.bind(where.get(name, str(self.folder / name)))
            opened.setblocking(False)
            if kind == socket.SOCK_STREAM:
                opened.listen()
        self.plant()

    def plant(self) -> None:
        for path in self.folder.iterdir():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                path.rmdir() if path.is_dir() else path.unlink()
        self.file.write_text(CONTENT, encoding="ascii")
        os.utime(self.file, (10**9, 10**9))
        for path in (self.folder, *self.folder.iterdir()):
            path.chmod(0o777)
        self.heard()

    def heard(self) -> list[str]:
        """Names of the sockets that something reached."""
        names = []
        for name, opened in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                if opened.type == socket.SOCK_STREAM:
                    opened.accept()[0].close()
                else:
                    opened.recv(10)
                names.append(name)
        return names

    def changed(self) -> list[str]:
        """What is not as it was planted."""
        names = sorted(path.name for path in self.folder.iterdir())
        wrong = [f"reached {name}" for name in self.heard()]
        if names != ["file", "unix", "unix_dgram"]:
            return [*wrong, f"files are {names}"]
        found = self.file.stat()
        wrong += [] if self.file.read_text(encoding="ascii") == CONTENT else ["content"]
        wrong += [] if stat.S_IMODE(found.st_mode) == 0o777 else ["mode"]
        return wrong + ([] if found.st_mtime == 10**9 else ["times"])

    def given(self) -> dict[str, Any]:
        """What an attack is told; the secret backwards, so having it forwards means that it was found."""
        ports = {name: self.sockets[name].getsockname()[1] for name in ("tcp", "udp")}
        paths = {name: str(self.folder / name) for name in ("unix", "unix_dgram")}
        more = {"abstract": f"planted-{os.getpid()}", "secret": SECRET[::-1]}
        return {"folder": str(self.folder), "file": str(self.file), **ports, **paths, **more}

    def close(self) -> None:
        for opened in self.sockets.values():
            opened.close()
        for path in self.folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        self.folder.rmdir()


class Host:
    """`host.py` as a user, on a kernel that seems to lack some layers."""

    def __init__(self, user: str = "", without: str = "") -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(isoflop.__file__).parent.parent)}
        self.process = subprocess.Popen(
            [interpreter(user), "-P", "-B", str(HERE / "host.py"), without],
            env={**environment, "SECRET": SECRET},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **as_user(user),
        )
        try:
            self.hello = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()[-2000:]
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def run(self, code: str, function: str = "attack", calls: Any = (), **limits: Any) -> dict[str, Any]:
        return self.ask(job={"code": code, "function": function, "calls": calls, "limits": {**LIMITS, **limits}})

    def test(self, code: str, tests: str, helpers: str = "", remote: Any = (), **limits: Any) -> dict[str, Any]:
        given = {"code": code, "tests": tests, "helpers": helpers, "remote": remote}
        return self.ask(job={**given, "limits": {**LIMITS, **limits}})

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.close() == 0

    def close(self) -> int:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.close()
        code = self.process.wait(timeout=30)
        self.process.stdout.close()
        self.process.stderr.close()
        return code
