"""Answers that want to pass without being right; each should have `f(3)` return 9."""

CHEATS = {
    "leave with success": """
import os
os._exit(0)
""",
    "leave with success when called": """
import os
def f(x):
    os._exit(0)
""",
    "a patched exit": """
import os
os._exit = lambda code: None
def f(x):
    raise SystemExit(0)
""",
    "a patched exit while loading": """
import os
os._exit = os.wait4 = os.close = lambda *a: None
raise SystemExit(0)
""",
    "exit while loading": """
import sys
sys.exit(0)
""",
    "an end of the loop over the tests": """
def f(x):
    raise StopIteration
""",
    "exit when called": """
def f(x):
    raise SystemExit(0)
""",
    "print passed": """
import os
def f(x):
    print('passed', flush=True)
    os._exit(0)
""",
    "equal to everything": """
class E:
    def __eq__(s, o):
        return True
    __hash__ = None
def f(x):
    return E()
""",
    "an int equal to everything": """
class E(int):
    def __eq__(s, o):
        return True
    __hash__ = int.__hash__
def f(x):
    return E(1)
""",
    "a dict equal to everything": """
class E(dict):
    def __eq__(s, o):
        return True
def f(x):
    return E()
""",
    "patched built-ins": """
import builtins
builtins.AssertionError = ()
builtins.compile = builtins.exec = lambda *a: None
builtins.isinstance = lambda *a: True
def f(x):
    return 0
""",
    "patched checker": """
import isoflop.sandbox.child as c
c.describe = lambda e: ['passed']
c.encode = lambda *a: 8
def f(x):
    return 0
""",
    "a forged result": """
import os, json, struct
t = json.dumps({'passed': True}).encode()
for fd in range(3, 10):
    try:
        os.write(fd, struct.pack('>I', len(t)) + t)
    except OSError:
        pass
def f(x):
    return 0
""",
    "a forged result instead of one": """
import os, json, struct
def f(x):
    t = json.dumps({'passed': True}).encode()
    for fd in range(3, 10):
        try:
            os.write(fd, struct.pack('>I', len(t)) + t)
        except OSError:
            pass
    os._exit(0)
""",
    "closed pipes": """
import os
os.closerange(3, 64)
def f(x):
    return 0
""",
    "closed pipes when called": """
import os
def f(x):
    os.closerange(3, 64)
""",
    "garbage instead of a value": """
import os
def f(x):
    os.write(5, b'\\xff' * 100)
    os._exit(0)
""",
    "a torn value": """
import os
def f(x):
    os.write(5, b'\\0\\0\\0\\x7f{')
    os._exit(0)
""",
    "frames of the caller": """
import sys, gc
def f(x):
    found = [o for o in gc.get_objects() if isinstance(o, dict)]
    names = [k for o in found for k in list(o) if k in ('expected', 'check', 'result')]
    frame = sys._getframe()
    while frame:
        names += [n for n in frame.f_locals if n == 'expected']
        frame = frame.f_back
    return names and 9
""",
    "an exit handler": """
import atexit, os
atexit.register(os._exit, 0)
def f(x):
    return 0
""",
    "patched equality by the collector": """
import ctypes
def f(x):
    return type('int', (int,), {'__eq__': lambda s, o: True})(0)
""",
    "replaced helper": """
def helper(x):
    return 9
def f(x):
    return 0
""",
    "replaced assert by trace": """
import sys
sys.settrace(lambda *a: None)
def f(x):
    return 0
""",
    "swallowed assertion": """
import sys
sys.excepthook = lambda *a: None
def f(x):
    raise AssertionError
""",
    "a thread that answers first": """
import os, threading, struct
t = b'{"value": {"passed": true}}'
threading.Thread(target=lambda: os.write(5, struct.pack('>I', len(t)) + t)).start()
def f(x):
    return 0
""",
}
