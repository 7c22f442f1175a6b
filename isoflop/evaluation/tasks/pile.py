"""The Pile's test set: whole documents, bits per byte, by subset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Passage, Task, load, short


def read(folder: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(folder / "pile", "test.jsonl")), _make)


def _make(where: str, row: dict[str, Any]) -> Iterator[Passage]:
    if not row["text"]:
        raise ValueError("the text is empty")
    yield Passage(short(where), row["text"], group=row["meta"]["pile_set_name"])


TASK = Task("pile", read, ("bits_per_byte",), "pile/test.jsonl", "pile 2.0")
