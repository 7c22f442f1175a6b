"""The seccomp filter: a list of the system calls that computing needs; everything else is answered with an error.

Not on the list, so denied: sockets (all but a pair of connected ones, which asyncio uses), new processes, other
programs, links, change of mode, owner or times, mounts, namespaces, ptrace, bpf, keys, io_uring, memory outside the
address space. Some calls are allowed for some arguments only. A list of what is allowed stays right when kernels grow.
"""

import errno
import struct
from collections.abc import Sequence

from isoflop.sandbox.linux import machine

_TABLES = {
    "x86_64": """
        read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12
        rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 pread64=17 pwrite64=18 readv=19 writev=20 access=21
        pipe=22 select=23 sched_yield=24 mremap=25 msync=26 mincore=27 madvise=28 dup=32 dup2=33 pause=34
        nanosleep=35 getitimer=36 alarm=37 setitimer=38 getpid=39 sendfile=40 recvfrom=45 shutdown=48 getsockname=51
        getpeername=52 getsockopt=55 exit=60 wait4=61 uname=63 flock=73 fsync=74 fdatasync=75 truncate=76
        ftruncate=77 getdents=78 getcwd=79 chdir=80 fchdir=81 rename=82 mkdir=83 rmdir=84 creat=85 unlink=87
        readlink=89 umask=95 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99 times=100 getuid=102 getgid=104
        geteuid=107 getegid=108 getppid=110 getpgrp=111 getgroups=115 getresuid=118 getresgid=120 getpgid=121
        getsid=124 rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130 sigaltstack=131 statfs=137 fstatfs=138
        getpriority=140 sched_getparam=143 sched_getscheduler=145 sched_get_priority_max=146
        sched_get_priority_min=147 sched_rr_get_interval=148 mlock=149 munlock=150 arch_prctl=158 setrlimit=160
        gettid=186 readahead=187 time=201 futex=202 sched_getaffinity=204 epoll_create=213
        getdents64=217 set_tid_address=218 restart_syscall=219 fadvise64=221 timer_create=222 timer_settime=223
        timer_gettime=224 timer_getoverrun=225 timer_delete=226 clock_gettime=228 clock_getres=229
        clock_nanosleep=230 exit_group=231 epoll_wait=232 epoll_ctl=233 waitid=247 openat=257 mkdirat=258
        newfstatat=262 unlinkat=263 renameat=264 readlinkat=267 faccessat=269 pselect6=270 ppoll=271
        set_robust_list=273 epoll_pwait=281 signalfd=282 timerfd_create=283 eventfd=284 fallocate=285
        timerfd_settime=286 timerfd_gettime=287 signalfd4=289 eventfd2=290 epoll_create1=291 dup3=292 pipe2=293
        preadv=295 pwritev=296 getcpu=309 renameat2=316 getrandom=318 membarrier=324 mlock2=325
        copy_file_range=326 preadv2=327 pwritev2=328 statx=332 rseq=334 close_range=436 faccessat2=439
        epoll_pwait2=441 futex_waitv=449
    """,
    "aarch64": """
        getcwd=17 eventfd2=19 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 dup=23 dup3=24 flock=32 mkdirat=34
        unlinkat=35 renameat=38 statfs=43 fstatfs=44 truncate=45 ftruncate=46 fallocate=47 faccessat=48 chdir=49
        fchdir=50 openat=56 close=57 pipe2=59 getdents64=61 lseek=62 read=63 write=64 readv=65 writev=66 pread64=67
        pwrite64=68 preadv=69 pwritev=70 sendfile=71 pselect6=72 ppoll=73 signalfd4=74 readlinkat=78 newfstatat=79
        fstat=80 fsync=82 fdatasync=83 timerfd_create=85 timerfd_settime=86 timerfd_gettime=87 exit=93 exit_group=94
        waitid=95 set_tid_address=96 futex=98 set_robust_list=99 nanosleep=101 getitimer=102 setitimer=103
        timer_create=107 timer_gettime=108 timer_getoverrun=109 timer_settime=110 timer_delete=111 clock_gettime=113
        clock_getres=114 clock_nanosleep=115 sched_getscheduler=120 sched_getparam=121
        sched_getaffinity=123 sched_yield=124 sched_get_priority_max=125 sched_get_priority_min=126
        sched_rr_get_interval=127 restart_syscall=128 sigaltstack=132 rt_sigsuspend=133 rt_sigaction=134
        rt_sigprocmask=135 rt_sigpending=136 rt_sigtimedwait=137 rt_sigreturn=139 getpriority=141 getresuid=148
        getresgid=150 times=153 getpgid=155 getsid=156 getgroups=158 uname=160 getrlimit=163 setrlimit=164
        getrusage=165 umask=166 getcpu=168 gettimeofday=169 getpid=172 getppid=173 getuid=174 geteuid=175 getgid=176
        getegid=177 gettid=178 sysinfo=179 getsockname=204 getpeername=205 recvfrom=207 getsockopt=209 shutdown=210
        readahead=213 brk=214 munmap=215 mremap=216 mmap=222 fadvise64=223 mprotect=226 msync=227 mlock=228
        munlock=229 mincore=232 madvise=233 wait4=260 renameat2=276 getrandom=278 membarrier=283
        mlock2=284 copy_file_range=285 preadv2=286 pwritev2=287 statx=291 rseq=293 close_range=436 faccessat2=439
        epoll_pwait2=441 futex_waitv=449
    """,
}
"""Allowed whatever the arguments. Numbers: Linux 6.1 headers, compared in a test with those of the machine."""

