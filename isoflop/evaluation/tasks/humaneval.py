"""HumanEval: complete a function; the prompt and the completion are run against the tests in the sandbox."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.answers import cut
from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Question, Task
from isoflop.sandbox.jobs import Job, Tests

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    gold = {name: row[name] for name in ("test", "entry_point")}
    yield Question(row["task_id"], row["prompt"], gold, STOPS, 1024)


def job(question: Question, output: str) -> Job:
    """What the prompt defines beside the function is defined for the tests too, so no answer can replace it."""
    name = question.gold["entry_point"]
    tests = f"{question.gold['test']}\ncheck({name})\n"
    answer = f"{question.prompt}{cut(output, STOPS)}"
    return Job(answer, Tests(tests, helpers=f"{question.prompt}\n    pass\n", remote=(name,)))


TASK = Task(
    "humaneval",
    each_line(_make, "humaneval", "HumanEval.jsonl"),
    ("pass@1",),
    "humaneval/HumanEval.jsonl",
    "humaneval 1.0",
    job=job,
)
