"""CMATH: Chinese word problems of grades 1 to 6; the last number of the output counts."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.answers import cut, last_number, number
from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Question, Task, short

STOPS = ("\n\n",)


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    said = texts("cmath")
    if number(str(row["golden"])) is None:
        raise ValueError(f"the answer {row['golden']!r} is no number")
    prompt = f"{said['question']}{row['question']}\n{said['cue']}"
    yield Question(short(where), prompt, str(row["golden"]), STOPS, 256, group=f"grade {row['grade']}")


def grade(question: Question, output: str) -> dict[str, float]:
    found = number(last_number(cut(output, STOPS)))
    return {"exact_match": float(found is not None and found == number(question.gold))}


TASK = Task(
    name="cmath",
    read=each_line(_make, "cmath", "test.jsonl"),
    metrics=("exact_match",),
    source="cmath/test.jsonl",
    form="question and cue in Chinese, no worked examples, compared as numbers",
    grade=grade,
)
