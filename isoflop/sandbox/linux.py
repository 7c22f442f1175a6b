"""The system calls that Python does not offer, through ctypes: namespaces, mounts, capabilities, Landlock.

Every function raises OSError with the name of the call. Nothing here decides anything.
"""

import ctypes
import errno
import os
import platform
import struct
from functools import lru_cache
from pathlib import Path

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
_REMOUNT, _NOATIME, _NODIRATIME, _RELATIME, _ST_RELATIME = 32, 1024, 2048, 1 << 21, 4096

_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 24, 36, 38, 47
_NUMBERS = {"x86_64": {"pivot_root": 155, "seccomp": 317}, "aarch64": {"pivot_root": 41, "seccomp": 277}}
_MOUNT_SETATTR, _LANDLOCK = 442, (444, 445, 446)  # the same on every architecture
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100


def machine() -> str:
    """The architecture, as `_NUMBERS` and the seccomp table name it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(name, _libc().syscall(ctypes.c_long(number), *wide))


def _prctl(name: str, option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(name, _libc().prctl(option, *padded))


def unshare(flags: int) -> None:
    _check("unshare", _libc().unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check("mount", _libc().mount(*encoded, ctypes.c_ulong(flags), data.encode() if data else None))


def bind_read_only(source: str, target: str, *, devices: bool = False) -> None:
    """Show `source` at `target`: no writes, no set-user-id and, unless `devices`, no devices.

    What is mounted below `source` is shown and closed likewise; kernels without mount_setattr leave it out.
    """
    mount(source, target, None, MS_BIND | MS_REC)
    try:
        _set_attributes(target, 1 | MS_NOSUID | (0 if devices else MS_NODEV), _AT_RECURSIVE)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _check("umount2", _libc().umount2(target.encode(), MNT_DETACH))
        mount(source, target, None, MS_BIND)
        _remount(target, MS_NOSUID | (0 if devices else MS_NODEV))


def make_read_only(target: str) -> None:
    """No writes to one mount; those below it stay as they are."""
    try:
        _set_attributes(target, 1 | MS_NOSUID | MS_NODEV, 0)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _remount(target, MS_NOSUID | MS_NODEV)


def _set_attributes(target: str, wanted: int, flags: int) -> None:
    attributes = struct.pack("=QQQQ", wanted, 0, 0, 0)
    _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, attributes, len(attributes))


def _remount(target: str, flags: int) -> None:
    """The older call; it must name what is set already, which a user namespace may not take away."""
    found = os.statvfs(target).f_flag
    kept = found & (MS_NODEV | MS_NOEXEC | _NOATIME | _NODIRATIME) & ~(0 if flags & MS_NODEV else MS_NODEV)
    kept |= _RELATIME if found & _ST_RELATIME else 0
    mount("none", target, None, _REMOUNT | MS_BIND | 1 | flags | kept)


def pivot_root(folder: str) -> None:
    """Make `folder` the root and drop the old one."""
    os.chdir(folder)
    _syscall("pivot_root", _NUMBERS[machine()]["pivot_root"], b".", b".")
    _check("umount2", _libc().umount2(b".", MNT_DETACH))
    os.chdir("/")


def die_with_parent() -> None:
    _prctl("prctl(PDEATHSIG)", _PDEATHSIG, 9)


def adopt_orphans() -> None:
    _prctl("prctl(CHILD_SUBREAPER)", _SUBREAPER, 1)


def hide_memory() -> None:
    """No process of the same user may read this one's memory."""
    _prctl("prctl(DUMPABLE)", _DUMPABLE, 0)


def no_new_privileges() -> None:
    _prctl("prctl(NO_NEW_PRIVS)", _NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """All of them, also those that a later program could get."""
    for capability in range(64):
        if _libc().prctl(_CAPBSET_DROP, *[ctypes.c_ulong(a) for a in (capability, 0, 0, 0)]) < 0:
            break  # the last one of this kernel, or no right to drop: then there are none to lose
    _libc().prctl(_CAP_AMBIENT, *[ctypes.c_ulong(a) for a in (4, 0, 0, 0)])
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _check("capset", _libc().capset(header, nothing))


def install_filter(program: bytes) -> None:
    """A seccomp filter for this thread and all it starts; `no_new_privileges` comes before."""
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _syscall("seccomp", _NUMBERS[machine()]["seccomp"], 1, 0, head)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 where there is none."""
    try:
        return _syscall("landlock_create_ruleset", _LANDLOCK[0], 0, 0, 1)
    except OSError:
        return 0


def landlock(version: int, readable: list[str], writable: list[str], devices: list[str]) -> None:
    """Deny this process every file but those beneath `readable` and `writable`; TCP, signals and abstract sockets too.

    What a version does not know stays open: `chmod`, `stat` and UDP in all of them.
    """
    handled = (1 << 13) - 1  # version 1: execute, write, read, list, remove, make
    handled |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    attributes = struct.pack("=QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _syscall("landlock_create_ruleset", _LANDLOCK[0], attributes, size, 0)
    reading, listing, writing = 1 << 2, 1 << 3, 1 << 1
    making = writing | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | 1 << 14  # files and folders; no links, no devices
    try:
        for path in readable:
            _allow(ruleset, path, reading | (listing if Path(path).is_dir() else 0))
        for path in writable:
            _allow(ruleset, path, (reading | listing | making) & handled)
        for path in devices:
            _allow(ruleset, path, reading | writing)
        _syscall("landlock_restrict_self", _LANDLOCK[2], ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _syscall("landlock_add_rule", _LANDLOCK[1], ruleset, 1, struct.pack("=Qi", access, fd), 0)
    finally:
        os.close(fd)
