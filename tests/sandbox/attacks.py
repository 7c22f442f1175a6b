"""The attacks: name, group, code, the verdicts that are right. Each defines `attack(w)`, which returns "reached" when it got
what it wanted; w has the planted things (`world.py`). Errors are caught only where the attack goes on after them."""

from typing import NamedTuple

FAILED, TIMEOUT, MEMORY, OUTPUT, KILLED = "failed", "timeout", "memory", "output", "killed"


class Attack(NamedTuple):
    group: str
    name: str
    code: str
    verdicts: tuple[str, ...] = (FAILED,)


_FORK_BOMB = """
import os
def attack(w):
    n = 0
    while True:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        n += 1
"""
_CONNECT = """
import socket
def attack(w):
    with socket.socket(socket.%s, socket.%s) as s:
        s.settimeout(1)
        s.%s
    return "reached"
"""
_SIGNAL = """
import os, signal
def attack(w):
    try:
        %s
    except OSError:
        pass
    return "tried"
"""
_READ = """
import os
def attack(w):
    return "reached" if w["secret"][::-1] in %s else "nothing"
"""
# the secret is handed in backwards, so finding it forwards means that it was read

ATTACKS = [
    Attack("processes", "fork bomb", _FORK_BOMB, (FAILED, TIMEOUT)),
    Attack("processes", "fork", "import os\ndef attack(w):\n    if os.fork() == 0: os._exit(0)\n    return 'forked'"),
    Attack(
        "processes",
        "another program",
        "import subprocess\ndef attack(w):\n    return subprocess.run(['/bin/cat', w['file']], capture_output=True).stdout",
    ),
    Attack(
        "processes",
        "exec",
        "import os\ndef attack(w):\n    os.execv('/usr/bin/python3', ['python3', '-c', 'while True: pass'])",
    ),
    Attack(
        "processes",
        "daemon by double fork",
        "import os, time\ndef attack(w):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            while True: time.sleep(1)\n        os._exit(0)\n    os.wait()\n    return 'left'",
    ),
    Attack(
        "processes",
        "zombies",
        "import os\ndef attack(w):\n    for _ in range(8):\n        if os.fork() == 0: os._exit(0)\n    return 'left'",
    ),
    Attack(
        "memory",
        "thread bomb",
        "import threading\ndef attack(w):\n    stop = threading.Event()\n    while True:\n"
        "        threading.Thread(target=stop.wait, daemon=True).start()",
        (MEMORY,),
    ),
    Attack("memory", "10 GB at once", "def attack(w):\n    return len(bytearray(10**10))", (MEMORY,)),
    Attack("memory", "10 GB bit by bit", "def attack(w):\n    a = []\n    while True: a.append(bytes(10**6))", (MEMORY,)),
    Attack("memory", "10 GB while loading", "a = bytearray(10**10)", (MEMORY,)),
    Attack("memory", "a huge number", "def attack(w):\n    return len(str(1 << (1 << 40)))", (MEMORY, FAILED)),
    Attack(
        "memory",
        "memory files",
        "import os\ndef attack(w):\n    for i in range(1000):\n        fd = os.memfd_create('x')\n"
        "        for _ in range(100): os.write(fd, bytes(10**6))\n    return 'reached'",
    ),
    Attack(
        "memory",
        "shared memory of System V",
        "import ctypes\ndef attack(w):\n    libc = ctypes.CDLL(None)\n"
        "    return 'reached' if libc.shmget(0, 2**20, 0o1600) >= 0 else 'denied'",
    ),
    Attack(
        "memory",
        "a file system in memory",
        "import ctypes\ndef attack(w):\n    libc = ctypes.CDLL(None)\n"
        "    return 'reached' if libc.unshare(0x10020000) == 0 else 'denied'",
    ),
    Attack("memory", "endless recursion", "import sys\nsys.setrecursionlimit(10**9)\ndef attack(w):\n    return attack(w)",
           (MEMORY, KILLED, FAILED, TIMEOUT)),
    Attack("output", "infinite output", "def attack(w):\n    while True: print('x' * 10000)", (OUTPUT,)),
    Attack("output", "infinite output on stderr", "import os\ndef attack(w):\n    while True: os.write(2, b'x' * 10000)",
           (OUTPUT,)),
    Attack("output", "a large value", "def attack(w):\n    return 'x' * (8 * 2**20)", (FAILED, OUTPUT)),
    Attack("output", "infinite replies", "import os\ndef attack(w):\n    while True: os.write(5, b'x' * 10000)",
           (OUTPUT, FAILED)),
    Attack("output", "an endless value", "import itertools\ndef attack(w):\n    return list(itertools.count())", (MEMORY,)),
    Attack("time", "infinite loop", "def attack(w):\n    while True: pass", (TIMEOUT,)),
    Attack("time", "sleep", "import time\ndef attack(w):\n    time.sleep(1000)", (TIMEOUT,)),
    Attack("time", "loop while loading", "while True: pass", (TIMEOUT,)),
    Attack(
        "time",
        "ignored signals",
        "import signal\ndef attack(w):\n    for n in range(1, 64):\n        try: signal.signal(n, signal.SIG_IGN)\n"
        "        except (OSError, ValueError): pass\n    while True: pass",
        (TIMEOUT,),
    ),
    Attack(
        "time",
        "a thread that stays",
        "import threading, time\ndef attack(w):\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    return 'left'",
    ),
    Attack("time", "an endless text of an error", "class E(Exception):\n    def __str__(self):\n        while True: pass\n"
           "def attack(w): raise E", (TIMEOUT,)),
    Attack("files", "delete", "import os\ndef attack(w):\n    os.unlink(w['file'])\n    return 'reached'"),
    Attack("files", "overwrite", "def attack(w):\n    open(w['file'], 'w').write('x')\n    return 'reached'"),
    Attack("files", "append", "def attack(w):\n    open(w['file'], 'a').write('x')\n    return 'reached'"),
    Attack("files", "truncate", "import os\ndef attack(w):\n    os.truncate(w['file'], 0)\n    return 'reached'"),
    Attack("files", "chmod", "import os\ndef attack(w):\n    os.chmod(w['file'], 0)\n    return 'reached'"),
    Attack("files", "times", "import os\ndef attack(w):\n    os.utime(w['file'], (1, 1))\n    return 'reached'"),
    Attack("files", "rename", "import os\ndef attack(w):\n    os.rename(w['file'], w['file'] + '2')\n    return 'reached'"),
    Attack("files", "a new file", "def attack(w):\n    open(w['folder'] + '/new', 'w').close()\n    return 'reached'"),
    Attack("files", "a new folder", "import os\ndef attack(w):\n    os.mkdir(w['folder'] + '/new')\n    return 'reached'"),
    Attack("files", "a link in from outside", "import os\ndef attack(w):\n    os.link(w['file'], 'here')\n"
           "    open('here', 'w').write('x')\n    return 'reached'"),
    Attack("files", "a link out to overwrite", "import os\ndef attack(w):\n    os.symlink(w['file'], 'here')\n"
           "    open('here', 'w').write('x')\n    return 'reached'"),
    Attack("files", "change the interpreter", "import os\ndef attack(w):\n    open(os.__file__, 'a').write('#')\n"
           "    return 'reached'"),
    Attack("secrets", "a readable file", _READ % "open(w['file']).read()"),
    Attack("secrets", "a list of names", "import os\ndef attack(w):\n    os.listdir(w['folder'])\n    return 'reached'"),
    Attack("secrets", "through a link", "import os\ndef attack(w):\n    os.symlink(w['file'], 'here')\n"
           "    return 'reached' if w['secret'][::-1] in open('here').read() else 'nothing'"),
    Attack("secrets", "through its own descriptors", "import os\ndef attack(w):\n    found = b''\n"
           "    for fd in range(64):\n        try:\n            os.lseek(fd, 0, 0)\n            found += os.read(fd, 10**6)\n"
           "        except OSError: pass\n    return 'reached' if w['secret'][::-1].encode() in found else 'nothing'"),
    Attack("secrets", "its environment", _READ % "str(dict(os.environ))"),
    Attack("secrets", "the environment of the host", _READ % "open(f\"/proc/{w['host']}/environ\").read()"),
    Attack("secrets", "the environment of its parent", _READ % "open(f'/proc/{os.getppid()}/environ').read()"),
    Attack("secrets", "the environment of anyone", "import os\ndef attack(w):\n    found = ''\n"
           "    for pid in range(1, 70000):\n        try: found += open(f'/proc/{pid}/environ').read()\n"
           "        except (FileNotFoundError, PermissionError, ProcessLookupError): pass\n"
           "    return 'reached' if w['secret'][::-1] in found else 'nothing'", (FAILED, TIMEOUT)),
    Attack("secrets", "the memory of its parent", "import os\ndef attack(w):\n"
           "    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)\n    return 'reached'"),
    Attack("secrets", "memory by process_vm_readv", "import ctypes, os\ndef attack(w):\n    libc = ctypes.CDLL(None)\n"
           "    b = ctypes.create_string_buffer(8)\n    v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)\n"
           "    n = [libc.process_vm_readv(p, v, 1, v, 1, 0) for p in (w['host'], w['victim'], os.getppid())]\n"
           "    return 'reached' if max(n) >= 0 else 'nothing'"),
    Attack("secrets", "the password file", "def attack(w):\n    open('/etc/passwd').read()\n    return 'reached'"),
    Attack("network", "TCP", _CONNECT % ("AF_INET", "SOCK_STREAM", "connect(('127.0.0.1', w['tcp']))")),
    Attack("network", "UDP", _CONNECT % ("AF_INET", "SOCK_DGRAM", "sendto(b'x', ('127.0.0.1', w['udp']))")),
    Attack("network", "a socket with a path", _CONNECT % ("AF_UNIX", "SOCK_STREAM", "connect(w['unix'])")),
    Attack("network", "datagrams to a path", _CONNECT % ("AF_UNIX", "SOCK_DGRAM", "sendto(b'x', w['unix_dgram'])")),
    Attack("network", "datagrams from a pair", "import socket\ndef attack(w):\n"
           "    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n    try: a.sendto(b'x', w['unix_dgram'])\n"
           "    except OSError: a.connect(w['unix_dgram'])\n    a.send(b'x')\n    return 'reached'"),
    Attack("network", "an abstract socket", _CONNECT % ("AF_UNIX", "SOCK_STREAM", "connect(chr(0) + w['abstract'])")),
    Attack("network", "names", "import socket\ndef attack(w):\n    socket.getaddrinfo('localhost', 80)\n"
           "    socket.create_connection(('localhost', w['tcp']), 1)\n    return 'reached'"),
    Attack("signals", "kill the host", _SIGNAL % "os.kill(w['host'], signal.SIGKILL)"),
    Attack("signals", "kill another process", _SIGNAL % "os.kill(w['victim'], signal.SIGKILL)"),
    Attack("signals", "stop another process", _SIGNAL % "os.kill(w['victim'], signal.SIGSTOP)"),
    Attack("signals", "kill the supervisor", _SIGNAL % "os.kill(w['supervisor'], signal.SIGKILL)"),
    Attack("signals", "kill its parent", _SIGNAL % "os.kill(os.getppid(), signal.SIGKILL)", (FAILED, KILLED, TIMEOUT)),
    Attack("signals", "kill everyone", _SIGNAL % "os.kill(-1, signal.SIGKILL)", (FAILED, KILLED, TIMEOUT)),
    Attack("signals", "kill its group", _SIGNAL % "os.kill(0, signal.SIGKILL)", (FAILED, KILLED, TIMEOUT)),
    Attack("signals", "kill through a thread's number", "import ctypes\ndef attack(w):\n    libc = ctypes.CDLL(None)\n"
           "    for n, a in ((200, (w['victim'], 9)), (234, (w['victim'], w['victim'], 9))): libc.syscall(n, *a)\n"
           "    return 'tried'"),
    Attack("signals", "kill through a pidfd", "import os, signal\ndef attack(w):\n    fd = os.pidfd_open(w['victim'])\n"
           "    signal.pidfd_send_signal(fd, signal.SIGKILL)\n    return 'tried'"),
    Attack("signals", "signals of a file", "import fcntl, os\ndef attack(w):\n    r, p = os.pipe()\n"
           "    fcntl.fcntl(r, fcntl.F_SETOWN, w['victim'])\n    fcntl.fcntl(r, fcntl.F_SETSIG, 9)\n"
           "    fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\n    os.write(p, b'x')\n    return 'tried'"),
    Attack("signals", "ptrace", "import ctypes\ndef attack(w):\n    libc = ctypes.CDLL(None)\n"
           "    n = [libc.ptrace(16, p, 0, 0) for p in (w['victim'], w['host'])]\n"
           "    return 'reached' if max(n) >= 0 else 'nothing'"),
    Attack("disk", "many small files", "def attack(w):\n    i = 0\n    while True:\n        i += 1\n"
           "        open(f'f{i}', 'w').write('x' * 4000)"),
    Attack("disk", "empty files", "def attack(w):\n    i = 0\n    while True:\n        i += 1\n"
           "        open(f'f{i}', 'w').close()"),
    Attack("disk", "one large file", "def attack(w):\n    with open('f', 'wb') as f:\n        while True: f.write(bytes(10**6))"),
    Attack("disk", "a hole", "def attack(w):\n    with open('f', 'wb') as f:\n        f.truncate(10**12)\n    return 'reached'"),
    Attack("disk", "nested folders", "import os\ndef attack(w):\n    while True:\n        os.mkdir('d')\n        os.chdir('d')"),
    Attack("disk", "closed folders", "import os\ndef attack(w):\n    os.mkdir('d')\n    os.mkdir('d/e')\n    open('d/e/f', 'w')\n"
           "    os.mkdir('g', 0)\n    return 'left'"),
]
