"""Attacks on other processes and networks."""

from attacks import FAILED, KILLED, TIMEOUT, Attack

ATTACKS = [
    Attack(
        "network",
        "TCP",
        """
import socket
def attack(w):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        s.connect(('127.0.0.1', w['tcp']))
    return "reached"
""",
    ),
    Attack(
        "network",
        "UDP",
        """
import socket
def attack(w):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.sendto(b'x', ('127.0.0.1', w['udp']))
    return "reached"
""",
    ),
    Attack(
        "network",
        "a socket with a path",
        """
import socket
def attack(w):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        s.connect(w['unix'])
    return "reached"
""",
    ),
    Attack(
        "network",
        "datagrams to a path",
        """
import socket
def attack(w):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.sendto(b'x', w['unix_dgram'])
    return "reached"
""",
    ),
    Attack(
        "network",
        "datagrams from a pair",
        """
import socket
def attack(w):
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        a.sendto(b'x', w['unix_dgram'])
    except OSError:
        a.connect(w['unix_dgram'])
    a.send(b'x')
    return 'reached'
""",
    ),
    Attack(
        "network",
        "an abstract socket",
        """
import socket
def attack(w):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        s.connect(chr(0) + w['abstract'])
    return "reached"
""",
    ),
    Attack(
        "network",
        "names",
        """
import socket
def attack(w):
    socket.getaddrinfo('localhost', 80)
    socket.create_connection(('localhost', w['tcp']), 1)
    return 'reached'
""",
    ),
    Attack(
        "signals",
        "kill the host",
        """
import os, signal
def attack(w):
    try:
        os.kill(w['host'], signal.SIGKILL)
    except OSError:
        pass
    return "tried"
""",
    ),
    Attack(
        "signals",
        "kill another process",
        """
import os, signal
def attack(w):
    try:
        os.kill(w['victim'], signal.SIGKILL)
    except OSError:
        pass
    return "tried"
""",
    ),
    Attack(
        "signals",
        "stop another process",
        """
import os, signal
def attack(w):
    try:
        os.kill(w['victim'], signal.SIGSTOP)
    except OSError:
        pass
    return "tried"
""",
    ),
    Attack(
        "signals",
        "kill the supervisor",
        """
import os, signal
def attack(w):
    try:
        os.kill(w['supervisor'], signal.SIGKILL)
    except OSError:
        pass
    return "tried"
""",
    ),
    Attack(
        "signals",
        "kill its parent",
        """
import os, signal
def attack(w):
    try:
        os.kill(os.getppid(), signal.SIGKILL)
    except OSError:
        pass
    return "tried"
""",
        (FAILED, KILLED, TIMEOUT),
    ),
    Attack(
        "signals",
        "kill everyone",
        """
import os, signal
def attack(w):
    try:
        os.kill(-1, signal.SIGKILL)
    except OSError:
        pass
    return "tried"
""",
        (FAILED, KILLED, TIMEOUT),
    ),
    Attack(
        "signals",
        "kill its group",
        """
import os, signal
def attack(w):
    try:
        os.kill(0, signal.SIGKILL)
    except OSError:
        pass
    return "tried"
""",
        (FAILED, KILLED, TIMEOUT),
    ),
    Attack(
        "signals",
        "kill through a thread's number",
        """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    for n, a in ((200, (w['victim'], 9)), (234, (w['victim'], w['victim'], 9))): libc.syscall(n, *a)
    return 'tried'
""",
    ),
    Attack(
        "signals",
        "kill through a pidfd",
        """
import os, signal
def attack(w):
    fd = os.pidfd_open(w['victim'])
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    return 'tried'
""",
    ),
    Attack(
        "signals",
        "signals of a file",
        """
import fcntl, os
def attack(w):
    r, p = os.pipe()
    fcntl.fcntl(r, fcntl.F_SETOWN, w['victim'])
    fcntl.fcntl(r, fcntl.F_SETSIG, 9)
    fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
    os.write(p, b'x')
    return 'tried'
""",
    ),
    Attack(
        "signals",
        "ptrace",
        """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    n = [libc.ptrace(16, p, 0, 0) for p in (w['victim'], w['host'])]
    return 'reached' if max(n) >= 0 else 'nothing'
""",
    ),
]
