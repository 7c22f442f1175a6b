"""Honest jobs are judged right, dishonest ones fail, and what cannot be judged is said to be so."""

import importlib.util
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cheats import CHEATS

from isoflop.errors import IsoflopError, SandboxError
from isoflop.sandbox.jobs import MIB, Call, Calls, Job, Limits, Tests, Verdict
from isoflop.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "sandbox.py"
CLASS = "class f:\n    def __init__(self, x): self.x = x\n    def g(self): return self.x"
SQUARE = "def f(x):\n    return x * x\n"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as opened:
        opened.require()
        yield opened


def calls(expected, *arguments, **options):
    return Calls("f", (Call(arguments, expected),), **options)


def test_a_hundred_honest_jobs_get_the_right_verdicts(sandbox):
    spec = importlib.util.spec_from_file_location("sandbox_benchmark", BENCHMARK)
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    jobs = benchmark.make_jobs(100, random.Random(1))
    assert {right for _, right in jobs} == {"passed", "failed"}
    for job, right in jobs:
        outcome = sandbox.run(job)
        assert outcome.verdict == right, (job, outcome)


@pytest.mark.parametrize(
    ("code", "check", "verdict", "detail"),
    [
        (SQUARE, Tests("assert f(3) == 9"), "passed", ""),
        (SQUARE, calls(9, 3), "passed", ""),
        (SQUARE, Tests("assert f(3) == 8"), "failed", "AssertionError"),
        (SQUARE, calls(8, 3), "failed", "call 0 returned another value"),
        ("def f(x: return", calls(9, 3), "failed", "SyntaxError"),
        ("def f(x): return \ud800", calls(9, 3), "failed", "UnicodeEncodeError"),
        ("def f(x): return '\0'", calls(9, 3), "failed", ""),
        ("", Tests("assert f(3) == 9"), "failed", "AttributeError: module 'answer' has no attribute 'f'"),
        ("def f(x): raise KeyError('k')", calls(9, 3), "failed", "KeyError: 'k'"),
        ("def f(x): return input()", calls(9, 3), "failed", "EOFError"),
        ("def f(x): return f(x)", calls(9, 3), "failed", "RecursionError"),
        ("import os\ndef f(x): os.abort()", calls(9, 3), "killed", "signal 6"),
        ("import os\ndef f(x): os.kill(os.getpid(), 11)", Tests("assert f(3) == 9"), "killed", "signal 11"),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", Tests("assert f(3) == 9"), "killed", "signal 11"),
        ("def f(x): return 0.1 + 0.2", calls(0.3, 3), "failed", "call 0"),
        ("def f(x): return 0.1 + 0.2", calls(0.3, 3, tolerance=1e-9), "passed", ""),
        ("def f(x): return 10 ** 5000", calls(10**5000, 3), "passed", ""),
        ("def f(x): return float('nan')", calls(float("nan"), 3), "passed", ""),
        ("def f(x): return (1, [2, {3: {4}}], b'5', 6j)", calls((1, [2, {3: {4}}], b"5", 6j), 3), "passed", ""),
        ("def f(x): return [1]", calls((1,), 3), "failed", "call 0"),
        ("def f(x): return 1", calls(True, 3), "failed", "call 0"),
        ("def f(x): return iter([1])", calls([1], 3), "failed", "not plain data"),
        ("def f(x):\n    v = []\n    for _ in range(999): v = [v]\n    return v", calls(9, 3), "failed", "nested"),
        ("def f(x): yield from range(x)", Tests("assert list(f(3)) == [0, 1, 2]"), "passed", ""),
        ("def f(x): raise ValueError", Tests("try:\n    f(3)\n    assert 0\nexcept ValueError: pass"), "passed", ""),
        (CLASS, Tests("a = f(3)\na.x = 4\nassert a.g() == 4"), "passed", ""),
        ("def f(x): raise StopIteration", Tests("assert all(map(f, [1, 2]))"), "failed", "RemoteError: StopIteration"),
        (SQUARE, Tests("assert f(3) == undefined"), "failed", "AttributeError"),
        (SQUARE, Tests("assert h(f(3)) == 10", helpers="def h(x): return x + 1"), "passed", ""),
        ("def sum(a, b): return a - b", Tests("assert sum(3, 1) == 2", remote=("sum",)), "passed", ""),
    ],
)  # fmt: skip
def test_verdicts(sandbox, code, check, verdict, detail):
    outcome = sandbox.run(Job(code, check))
    assert outcome.verdict == verdict and detail in outcome.detail, outcome


