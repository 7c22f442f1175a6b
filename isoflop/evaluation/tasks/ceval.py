"""C-Eval: 52 Chinese subjects, validation set, five worked examples of the subject, one letter is scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import members, table
from isoflop.evaluation.tasks.mmlu import LETTERS
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short, shots


def read(folder: Path, n_shots: int) -> Loaded:
    dev = {_subject(path): (path, text) for path, text in members(folder / "ceval", "data.tar.gz", "dev", ".csv")}
    items, skipped = [], []
    for path, text in members(folder / "ceval", "data.tar.gz", "val", ".csv"):
        subject = _subject(path)
        examples: list[Any] = []
        if n_shots:
            examples = load(table(*dev[subject], header=True), _maker(subject, "")).items[:n_shots]
        name = texts("ceval")["subjects"].get(subject, subject)
        header = texts("ceval")["header"].format(subject=name)
        found = load(table(path, text, header=True), _maker(subject, shots(examples, header=header)))
        items += found.items
        skipped += found.skipped
    return Loaded(items, skipped)


def _subject(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _maker(subject: str, prefix: str) -> Any:
    def make(where: str, row: dict[str, str]) -> Iterator[Choice]:
        lines = "\n".join(f"{name}. {row[name]}" for name in LETTERS)
        text = f"{row['question'].strip()}\n{lines}\n{texts('ceval')['cue']}"
        options = tuple(f" {name}" for name in LETTERS)
        yield Choice(short(where), text, options, index_of(row["answer"], 4), prefix=prefix, group=subject)

    return make


TASK = Task("ceval", read, ("acc", "acc_norm"), "ceval/{dev,val}/*.csv", "ceval-valid 2.0", n_shots=5)
