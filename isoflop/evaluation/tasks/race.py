"""RACE, high school: one file per article. Earlier questions are shown with their answers, the last one is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import DataError
from isoflop.evaluation.tasks.files import whole_json
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short

GAP = "  _  ."


def read(folder: Path, n_shots: int) -> Loaded:
    places = [folder / "race/test/high", folder / "race/high"]
    paths = sorted(path for place in places for path in place.glob("*.txt"))
    if not paths:
        raise DataError(f"{folder} has no race/test/high/*.txt; give the folder of official files with --data")
    return load(((str(path), whole_json(path)) for path in paths), _make)


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    text = f"Article: {row['article']}\n\n"
    asked = list(zip(row["questions"], row["options"], row["answers"], strict=True))
    for question, options, letter in asked[:-1]:
        answer = options[index_of(letter, len(options))[0]]
        shown = question[:-5] + answer if question.endswith(GAP) else f"Question: {question}\nAnswer: {answer}"
        text += f"{shown}\n"
    question, options, letter = asked[-1]
    yield Choice(short(where), text + question, tuple(f" {o}" for o in options), index_of(letter, len(options)))


TASK = Task("race", read, ("acc",), "race/test/high/*.txt", "race 3.0")
