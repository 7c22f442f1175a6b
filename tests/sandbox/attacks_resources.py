"""Attacks on what they use up."""

from attacks import FAILED, KILLED, MEMORY, OUTPUT, TIMEOUT, Attack

ATTACKS = [
    Attack(
        "processes",
        "fork bomb",
        """
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
        (FAILED, TIMEOUT),
    ),
    Attack(
        "processes",
        "fork",
        """
import os
def attack(w):
    if os.fork() == 0:
        os._exit(0)
    return 'forked'
""",
    ),
    Attack(
        "processes",
        "another program",
        """
import subprocess
def attack(w):
    done = subprocess.run(['/bin/cat', w['file']], capture_output=True)
    return done.stdout
""",
    ),
    Attack(
        "processes",
        "exec",
        """
import os
def attack(w):
    os.execv('/usr/bin/python3', ['python3', '-c', 'while True: pass'])
""",
    ),
    Attack(
        "processes",
        "daemon by double fork",
        """
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
    ),
    Attack(
        "processes",
        "zombies",
        """
import os
def attack(w):
    for _ in range(8):
        if os.fork() == 0:
            os._exit(0)
    return 'left'
""",
    ),
    Attack(
        "memory",
        "thread bomb",
        """
import threading
def attack(w):
    stop = threading.Event()
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
""",
        (MEMORY,),
    ),
    Attack(
        "memory",
        "10 GB at once",
        """
def attack(w):
    return len(bytearray(10**10))
""",
        (MEMORY,),
    ),
    Attack(
        "memory",
        "10 GB bit by bit",
        """
def attack(w):
    a = []
    while True:
        a.append(bytes(10**6))
""",
        (MEMORY,),
    ),
    Attack(
        "memory",
        "10 GB while loading",
        """
a = bytearray(10**10)
""",
        (MEMORY,),
    ),
    Attack(
        "memory",
        "a huge number",
        """
def attack(w):
    return len(str(1 << (1 << 40)))
""",
        (MEMORY, FAILED),
    ),
    Attack(
        "memory",
        "memory files",
        """
import os
def attack(w):
    for i in range(1000):
        fd = os.memfd_create('x')
        for _ in range(100):
            os.write(fd, bytes(10**6))
    return 'reached'
""",
    ),
    Attack(
        "memory",
        "shared memory of System V",
        """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    return 'reached' if libc.shmget(0, 2**20, 0o1600) >= 0 else 'denied'
""",
    ),
    Attack(
        "memory",
        "a file system in memory",
        """
import ctypes
def attack(w):
    libc = ctypes.CDLL(None)
    return 'reached' if libc.unshare(0x10020000) == 0 else 'denied'
""",
    ),
    Attack(
        "memory",
        "endless recursion",
        """
import sys
sys.setrecursionlimit(10**9)
def attack(w):
    return attack(w)
""",
        (MEMORY, KILLED, FAILED, TIMEOUT),
    ),
    Attack(
        "output",
        "infinite output",
        """
def attack(w):
    while True:
        print('x' * 10000)
""",
        (OUTPUT,),
    ),
    Attack(
        "output",
        "infinite output on stderr",
        """
import os
def attack(w):
    while True:
        os.write(2, b'x' * 10000)
""",
        (OUTPUT,),
    ),
    Attack(
        "output",
        "a large value",
        """
def attack(w):
    return 'x' * (8 * 2**20)
""",
        (FAILED, OUTPUT),
    ),
    Attack(
        "output",
        "infinite replies",
        """
import os
def attack(w):
    while True:
        os.write(5, b'x' * 10000)
""",
        (OUTPUT, FAILED),
    ),
    Attack(
        "output",
        "an endless value",
        """
import itertools
def attack(w):
    return list(itertools.count())
""",
        (MEMORY,),
    ),
    Attack(
        "time",
        "infinite loop",
        """
def attack(w):
    while True:
        pass
""",
        (TIMEOUT,),
    ),
    Attack(
        "time",
        "sleep",
        """
import time
def attack(w):
    time.sleep(1000)
""",
        (TIMEOUT,),
    ),
    Attack(
        "time",
        "loop while loading",
        """
while True:
    pass
""",
        (TIMEOUT,),
    ),
    Attack(
        "time",
        "ignored signals",
        """
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
        (TIMEOUT,),
    ),
    Attack(
        "time",
        "a thread that stays",
        """
import threading, time
def attack(w):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return 'left'
""",
    ),
    Attack(
        "time",
        "an endless text of an error",
        """
class E(Exception):
    def __str__(self):
        while True:
            pass
def attack(w):
    raise E
""",
        (TIMEOUT,),
    ),
    Attack(
        "disk",
        "many small files",
        """
def attack(w):
    i = 0
    while True:
        i += 1
        open(f'f{i}', 'w').write('x' * 4000)
""",
    ),
    Attack(
        "disk",
        "empty files",
        """
def attack(w):
    i = 0
    while True:
        i += 1
        open(f'f{i}', 'w').close()
""",
    ),
    Attack(
        "disk",
        "one large file",
        """
def attack(w):
    with open('f', 'wb') as f:
        while True:
            f.write(bytes(10**6))
""",
    ),
    Attack(
        "disk",
        "a hole",
        """
def attack(w):
    with open('f', 'wb') as f:
        f.truncate(10**12)
    return 'reached'
""",
    ),
    Attack(
        "disk",
        "nested folders",
        """
import os
def attack(w):
    while True:
        os.mkdir('d')
        os.chdir('d')
""",
    ),
    Attack(
        "disk",
        "closed folders",
        """
import os
def attack(w):
    os.mkdir('d')
    os.mkdir('d/e')
    open('d/e/f', 'w')
    os.mkdir('g', 0)
    return 'left'
""",
    ),
]
