"""CHID: which idiom fills the gap. The idiom and the text after it are scored, given the text before."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Choice, Task, index_of

GAP = "#idiom#"


def _make(where: str, row: dict[str, Any]) -> Iterator[Choice]:
    before, gap, after = row["content"].partition(GAP)
    if not gap:
        raise ValueError(f"no {GAP} in the text")
    options = tuple(f"{idiom}{after}" for idiom in row["candidates"])
    yield Choice(str(row["id"]), before, options, index_of(row["answer"], len(options)))


TASK = Task(
    name="chid",
    read=each_line(_make, "chid", "test_public.json"),
    metrics=("acc", "acc_norm"),
    source="chid/test_public.json",
    form="idiom and the rest of the text, given the text before",
)
