"""MBPP: write a function from one sentence and three asserts; three worked examples, which are problems 2 to 4."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import DataError
from isoflop.evaluation.tasks.answers import cut
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Item, Loaded, Question, Task, load
from isoflop.sandbox.jobs import Job, Limits, Tests

STOPS = ("[DONE]",)
SHOWN = (2, 3, 4)
TEST_IDS = range(11, 511)  # of the full file; the shared copy lacks 311 to 510


def read(folder: Path, n_shots: int) -> Loaded:
    found = load(json_lines(find(folder / "mbpp", "mbpp.jsonl")), _make)
    by_id = {q.id: q for q in found.items if isinstance(q, Question)}
    shown = [by_id[str(i)] for i in SHOWN[:n_shots] if str(i) in by_id]
    if len(shown) < n_shots:
        raise DataError(f"mbpp: {len(shown)} worked examples of {n_shots}; use a file with the problems {SHOWN}")
    prefix = "".join(f"{q.prompt}{q.gold['code']}\n[DONE]\n\n" for q in shown)
    asked: list[Item] = [q for q in by_id.values() if int(q.id) in TEST_IDS]
    return Loaded(asked, found.skipped).behind(prefix)


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    asserts = list(row["test_list"])
    lines = "\n".join(asserts[:3])
    prompt = (
        f"You are an expert Python programmer, and here is your task: {row['text']} "
        f"Your code should pass these tests:\n\n{lines}\n[BEGIN]\n"
    )
    names = {n.name for n in _parsed(row["code"]).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    gold = {"code": row["code"], "tests": [row.get("test_setup_code", ""), *asserts], "names": tuple(sorted(names))}
    yield Question(str(row["task_id"]), prompt, gold, STOPS, 512)


def job(question: Question, output: str) -> Job:
    """Names that the reference defines come from the answer, also where Python has them built in."""
    tests = "\n".join(question.gold["tests"])
    used = {node.id for node in ast.walk(_parsed(tests)) if isinstance(node, ast.Name)}
    remote = tuple(name for name in question.gold["names"] if name in used)
    return Job(cut(output, STOPS), Tests(tests, remote=remote), Limits(wall_s=20))  # item 123 takes 4 s alone


def _parsed(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some references have escapes that Python warns of
        return ast.parse(code)


TASK = Task(
    name="mbpp",
    read=read,
    metrics=("pass_at_1",),
    source="mbpp/mbpp.jsonl",
    lm_eval="mbpp 1.0",
    form="as many of the 500 test problems as the file has",
    n_shots=3,
    job=job,
)
