"""LeetCode weekly contests: a problem in words and a class to complete; asserts over its methods."""

import re
from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Question, Task
from isoflop.sandbox.jobs import Job, Limits, Tests

IMPORTS = "from typing import *\nfrom collections import *\nfrom itertools import *\nfrom functools import *\n"
IMPORTS += (
    "import bisect, heapq, math, random, re, string\nfrom bisect import *\nfrom heapq import *\nfrom math import *\n"
)
IMPORTS += "from math import inf\n"
"""What LeetCode itself has imported."""


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    gold = {"test": row["test"], "start_time": int(row["start_time"])}
    yield Question(row["task_id"], row["prompt_sft"], gold, (), 1024)


def extract(output: str) -> str:
    """The last block of code that has a class or a function; the whole output where there is no block."""
    blocks = re.findall(r"```[a-zA-Z0-9_+-]*\n(.*?)(?:```|\Z)", output, flags=re.DOTALL)
    return next((b for b in reversed(blocks) if "class " in b or "def " in b), blocks[-1] if blocks else output)


def job(question: Question, output: str) -> Job:
    code = f"{IMPORTS}\n{extract(output)}"
    return Job(code, Tests(question.gold["test"], helpers=IMPORTS, remote=("Solution",)), Limits(wall_s=20))


TASK = Task(
    name="leetcode",
    read=each_line(_make, "leetcode", "20240121-Jul.jsonl"),
    metrics=("pass@1",),
    source="leetcode/20240121-Jul.jsonl",
    form="the instruction prompt of the file; the last block of code is run",
    job=job,
)
