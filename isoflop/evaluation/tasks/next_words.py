"""Which of four continuations follows: made from held-out text by recipes/study/benchmarks_items.py."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, index_of


def made(where: str, row: Any) -> Iterator[Choice]:
    """An item as the maker writes it: id, context, options, gold, group."""
    options = tuple(row["options"])
    gold = index_of(row["gold"], len(options))
    yield Choice(str(row["id"]), row["context"], options, gold, group=str(row.get("group", "")))


TASK = Task(
    "next_words",
    each_line(made, "cloze", "next_words.jsonl"),
    ("acc", "acc_norm"),
    "cloze/next_words.jsonl",
    form="made from held-out text: eight words, or eight words of three other places",
)
