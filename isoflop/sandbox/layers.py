"""What stands around a job, in two steps: `detach`, once for each supervisor, and `confine`, for each process of a job.

`detach` leaves the machine behind as far as the kernel lets it: a user namespace, a root of read-only folders, a
network without interfaces, no shared memory of System V. `confine` does the rest after the fork: limits, another
user, no capabilities, Landlock, seccomp. Every layer is tried by itself; its reason stands in `Layers.missing` where it
cannot be had, and what was there at the start is required of every job.
"""

import contextlib
import errno
import os
import resource
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.sandbox import linux, seccomp

LAYERS = ("limits", "seccomp", "landlock", "mount", "pid", "net", "ipc", "nested", "user")
JOB = "/job"
"""The job's own folder in a root of our own."""
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
OTHER_USERS = 1_800_000_000  # assumption: user ids that nobody has; below 2**31, above those of containers' ranges
LANDLOCK_LEAST = 3  # the first version that denies truncation


@dataclass
class Layers:
    """Which layers hold here; names are those of `LAYERS`."""

    missing: dict[str, str] = field(default_factory=dict)
    landlock_version: int = 0
    users: tuple[int, int] | None = None
    """User ids for the answer and for the tests, where this process may change its own."""
    own_namespace: bool = False
    readable: list[str] = field(default_factory=list)
    n_own: int = 0
    """Processes of the job's user that are not the job's, where the kernel counts them together."""

    def has(self, name: str) -> bool:
        return name not in self.missing

    @contextlib.contextmanager
    def trying(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.missing[name] = str(error)


def readable_folders(packages: list[str]) -> list[str]:
    """The interpreter, the libraries of the system and what the user adds; none within another."""
    own = [f"{sys.base_prefix}/lib", sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    found: list[str] = []
    for path in (*SYSTEM, *own, *packages):
        inside = any(Path(path).is_relative_to(folder) for folder in found)
        if path and Path(path).exists() and not inside:
            found.append(path)
    return found


def detach(folder: Path, packages: list[str]) -> Layers:
    """Put this process where its children will be; it can still do what it is told through open descriptors only."""
    layers = Layers(readable=readable_folders(packages))
    is_root = os.geteuid() == 0
    users = (OTHER_USERS + 2 * os.getpid(), OTHER_USERS + 2 * os.getpid() + 1) if is_root else None
    with contextlib.suppress(OSError):
        _own_user_namespace(users)
        layers.own_namespace = True
    with layers.trying("net"):
        linux.unshare(linux.NEWNET)
    with layers.trying("ipc"):
        linux.unshare(linux.NEWIPC)
        for name, value in (("shmall", "0"), ("msgmni", "0"), ("sem", "0 0 0 0")):
            Path(f"/proc/sys/kernel/{name}").write_text(value, encoding="ascii")
    with layers.trying("nested"):
        if not layers.own_namespace:
            raise OSError(errno.EPERM, "no user namespace of its own to close")
        Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="ascii")
    with layers.trying("mount"):
        linux.unshare(linux.NEWNS)
        _new_root(folder, layers.readable)
    with layers.trying("pid"):
        _in_child(lambda: linux.unshare(linux.NEWPID))
    with layers.trying("limits"):
        _in_child(lambda: set_limits({"memory_bytes": 2**28, "wall_s": 1, "disk_bytes": 2**20}, None))
    with layers.trying("landlock"):
        layers.landlock_version = linux.landlock_version()
        if layers.landlock_version < LANDLOCK_LEAST:
            raise OSError(errno.ENOSYS, f"version {layers.landlock_version} of at least {LANDLOCK_LEAST}")
        _in_child(lambda: _landlock(layers, str(folder) if not layers.has("mount") else JOB))
    with layers.trying("seccomp"):
        if not seccomp.supported():
            raise OSError(errno.ENOSYS, f"no list of system calls for {linux.machine()}")
        _in_child(_filter)
    with layers.trying("user"):
        if users:
            _in_child(lambda: _become(users[0], layers.readable))
            layers.users = users
    if not users and layers.own_namespace:
        layers.n_own = 8  # supervisor, two starters, two keepers, and room for those that are just ending
    return layers


def confine(layers: Layers, limits: dict[str, Any], *, role: int, folder: str) -> None:
    """The last steps of a process before it runs what others wrote.

    Raises:
        OSError: a layer that was there at the start is not there now.
    """
    if layers.users:
        _become(layers.users[role], [])
    n_others = 0 if layers.users else layers.n_own
    counted = layers.users is not None or layers.own_namespace
    set_limits(limits, n_others + 1 + limits["n_threads"] if counted else None)
    linux.die_with_parent()  # after the change of user, which clears it
    linux.drop_capabilities()
    linux.no_new_privileges()
    if layers.has("landlock"):
        _landlock(layers, folder)
    if layers.has("seccomp"):
        linux.install_filter(seccomp.build(os.getpid()))


def set_limits(limits: dict[str, Any], n_processes: int | None) -> None:
    """Resource limits of this process, hard and soft alike."""
    seconds = int(-(-limits["wall_s"] // 1)) + 1
    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: 8 * 2**20,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if n_processes is not None:
        wanted[resource.RLIMIT_NPROC] = n_processes
    for which, most in wanted.items():
        hard = resource.getrlimit(which)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (least, least))


def _own_user_namespace(users: tuple[int, int] | None) -> None:
    """Root stays root inside, the others become it; a child that stays outside writes who is who."""
    uid, gid, parent = os.geteuid(), os.getegid(), os.getpid()
    more = f"{users[0]} {users[0]} 2\n" if users else ""
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        code = 1
        with contextlib.suppress(OSError):
            os.close(go)
            if os.read(ready, 1):
                for name, text in (
                    ("setgroups", "" if users else "deny"),
                    ("uid_map", f"0 {uid} 1\n{more}"),
                    ("gid_map", f"0 {gid} 1\n{more}"),
                ):
                    if text:
                        Path(f"/proc/{parent}/{name}").write_text(text, encoding="ascii")
                code = 0
        os._exit(code)
    os.close(ready)
    try:
        linux.unshare(linux.NEWUSER)
        os.write(go, b"1")
    finally:
        os.close(go)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError(errno.EPERM, "uid_map: not written")


def _new_root(folder: Path, readable: list[str]) -> None:
    """A root of the readable folders, four devices and an empty place for the job; nothing else, not even /proc."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    root = str(folder)
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,nr_inodes=1024,mode=755")
    for path in readable:
        target = Path(root + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_symlink():
            target.symlink_to(Path(path).readlink())
            continue
        if Path(path).is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        linux.bind_read_only(path, str(target))
    for path in DEVICES:
        target = Path(root + path)
        target.parent.mkdir(exist_ok=True)
        target.touch()
        linux.bind_read_only(path, str(target), devices=True)
    Path(root + JOB).mkdir()
    linux.make_read_only(root)
    linux.pivot_root(root)


def own_folder(limits: dict[str, Any], user: int | None) -> None:
    """A file system of fixed size at `JOB`, in a mount namespace of its own; it ends with its last process."""
    linux.unshare(linux.NEWNS)
    size = f"size={max(limits['disk_bytes'], 4096)},nr_inodes={limits['n_files'] + 1},mode=700"
    owner = f",uid={user},gid={user}" if user is not None else ""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", JOB, "tmpfs", flags, size + owner)


def _become(user: int, readable: list[str]) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    for path in readable:
        if Path(path).is_dir():
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))  # an interpreter in a closed home cannot be used


def _landlock(layers: Layers, folder: str) -> None:
    linux.no_new_privileges()
    linux.landlock(layers.landlock_version, layers.readable, [folder], list(DEVICES))


def _filter() -> None:
    linux.no_new_privileges()
    linux.install_filter(seccomp.build(os.getpid()))


def _in_child(attempt: Any) -> None:
    """Try something that cannot be undone in a process that ends after it."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        text = b"-"
        try:
            attempt()
            text = b"+"
        except (OSError, ValueError) as error:
            text = str(error).encode()[:500]
        finally:
            os.write(done, text)
            os._exit(0)
    os.close(done)
    with open(ready, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    if answer != b"+":
        raise OSError(errno.EPERM, answer.decode())
