"""CMATH: Chinese word problems of grades 1 to 6; the last number of the output counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.answers import cut, last_number, number
from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load, short

STOPS = ("\n\n",)


def read(folder: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(folder / "cmath", "test.jsonl")), _make)


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
    read=read,
    metrics=("exact_match",),
    source="cmath/test.jsonl",
    form="question and cue in Chinese, no worked examples, compared as numbers",
    grade=grade,
)
