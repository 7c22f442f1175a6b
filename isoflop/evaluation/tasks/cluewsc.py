"""CLUEWSC: does the pronoun mean the name. Yes or no, in Chinese, after text and question."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, short


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    said = texts("cluewsc")
    names = row["target"]
    asked = said["question"].format(pronoun=names["span2_text"], name=names["span1_text"])
    gold = ("true", "false").index(str(row["label"]).lower())
    yield Choice(
        short(where), f"{row['text']}\n{asked}\n{said['cue']}", (said["yes"], said["no"]), (gold,), group=row["text"]
    )


TASK = Task(
    name="cluewsc",
    read=each_line(_make, "cluewsc", "test_public.json"),
    metrics=("acc",),
    source="cluewsc/test_public.json",
    form="text, question and cue in Chinese, then yes or no",
)
