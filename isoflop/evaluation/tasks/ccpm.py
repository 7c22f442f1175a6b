"""CCPM: which classical line says what the modern sentence says. Validation set, as the test set has no answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short


def read(folder: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(folder / "ccpm", "valid.jsonl")), _make)


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    options = tuple(row["choices"])
    yield Choice(
        short(where), f"{row['translation']}\n{texts('ccpm')['cue']}", options, index_of(row["answer"], len(options))
    )


TASK = Task(
    name="ccpm",
    read=read,
    metrics=("acc", "acc_norm"),
    source="ccpm/valid.jsonl",
    form="sentence and cue in Chinese, then the line",
)
