"""ARC-Easy: science questions, the text of each option is scored."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, index_of, short


def make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    """One of three layouts: query with options, the official file's, that of the hub."""
    if isinstance(row.get("question"), dict):
        stem, given = row["question"]["stem"], row["question"]["choices"]
        choices = {name: [choice[name] for choice in given] for name in ("text", "label")}
        row = {**row, "question": stem, "choices": choices}
    if isinstance(row["choices"], dict):
        texts, gold = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
        query = f"Question: {row['question']}"
    else:
        texts, gold, query = row["choices"], row["gold"], row["query"]
    options = tuple(f" {text}" for text in texts)
    yield Choice(short(where), f"{query}\nAnswer:", options, index_of(gold, len(options)))


TASK = Task(
    "arc_easy",
    each_line(make, "arc", "arc_easy.jsonl", "ARC-Easy-Test.jsonl"),
    ("acc", "acc_norm"),
    "arc/arc_easy.jsonl",
    "arc_easy 1.0",
)
