"""Which of four words follows: made from held-out text by recipes/study/benchmarks_items.py."""

from pathlib import Path

from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.next_words import made
from isoflop.evaluation.tasks.task import Loaded, Task, load


def _read(data: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(data / "cloze", "next_word.jsonl")), made)


TASK = Task(
    "next_word",
    _read,
    ("acc",),
    "cloze/next_word.jsonl",
    form="made from held-out text: a word of six letters or more, or words of three other places",
)
