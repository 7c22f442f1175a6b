"""Which of four continuations follows: made from held-out text by recipes/study/benchmarks_items.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load


def made(where: str, row: Any) -> Iterator[Choice]:
    """An item as the maker writes it: id, context, options, gold, group."""
    options = tuple(row["options"])
    gold = index_of(row["gold"], len(options))
    yield Choice(str(row["id"]), row["context"], options, gold, group=str(row.get("group", "")))


def _read(data: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(data / "cloze", "next_words.jsonl")), made)


TASK = Task(
    "next_words",
    _read,
    ("acc", "acc_norm"),
    "cloze/next_words.jsonl",
    form="made from held-out text: eight words, or eight words of three other places",
)
