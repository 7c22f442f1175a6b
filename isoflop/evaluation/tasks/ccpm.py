"""CCPM: which classical line says what the modern sentence says. Validation set, as the test set has no answers."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, index_of, short


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    options = tuple(row["choices"])
    yield Choice(
        short(where), f"{row['translation']}\n{texts('ccpm')['cue']}", options, index_of(row["answer"], len(options))
    )


TASK = Task(
    name="ccpm",
    read=each_line(_make, "ccpm", "valid.jsonl"),
    metrics=("acc", "acc_norm"),
    source="ccpm/valid.jsonl",
    form="sentence and cue in Chinese, then the line",
)
