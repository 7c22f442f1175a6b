"""CLUEWSC: does the pronoun mean the name. Yes or no, in Chinese, after text and question."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, load, short


def read(folder: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(folder / "cluewsc", "test_public.json")), _make)


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
    read=read,
    metrics=("acc",),
    source="cluewsc/test_public.json",
    form="text, question and cue in Chinese, then yes or no",
)