@pytest.mark.parametrize("code", CHEATS.values(), ids=[name.replace(" ", "_") for name in CHEATS])
@pytest.mark.parametrize("kind", ["calls", "tests"])
def test_verdict_cannot_be_forged(sandbox, code, kind):
    check = calls(9, 3) if kind == "calls" else Tests("assert helper(f(3)) == 9", helpers="def helper(x): return x")
    outcome = sandbox.run(Job(code, check))
    assert outcome.verdict == Verdict.FAILED, outcome
    assert sandbox.run(Job(SQUARE, check)).verdict == Verdict.PASSED  # and nothing is left of it


def test_a_job_leaves_nothing_for_the_next(sandbox):
    leave = "import builtins\nbuiltins.left = 1\nopen('left', 'w').write('left')\ndef f(x): return 9"
    look = "import builtins, os\ndef f(x): return [hasattr(builtins, 'left'), os.listdir('.')]"
    assert sandbox.run(Job(leave, calls(9, 3))).verdict == Verdict.PASSED
    assert sandbox.run(Job(look, calls([False, []], 3))).verdict == Verdict.PASSED


def test_memory_of_earlier_jobs_is_not_inherited(sandbox):
    marker = "".join(["xyz", "zy", "-from-an-earlier-job"])
    code = (
        "import gc\ndef f(parts):\n    want, texts = ''.join(parts), []\n    for o in gc.get_objects():\n"
        "        if type(o) in (dict, list, tuple): texts += o.values() if type(o) is dict else o\n"
        "    return sum(type(t) in (str, bytes) and want in str(t) for t in texts)"
    )
    assert sandbox.run(Job(f"x = '{marker}'\ndef f(x): return x", calls(marker, marker))).verdict == Verdict.PASSED
    outcome = sandbox.run(Job(code, calls(0, [marker[:3], marker[3:]])))
    assert outcome.verdict == Verdict.PASSED, outcome


def test_printed_text_comes_back_up_to_the_cap(sandbox):
    code = "def f(x):\n    print('a' * x)\n    return x"
    outcome = sandbox.run(Job(code, calls(5000, 5000), Limits(output_bytes=10_000)))
    assert outcome.verdict == "passed" and outcome.output == "a" * 5000 + "\n"
    outcome = sandbox.run(Job(code, calls(20_000, 20_000), Limits(output_bytes=10_000)))
    assert outcome.verdict == "output" and outcome.output == "a" * 10_000
    assert outcome.detail == "printed more than 10000 bytes"


def test_several_calls_are_compared_in_order(sandbox):
    check = Calls("f", tuple(Call((i,), i * i) for i in range(50)))
    assert sandbox.run(Job(SQUARE, check)).values == tuple(i * i for i in range(50))
    outcome = sandbox.run(Job("def f(x): return x * x if x < 20 else 0", check))
    assert (outcome.verdict, outcome.detail, len(outcome.values)) == ("failed", "call 20 returned another value", 21)


def test_a_killed_supervisor_is_replaced_and_its_job_refused(sandbox):
    worker = sandbox._workers[0]
    worker.process.kill()
    outcome = sandbox.run(Job(SQUARE, calls(9, 3)))
    assert outcome.verdict == Verdict.REFUSED and "the supervisor ended" in outcome.detail
    assert sandbox.run(Job(SQUARE, calls(9, 3))).verdict == Verdict.PASSED


