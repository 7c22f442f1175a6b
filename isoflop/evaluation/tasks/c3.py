"""C3: Chinese reading comprehension over dialogues (d) and mixed texts (m), the text of each option is scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import find, whole_json
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, load, short


def read(folder: Path, n_shots: int) -> Loaded:
    paths = [find(folder / "c3", f"c3-{kind}-test.json") for kind in "dm"]
    rows = ((f"{path}: entry {n}", row) for path in paths for n, row in enumerate(whole_json(path)))
    return load(rows, _make)


def _make(where: str, row: list[Any]) -> Iterator[Choice]:
    lines, questions, _ = row
    said = texts("c3")
    for i, asked in enumerate(questions):
        text = "\n".join([*lines, f"{said['question']}{asked['question']}", said["cue"]])
        gold = (asked["choice"].index(asked["answer"]),)
        yield Choice(f"{short(where)}.{i}", text, tuple(asked["choice"]), gold, group=short(where))


TASK = Task(
    name="c3",
    read=read,
    metrics=("acc", "acc_norm"),
    source="c3/c3-d-test.json, c3/c3-m-test.json",
    form="document, question and cue in Chinese, then the option's text",
)
