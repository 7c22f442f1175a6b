"""Which of four words follows: made from held-out text by recipes/study/benchmarks_items.py."""

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.next_words import made
from isoflop.evaluation.tasks.task import Task

TASK = Task(
    "next_word",
    each_line(made, "cloze", "next_word.jsonl"),
    ("acc",),
    "cloze/next_word.jsonl",
    form="made from held-out text: a word of six letters or more, or words of three other places",
)
