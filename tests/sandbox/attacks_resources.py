"""Attacks on what they use up."""

from attacks import FAILED, KILLED, MEMORY, OUTPUT, TIMEOUT

CODES = {
    "processes": {
        "fork bomb": """
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
""",
        "fork": """
import os
def attack(w):
    if os.fork() == 0:
        os._exit(0)
    return 'forked'
""",
        "another program": """
import subprocess
def attack(w):
    done = subprocess.run(['/bin/cat', w['file']], capture_output=True)
    return done.stdout
""",
        "exec": """
import os
def attack(w):
    os.execv('/usr/bin/python3', ['python3', '-c', 'while True: pass'])
""",
        "daemon by double fork": """
import os, time
def attack(w):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(1)
        os._exit(0)
    os.wait()
    return 'left'
""",
        "zombies": """
import os
def attack(w):
    for _ in range(8):
        if os.fork() == 0:
            os._exit(0)
    return 'left'
""",
    },
    "memory": {
        "thread bomb": """
import threading
def attack(w):
    stop = threading.Event()
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
""",
        "10 GB at once": """
def attack(w):
    return len(bytearray(10**10))
""",
        "10 GB bit by bit": """
def attack(w):
    a = []
    while True:
        a.append(bytes(10**6))
""",
        "10 GB while loading": """
a = bytearray(10**10)
""",
        "a huge number": """
def attack(w):
    return len(str(1 << (1 << 40)))
""",
        "memory files": """
import os
def attack(w):
    for i in range(1000):
        fd = os.memfd_create('x')
        for _ in range(100):
            os.write(fd, bytes(10**6))
    return 'reached'
""",
        "shared memory of System V": """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    return 'reached' if libc.shmget(0, 2**20, 0o1600) >= 0 else 'denied'
""",
        "a file system in memory": """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    return 'reached' if libc.unshare(0x10020000) == 0 else 'denied'
""",
        "endless recursion": """
import sys
sys.setrecursionlimit(10**9)
def attack(w):
    return attack(w)
""",
    },
    "output": {
        "infinite output": """
def attack(w):
    while True:
        print('x' * 10000)
""",
        "infinite output on stderr": """
import os
def attack(w):
    while True:
        os.write(2, b'x' * 10000)
""",
        "a large value": """
def attack(w):
    return 'x' * (8 * 2**20)
""",
        "infinite replies": """
import os
def attack(w):
    while True:
        os.write(5, b'x' * 10000)
""",
        "an endless value": """
import itertools
def attack(w):
    return list(itertools.count())
""",
    },
    "time": {
        "infinite loop": """
def attack(w):
    while True:
        pass
""",
        "sleep": """
import time
def attack(w):
    time.sleep(1000)
""",
        "loop while loading": """
while True:
    pass
""",
        "ignored signals": """
import signal
def attack(w):
    for n in range(1, 64):
        try:
            signal.signal(n, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass
""",
        "a thread that stays": """
import threading, time
def attack(w):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return 'left'
""",
        "an endless text of an error": """
class E(Exception):
    def __str__(self):
        while True:
            pass
def attack(w):
    raise E
""",
    },
    "disk": {
        "many small files": """
def attack(w):
    i = 0
    while True:
        i += 1
        open(f'f{i}', 'w').write('x' * 4000)
""",
        "empty files": """
def attack(w):
    i = 0
    while True:
        i += 1
        open(f'f{i}', 'w').close()
""",
        "one large file": """
def attack(w):
    with open('f', 'wb') as f:
        while True:
            f.write(bytes(10**6))
""",
        "a hole": """
def attack(w):
    with open('f', 'wb') as f:
        f.truncate(10**12)
    return 'reached'
""",
        "nested folders": """
import os
def attack(w):
    while True:
        os.mkdir('d')
        os.chdir('d')
""",
        "closed folders": """
import os
def attack(w):
    os.mkdir('d')
    os.mkdir('d/e')
    open('d/e/f', 'w')
    os.mkdir('g', 0)
    return 'left'
""",
    },
}
VERDICTS = {  # where it is not (FAILED,) alone
    "fork bomb": (FAILED, TIMEOUT),
    "thread bomb": (MEMORY,),
    "10 GB at once": (MEMORY,),
    "10 GB bit by bit": (MEMORY,),
    "10 GB while loading": (MEMORY,),
    "a huge number": (MEMORY, FAILED),
    "endless recursion": (MEMORY, KILLED, FAILED, TIMEOUT),
    "infinite output": (OUTPUT,),
    "infinite output on stderr": (OUTPUT,),
    "a large value": (FAILED, OUTPUT),
    "infinite replies": (OUTPUT, FAILED),
    "an endless value": (MEMORY,),
    "infinite loop": (TIMEOUT,),
    "sleep": (TIMEOUT,),
    "loop while loading": (TIMEOUT,),
    "ignored signals": (TIMEOUT,),
    "an endless text of an error": (TIMEOUT,),
}
