"""What the sandbox costs and whether it is fair: honest jobs of HumanEval's size, and how many verdicts are false.

    python benchmarks/sandbox.py [--n 1000] [--workers 1] [--humaneval HumanEval.jsonl.gz]

Overhead of a job is the time around `Sandbox.run` less the processor time of the answer's process. Prints one JSON.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from isoflop.run import commit, processor
from isoflop.sandbox.jobs import Call, Calls, Job, Tests
from isoflop.sandbox.sandbox import Sandbox

EXERCISES = [
    (
        "primes",
        """
def primes(n):
    return [p for p in range(2, n) if all(p % q for q in range(2, p))]
""",
        (30,),
    ),
    (
        "gcd",
        """
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a
""",
        (84, 36),
    ),
    (
        "turned",
        """
def turned(text):
    return ' '.join(word[::-1] for word in text.split())
""",
        ("one two three",),
    ),
    (
        "counts",
        """
from collections import Counter
def counts(text):
    return Counter(text.lower())
""",
        ("Abracadabra",),
    ),
    (
        "flat",
        """
from typing import List
def flat(rows: List[list]) -> list:
    return [x for r in rows for x in r]
""",
        ([[1], [2, 3]],),
    ),
    (
        "mean",
        """
import statistics
def mean(values):
    return statistics.fmean(values)
""",
        ([1.5, 2.5, 4.0],),
    ),
    (
        "pairs",
        """
import itertools
def pairs(items):
    return list(itertools.combinations(items, 2))
""",
        (["a", "b", "c"],),
    ),
    (
        "roots",
        """
import math
def roots(a, b, c):
    d = math.sqrt(b * b - 4 * a * c)
    return (-b - d) / (2 * a), (-b + d) / (2 * a)
""",
        (1, -3, 2),
    ),
    (
        "spans",
        """
import re
def spans(text):
    return [m.span() for m in re.finditer(r'[0-9]+', text)]
""",
        ("a12b345",),
    ),
    (
        "big",
        """
def big(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
""",
        (2000,),
    ),
    (
        "unique",
        """
def unique(items):
    return {x for x in items if items.count(x) == 1}
""",
        ([1, 2, 2, 3],),
    ),
    (
        "heap",
        """
import heapq
def heap(items, k):
    return heapq.nlargest(k, items)
""",
        ([5, 1, 4, 2], 2),
    ),
    (
        "digest",
        """
import hashlib
def digest(text):
    return hashlib.md5(text.encode()).hexdigest()
""",
        ("isoflop",),
    ),
    (
        "parsed",
        """
import json
def parsed(text):
    return json.loads(text)
""",
        ('{"a": [1, 2.5, null, true]}',),
    ),
    (
        "noted",
        """
import tempfile
def noted(text):
    with tempfile.TemporaryFile('w+') as f:
        f.write(text)
        f.seek(0)
        return f.read()
""",
        ("note",),
    ),
    (
        "threads",
        """
from concurrent.futures import ThreadPoolExecutor
def threads(n):
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(abs, range(-n, n)))
""",
        (50,),
    ),
    (
        "waits",
        """
import asyncio
def waits(n):
    async def one(i):
        await asyncio.sleep(0)
        return i
    async def every():
        return await asyncio.gather(*map(one, range(n)))
    return asyncio.run(every())
""",
        (5,),
    ),
    (
        "sort",
        """
def sort(items):
    items.sort()
    print('sorted', len(items))
    return items
""",
        ([3, 1, 2],),
    ),
]
"""Function, program, arguments; the expected value is computed here by the same program."""


def make_jobs(n: int, generator: random.Random) -> list[tuple[Job, str]]:
    """Jobs with their right verdicts: half of them checked by asserts, a third of them with a wrong answer."""
    jobs = []
    for i in range(n):
        name, code, arguments = EXERCISES[i % len(EXERCISES)]
        namespace: dict = {}
        exec(code, namespace)
        with contextlib.redirect_stdout(io.StringIO()):
            expected = namespace[name](*json.loads(json.dumps(arguments)))
        wrong = generator.random() < 1 / 3
        answer = f"{code}\n_right = {name}\ndef {name}(*a):\n    return [_right(*a)]\n" if wrong else code
        plain = dict(expected) if isinstance(expected, Counter) else expected
        if generator.random() < 0.5:
            check = Tests(
                f"def check(candidate):\n    assert candidate(*{arguments!r}) == {plain!r}\n\ncheck({name})\n"
            )
        else:
            check = Calls(name, (Call(arguments, plain),))
        jobs.append((Job(answer, check), "failed" if wrong else "passed"))
    return jobs


def read_humaneval(path: Path, n: int) -> list[tuple[Job, str]]:
    """The file's own solutions, over and over."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    jobs = []
    for i in range(n):
        row = rows[i % len(rows)]
        tests = f"{row['test']}\ncheck({row['entry_point']})\n"
        check = Tests(tests, helpers=f"{row['prompt']}\n    pass\n", remote=(row["entry_point"],))
        jobs.append((Job(row["prompt"] + row["canonical_solution"], check), "passed"))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--humaneval", type=Path)
    options = parser.parse_args()
    jobs = read_humaneval(options.humaneval, options.n) if options.humaneval else make_jobs(options.n, random.Random(0))
    load = os.getloadavg()[0]
    with Sandbox(options.workers) as sandbox:
        sandbox.require()

        def timed(job: Job):
            begin = time.monotonic()
            outcome = sandbox.run(job)
            return outcome, time.monotonic() - begin

        begin = time.monotonic()
        with ThreadPoolExecutor(options.workers) as pool:
            found = list(pool.map(timed, [job for job, _ in jobs]))
        wall_s = time.monotonic() - begin
        missing = sandbox.protection.missing_layers
    overhead_ms = sorted(1000 * (took - outcome.cpu_s) for outcome, took in found)
    false = [(right, o.verdict, o.detail) for (_, right), (o, _) in zip(jobs, found) if o.verdict != right]
    result = {
        "n_jobs": len(jobs),
        "n_false_verdicts": len(false),
        "false_verdicts": false[:5],
        "median_overhead_ms": round(statistics.median(overhead_ms), 1),
        "p95_overhead_ms": round(overhead_ms[int(0.95 * len(overhead_ms))], 1),
        "jobs_per_s": round(len(jobs) / wall_s, 1),
        "workers": options.workers,
        "missing_layers": missing,
        "load_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)],
        "processor": processor(),
        "commit": commit(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
