"""Attacks on other processes and networks."""

from attacks import FAILED, KILLED, TIMEOUT

SOCKET = """
import socket
def attack(w):
    with socket.socket(socket.{}, socket.{}) as s:
        s.settimeout(1)
        s.{}
    return 'reached'
"""
KILL = """
import os, signal
def attack(w):
    try:
        os.kill({}, signal.{})
    except OSError:
        pass
    return 'tried'
"""

SOCKETS = {
    "TCP": ("AF_INET", "SOCK_STREAM", "connect(('127.0.0.1', w['tcp']))"),
    "UDP": ("AF_INET", "SOCK_DGRAM", "sendto(b'x', ('127.0.0.1', w['udp']))"),
    "a socket with a path": ("AF_UNIX", "SOCK_STREAM", "connect(w['unix'])"),
    "datagrams to a path": ("AF_UNIX", "SOCK_DGRAM", "sendto(b'x', w['unix_dgram'])"),
    "an abstract socket": ("AF_UNIX", "SOCK_STREAM", "connect(chr(0) + w['abstract'])"),
}

SIGNALS = {
    "kill the host": ("w['host']", "SIGKILL"),
    "kill another process": ("w['victim']", "SIGKILL"),
    "stop another process": ("w['victim']", "SIGSTOP"),
    "kill the supervisor": ("w['supervisor']", "SIGKILL"),
    "kill its parent": ("os.getppid()", "SIGKILL"),
    "kill everyone": ("-1", "SIGKILL"),
    "kill its group": ("0", "SIGKILL"),
}

CODES = {
    "network": {
        **{name: SOCKET.format(*how) for name, how in SOCKETS.items()},
        "datagrams from a pair": """
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
        "names": """
import socket
def attack(w):
    socket.getaddrinfo('localhost', 80)
    socket.create_connection(('localhost', w['tcp']), 1)
    return 'reached'
""",
    },
    "signals": {
        **{name: KILL.format(*how) for name, how in SIGNALS.items()},
        "kill through a thread's number": """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    for n, a in ((200, (w['victim'], 9)), (234, (w['victim'], w['victim'], 9))): libc.syscall(n, *a)
    return 'tried'
""",
        "kill through a pidfd": """
import os, signal
def attack(w):
    fd = os.pidfd_open(w['victim'])
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    return 'tried'
""",
        "signals of a file": """
import fcntl, os
def attack(w):
    r, p = os.pipe()
    fcntl.fcntl(r, fcntl.F_SETOWN, w['victim'])
    fcntl.fcntl(r, fcntl.F_SETSIG, 9)
    fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
    os.write(p, b'x')
    return 'tried'
""",
        "ptrace": """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    n = [libc.ptrace(16, p, 0, 0) for p in (w['victim'], w['host'])]
    return 'reached' if max(n) >= 0 else 'nothing'
""",
    },
}
VERDICTS = {  # where it is not (FAILED,) alone
    "kill its parent": (FAILED, KILLED, TIMEOUT),
    "kill everyone": (FAILED, KILLED, TIMEOUT),
    "kill its group": (FAILED, KILLED, TIMEOUT),
}
