"""CMMLU: 67 Chinese subjects, five worked examples of the subject, one letter is scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import members, table
from isoflop.evaluation.tasks.mmlu import LETTERS
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short, shots


def read(folder: Path, n_shots: int) -> Loaded:
    dev = {path.stem: (path, text) for path, text in members(folder / "cmmlu", "data.tar.gz", "data/dev", ".csv")}
    items, skipped = [], []
    for path, text in members(folder / "cmmlu", "data.tar.gz", "data/test", ".csv"):
        examples: list[Any] = []
        if n_shots:
            examples = load(table(*dev[path.stem], header=True), _maker(path.stem, "")).items[:n_shots]
        name = texts("cmmlu")["subjects"].get(path.stem, path.stem)
        header = texts("cmmlu")["header"].format(subject=name)
        found = load(table(path, text, header=True), _maker(path.stem, shots(examples, header=header)))
        items += found.items
        skipped += found.skipped
    return Loaded(items, skipped)


def _maker(subject: str, prefix: str) -> Any:
    def make(where: str, row: dict[str, str]) -> Iterator[Choice]:
        lines = "\n".join(f"{name}. {row[name]}" for name in LETTERS)
        text = f"{row['Question'].strip()}\n{lines}\n{texts('cmmlu')['cue']}"
        options = tuple(f" {name}" for name in LETTERS)
        yield Choice(short(where), text, options, index_of(row["Answer"], 4), prefix=prefix, group=subject)

    return make


TASK = Task("cmmlu", read, ("acc", "acc_norm"), "cmmlu/data.tar.gz", "cmmlu 1.0", n_shots=5)
