"""Attacks on files and secrets outside."""

from attacks import FAILED, TIMEOUT, Attack

ATTACKS = [
    Attack(
        "files",
        "delete",
        """
import os
def attack(w):
    os.unlink(w['file'])
    return 'reached'
""",
    ),
    Attack(
        "files",
        "overwrite",
        """
def attack(w):
    open(w['file'], 'w').write('x')
    return 'reached'
""",
    ),
    Attack(
        "files",
        "append",
        """
def attack(w):
    open(w['file'], 'a').write('x')
    return 'reached'
""",
    ),
    Attack(
        "files",
        "truncate",
        """
import os
def attack(w):
    os.truncate(w['file'], 0)
    return 'reached'
""",
    ),
    Attack(
        "files",
        "chmod",
        """
import os
def attack(w):
    os.chmod(w['file'], 0)
    return 'reached'
""",
    ),
    Attack(
        "files",
        "times",
        """
import os
def attack(w):
    os.utime(w['file'], (1, 1))
    return 'reached'
""",
    ),
    Attack(
        "files",
        "rename",
        """
import os
def attack(w):
    os.rename(w['file'], w['file'] + '2')
    return 'reached'
""",
    ),
    Attack(
        "files",
        "a new file",
        """
def attack(w):
    open(w['folder'] + '/new', 'w').close()
    return 'reached'
""",
    ),
    Attack(
        "files",
        "a new folder",
        """
import os
def attack(w):
    os.mkdir(w['folder'] + '/new')
    return 'reached'
""",
    ),
    Attack(
        "files",
        "a link in from outside",
        """
import os
def attack(w):
    os.link(w['file'], 'here')
    open('here', 'w').write('x')
    return 'reached'
""",
    ),
    Attack(
        "files",
        "a link out to overwrite",
        """
import os
def attack(w):
    os.symlink(w['file'], 'here')
    open('here', 'w').write('x')
    return 'reached'
""",
    ),
    Attack(
        "files",
        "change the interpreter",
        """
import os
def attack(w):
    open(os.__file__, 'a').write('#')
    return 'reached'
""",
    ),
    Attack(
        "secrets",
        "a readable file",
        """
import os
def attack(w):
    return "reached" if w["secret"][::-1] in open(w['file']).read() else "nothing"
""",
    ),
    Attack(
        "secrets",
        "a list of names",
        """
import os
def attack(w):
    os.listdir(w['folder'])
    return 'reached'
""",
    ),
    Attack(
        "secrets",
        "through a link",
        """
import os
def attack(w):
    os.symlink(w['file'], 'here')
    return 'reached' if w['secret'][::-1] in open('here').read() else 'nothing'
""",
    ),
    Attack(
        "secrets",
        "through its own descriptors",
        """
import os
def attack(w):
    found = b''
    for fd in range(64):
        try:
            os.lseek(fd, 0, 0)
            found += os.read(fd, 10**6)
        except OSError:
            pass
    return 'reached' if w['secret'][::-1].encode() in found else 'nothing'
""",
    ),
    Attack(
        "secrets",
        "its environment",
        """
import os
def attack(w):
    return "reached" if w["secret"][::-1] in str(dict(os.environ)) else "nothing"
""",
    ),
    Attack(
        "secrets",
        "the environment of the host",
        """
import os
def attack(w):
    return "reached" if w["secret"][::-1] in open(f"/proc/{w['host']}/environ").read() else "nothing"
""",
    ),
    Attack(
        "secrets",
        "the environment of its parent",
        """
import os
def attack(w):
    return "reached" if w["secret"][::-1] in open(f'/proc/{os.getppid()}/environ').read() else "nothing"
""",
    ),
    Attack(
        "secrets",
        "the environment of anyone",
        """
import os
def attack(w):
    found = ''
    for pid in range(1, 70000):
        try:
            found += open(f'/proc/{pid}/environ').read()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            pass
    return 'reached' if w['secret'][::-1] in found else 'nothing'
""",
        (FAILED, TIMEOUT),
    ),
    Attack(
        "secrets",
        "the memory of its parent",
        """
import os
def attack(w):
    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)
    return 'reached'
""",
    ),
    Attack(
        "secrets",
        "memory by process_vm_readv",
        """
import ctypes, os
def attack(w):
    libc = ctypes.CDLL(None)
    b = ctypes.create_string_buffer(8)
    v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)
    n = [libc.process_vm_readv(p, v, 1, v, 1, 0) for p in (w['host'], w['victim'], os.getppid())]
    return 'reached' if max(n) >= 0 else 'nothing'
""",
    ),
    Attack(
        "secrets",
        "the password file",
        """
def attack(w):
    open('/etc/passwd').read()
    return 'reached'
""",
    ),
]
