"""The Pile's test set: whole documents, bits per byte, by subset."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Passage, Task, short


def _make(where: str, row: dict[str, Any]) -> Iterator[Passage]:
    if not row["text"]:
        raise ValueError("the text is empty")
    yield Passage(short(where), row["text"], group=row["meta"]["pile_set_name"])


TASK = Task("pile", each_line(_make, "pile", "test.jsonl"), ("bits_per_byte",), "pile/test.jsonl", "pile 2.0")
