"""HellaSwag: which ending follows. As in lm-eval: activity, context, second part capitalised, brackets removed."""

import re
from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, index_of, short


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    if "ctx_a" in row:
        first, second = row["ctx_a"], row["ctx_b"]
    else:
        first, second = split_context(row["ctx"])
    text = _clean(f"{row['activity_label']}: {first} {second.capitalize()}")
    options = tuple(f" {_clean(ending)}" for ending in row["endings"])
    yield Choice(short(where), text, options, index_of(int(row["label"]), len(options)))


def split_context(text: str) -> tuple[str, str]:
    """Both parts of a joined context: the second is what follows the last full sentence."""
    found = re.search(r"^(.*[.!?\])\"'])\s+([^.!?\]]+)$", text.rstrip(), flags=re.DOTALL)
    return (found[1], found[2]) if found else (text, "")


def _clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


TASK = Task(
    name="hellaswag",
    read=each_line(_make, "hellaswag", "hellaswag_val.jsonl"),
    metrics=("acc", "acc_norm"),
    source="hellaswag/hellaswag_val.jsonl",
    lm_eval="hellaswag 1.0",
    form="from files whose context is joined, its second part is what follows the last full sentence",
)
