"""WinoGrande: two contexts, one continuation; the sum of its log-probabilities decides."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, index_of, short


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    if "sentence" in row:  # the official file
        before, _, after = row["sentence"].partition("_")
        contexts = (before + row["option1"], before + row["option2"])
        after, gold = after.strip(), int(row["answer"]) - 1
    else:
        contexts, after, gold = tuple(row["context_options"]), row["continuation"], row["gold"]
    yield Choice(short(where), "", (f" {after}",) * len(contexts), index_of(gold, len(contexts)), contexts=contexts)


TASK = Task(
    "winogrande",
    each_line(_make, "winogrande", "winogrande.jsonl"),
    ("acc",),
    "winogrande/winogrande.jsonl",
    "winogrande 1.0",
)
