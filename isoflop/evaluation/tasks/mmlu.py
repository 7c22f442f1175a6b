"""MMLU: 57 subjects, five worked examples of the subject, one letter is scored. Averaged over questions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.files import members, table
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short, shots

LETTERS = "ABCD"


def read(folder: Path, n_shots: int) -> Loaded:
    dev = {
        _subject(path): (path, text) for path, text in members(folder / "mmlu", "data.tar.gz", "data/mmlu/dev", ".csv")
    }
    items, skipped = [], []
    for path, text in members(folder / "mmlu", "data.tar.gz", "data/mmlu/test", ".csv"):
        subject = _subject(path)
        examples: list[Any] = []
        if n_shots:
            examples = load(table(*dev[subject], header=False), _maker(subject, "")).items[:n_shots]
        header = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        found = load(table(path, text, header=False), _maker(subject, shots(examples, header=header)))
        items += found.items
        skipped += found.skipped
    return Loaded(items, skipped)


def _subject(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _maker(subject: str, prefix: str) -> Any:
    def make(where: str, row: list[str]) -> Iterator[Choice]:
        question, *texts, letter = row
        if len(texts) != len(LETTERS):
            raise ValueError(f"{len(row)} columns of 6")
        lines = "\n".join(f"{name}. {text}" for name, text in zip(LETTERS, texts))
        text = f"{question.strip()}\n{lines}\nAnswer:"
        options = tuple(f" {name}" for name in LETTERS)
        yield Choice(short(where), text, options, index_of(letter, 4), prefix=prefix, group=subject)

    return make


TASK = Task("mmlu", read, ("acc",), "mmlu/data.tar.gz", "mmlu 1.0", n_shots=5)