def test_an_interrupted_job_is_not_mistaken_for_the_next(sandbox, monkeypatch):
    worker = sandbox._workers[0]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(worker, "_collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sandbox.run(Job(SQUARE, calls(9, 3)))
    assert sandbox.run(Job("def f(x): return 0", calls(9, 3))).verdict == Verdict.FAILED
    assert sandbox.run(Job(SQUARE, calls(9, 3))).verdict == Verdict.PASSED


def test_a_restarted_supervisor_with_other_layers_runs_nothing(monkeypatch):
    with Sandbox() as opened:
        opened.require()
        worker = opened._workers[0]
        start = worker._start

        def weaker():
            start()
            worker.layers["missing"]["landlock"] = "gone"

        monkeypatch.setattr(worker, "_start", weaker)
        worker.process.kill()
        assert opened.run(Job(SQUARE, calls(9, 3))).verdict == Verdict.REFUSED
        outcome = opened.run(Job(SQUARE, calls(9, 3)))
        assert outcome.verdict == Verdict.REFUSED and "lacks other layers: {'landlock': 'gone'}" in outcome.detail


def test_workers_run_side_by_side_in_order():
    jobs = [Job(SQUARE, calls(i * i if i % 3 else -1, i)) for i in range(12)]
    with Sandbox(n_workers=2) as opened:
        assert [o.verdict == "passed" for o in opened.run_all(jobs)] == [bool(i % 3) for i in range(12)]


def test_packages_can_be_offered(tmp_path):
    (tmp_path / "offered.py").write_text("VALUE = 9\n")
    tmp_path.chmod(0o755)
    with Sandbox(packages=[tmp_path]) as opened:
        outcome = opened.run(Job("import offered\ndef f(x): return offered.VALUE", calls(9, 3)))
    assert outcome.verdict == "passed" or opened.protection.missing_layers, outcome


def test_a_value_that_does_not_cross_is_refused_before_anything_runs(sandbox):
    outcome = sandbox.run(Job(SQUARE, calls(9, object())))
    assert outcome.verdict == "refused" and "a value of type object is not plain data" in outcome.detail


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"wall_s": 0}, "limits.wall_s = 0 must be above 0 and finite; give seconds"),
        ({"wall_s": float("inf")}, "limits.wall_s = inf must be above 0"),
        ({"memory_bytes": MIB}, "limits.memory_bytes = 1048576 must be at least 134217728; give more"),
        ({"output_bytes": 0}, "limits.output_bytes = 0 must be at least 1"),
        ({"n_threads": -1}, "limits.n_threads = -1 must be at least 0"),
    ],
)
def test_limits_have_limits(limits, message):
    with pytest.raises(IsoflopError, match=message.replace(".", r"\.")):
        Limits(**limits)


def test_a_sandbox_has_a_worker():
    with pytest.raises(SandboxError, match="n_workers = 0 must be at least 1"):
        Sandbox(0)


def test_jobs_side_by_side_do_not_see_each_other():
    """One job holds a secret in its folder, its memory and its arguments while another looks for it."""
    secret = "kept-by-the-other-job"
    keep = (
        "import time\ndef f(x):\n    open('kept', 'w').write(x)\n    end = time.monotonic() + 2\n"
        "    while time.monotonic() < end: time.sleep(0.01)\n    return 9"
    )
    look = """
import glob, os
def f(start, shared):
    found = []
    for pattern in (f"{shared}/**", "/proc/*/cwd/*", "/proc/*/environ", "/proc/*/fd/*", "/job/**", "../**"):
        for path in glob.iglob(pattern, recursive=True):
            try:
                with open(path, "rb") as file:
                    found.append(file.read(10**6))
            except OSError:
                pass
    return any(start[::-1].encode() in text for text in found)
"""
    with Sandbox(n_workers=2) as opened, ThreadPoolExecutor(2) as pool:
        first = pool.submit(opened.run, Job(keep, calls(9, secret)))
        second = pool.submit(opened.run, Job(look, calls(False, secret[::-1], tempfile.gettempdir())))
        assert second.result().verdict == Verdict.PASSED, second.result()
        assert first.result().verdict == Verdict.PASSED
