"""Attacks on files and secrets outside."""

from attacks import FAILED, TIMEOUT

TOUCH = """
import os
def attack(w):
    {}
    return 'reached'
"""
LOOK = """
import os
def attack(w):
    return 'reached' if w['secret'][::-1] in {} else 'nothing'
"""

FILES = {  # what must not be done to them
    "delete": "os.unlink(w['file'])",
    "overwrite": "open(w['file'], 'w').write('x')",
    "append": "open(w['file'], 'a').write('x')",
    "truncate": "os.truncate(w['file'], 0)",
    "chmod": "os.chmod(w['file'], 0)",
    "times": "os.utime(w['file'], (1, 1))",
    "rename": "os.rename(w['file'], w['file'] + '2')",
    "a new file": "open(w['folder'] + '/new', 'w').close()",
    "a new folder": "os.mkdir(w['folder'] + '/new')",
    "a link in from outside": "os.link(w['file'], 'here'); open('here', 'w').write('x')",
    "a link out to overwrite": "os.symlink(w['file'], 'here'); open('here', 'w').write('x')",
    "change the interpreter": "open(os.__file__, 'a').write('#')",
}

OPENED = {  # what must not be opened, whatever it holds
    "a list of names": "os.listdir(w['folder'])",
    "the memory of its parent": "open('/proc/%d/mem' % os.getppid(), 'rb').read(1)",
    "the password file": "open('/etc/passwd').read()",
}

SEEN = {  # where the secret must not be found
    "a readable file": "open(w['file']).read()",
    "its environment": "str(dict(os.environ))",
    "the environment of the host": "open('/proc/%d/environ' % w['host']).read()",
    "the environment of its parent": "open('/proc/%d/environ' % os.getppid()).read()",
}

CODES = {
    "files": {name: TOUCH.format(work) for name, work in FILES.items()},
    "secrets": {
        **{name: TOUCH.format(work) for name, work in OPENED.items()},
        **{name: LOOK.format(where) for name, where in SEEN.items()},
        "through a link": """
import os
def attack(w):
    os.symlink(w['file'], 'here')
    return 'reached' if w['secret'][::-1] in open('here').read() else 'nothing'
""",
        "through its own descriptors": """
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
        "the environment of anyone": """
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
        "memory by process_vm_readv": """
import ctypes, os
def attack(w):
    libc = ctypes.CDLL(None)
    b = ctypes.create_string_buffer(8)
    v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)
    n = [libc.process_vm_readv(p, v, 1, v, 1, 0) for p in (w['host'], w['victim'], os.getppid())]
    return 'reached' if max(n) >= 0 else 'nothing'
""",
    },
}
VERDICTS = {  # where it is not (FAILED,) alone
    "the environment of anyone": (FAILED, TIMEOUT),
}
