"""OpenBookQA: the bare stem, continued by the text of an option."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.files import find, read_text, table
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load


def read(folder: Path, n_shots: int) -> Loaded:
    path = find(folder / "openbookqa", "test.tsv")
    return load(table(path, read_text(path), header=True, delimiter="\t"), _make)


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    texts = re.split(r"\s*\([A-D]\)\s*", row["Choices"])[1:]
    options = tuple(f" {text}" for text in texts)
    if len(options) != 4:
        raise ValueError(f"{len(options)} options of 4")
    yield Choice(row["ID"], row["Question Stem"], options, index_of(row["Answer Key"], 4))


TASK = Task("openbookqa", read, ("acc", "acc_norm"), "openbookqa/test.tsv", "openbookqa 1.0")