_RULED = {
    "x86_64": """
        ioctl=16 sendto=44 socketpair=53 clone=56 kill=62 fcntl=72 prctl=157 tgkill=234 prlimit64=302
        clone3=435
    """,
    "aarch64": """
        fcntl=25 ioctl=29 kill=129 tgkill=131 prctl=167 socketpair=199 sendto=206 clone=220
        prlimit64=261 clone3=435
    """,
}
"""Allowed for some arguments, see `_rules`."""

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 462  # Linux 6.10; later calls do not exist as far as the job can tell
_X32 = 0x40000000
_LOAD, _EQUAL, _ABOVE, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CLONE_THREAD, _CLONE_NAMESPACES = 0x00010000, 0x7E020000
_TERMINAL_AND_PIPES = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, size, bytes ready, blocking, exec
_NAMES = (15, 16, 3, 0x53564D41)  # thread names, dumpable or not (read), names of memory areas
_OWN_FILES = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1031, 1032)  # fcntl: copies, flags, record locks, pipe sizes; no signals


def numbers(architecture: str) -> dict[str, int]:
    """Name -> number of every call that the filter lets through for some argument."""
    words = (_TABLES[architecture] + _RULED[architecture]).split()
    return {name: int(number) for name, _, number in (word.partition("=") for word in words)}


def supported() -> bool:
    return machine() in _TABLES


def build(pid: int) -> bytes:
    """The filter's program for the process `pid`, which may send signals to itself only."""
    architecture = machine()
    ruled = {word.partition("=")[0] for word in _RULED[architecture].split()}
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT[architecture]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_ABOVE, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for name, number in numbers(architecture).items():
        block = _rules(name, pid) if name in ruled else [(_RETURN, 0, 0, _ALLOW)]
        program += [(_EQUAL, 0, len(block), number), *block]
    program += [(_ABOVE, 0, 1, _NEWEST), (_RETURN, 0, 0, _ERROR | errno.ENOSYS), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _rules(name: str, pid: int) -> list[tuple[int, int, int, int]]:
    denied = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    if name == "clone3":  # flags are behind a pointer: libc then uses clone
        return [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    if name == "clone":
        flags = (_AND, 0, 0, _CLONE_THREAD | _CLONE_NAMESPACES)
        return [_argument(0), flags, (_EQUAL, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW), denied]
    if name == "sendto":  # to the connected peer: the address, a pointer of two halves, is null
        return [*_is_zero(4), (_RETURN, 0, 0, _ALLOW)]
    which, values = {
        "kill": (0, (pid,)),
        "tgkill": (0, (pid,)),
        "prlimit64": (0, (0, pid)),
        "socketpair": (0, (1,)),
        "ioctl": (1, _TERMINAL_AND_PIPES),
        "fcntl": (1, _OWN_FILES),
        "prctl": (0, _NAMES),
    }[name]
    return _one_of(which, values)


def _argument(index: int, half: int = 0) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * half)


def _is_zero(index: int) -> list[tuple[int, int, int, int]]:
    denied = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    return [_argument(index), (_EQUAL, 1, 0, 0), denied, _argument(index, 1), (_EQUAL, 1, 0, 0), denied]


def _one_of(index: int, values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *tests, (_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
