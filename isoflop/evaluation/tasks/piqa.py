"""PIQA: which of two ways does it. Labels lie in a file of their own, line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import DataError
from isoflop.evaluation.tasks.files import find, json_lines, read_text
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short


def read(folder: Path, n_shots: int) -> Loaded:
    rows = list(json_lines(find(folder / "piqa", "valid.jsonl")))
    path = find(folder / "piqa", "valid-labels.lst")
    labels = read_text(path).split()
    if len(labels) != len(rows):
        raise DataError(f"{path} has {len(labels)} labels for {len(rows)} questions; fetch both files again")
    return load(((where, (row, label)) for (where, row), label in zip(rows, labels)), _make)


def _make(where: str, pair: tuple[dict[str, Any], str]) -> Iterator[Choice]:
    row, label = pair
    options = (f" {row['sol1']}", f" {row['sol2']}")
    yield Choice(short(where), f"Question: {row['goal']}\nAnswer:", options, index_of(int(label), 2))


TASK = Task("piqa", read, ("acc", "acc_norm"), "piqa/valid.jsonl, piqa/valid-labels.lst", "piqa 1.0")
