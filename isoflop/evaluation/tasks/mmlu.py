"""MMLU: 57 subjects, five worked examples of the subject, one letter is scored. Averaged over questions."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.files import members, table
from isoflop.evaluation.tasks.task import Choice, Loaded, Task, index_of, load, short, shots

LETTERS = "ABCD"


def read_subjects(
    folder: Path,
    splits: tuple[str, str],
    n_shots: int,
    *,
    columns: bool,
    header: Callable[[str], str],
    ask: Callable[[Any], tuple[str, str]],
) -> Loaded:
    """Questions of every subject in the second of `splits`, behind its first `n_shots` of the first one.

    `columns`: a table's first row names them; `header` of a subject stands before its examples; `ask` makes of a row
    what is asked and the right letter.
    """

    def make(subject: str, prefix: str, where: str, row: Any) -> Iterator[Choice]:
        text, letter = ask(row)
        options = tuple(f" {name}" for name in LETTERS)
        yield Choice(short(where), text, options, index_of(letter, 4), prefix=prefix, group=subject)

    def tables(split: str) -> Iterator[tuple[str, Path, str]]:
        for path, text in members(folder, "data.tar.gz", split, ".csv"):
            yield path.stem.removesuffix(f"_{path.parent.name}"), path, text

    dev = {subject: (path, text) for subject, path, text in tables(splits[0])}
    parts = []
    for subject, path, text in tables(splits[1]):
        shown = (
            load(table(*dev[subject], header=columns), partial(make, subject, "")).items[:n_shots] if n_shots else []
        )
        prefix = shots(shown, header=header(subject))
        parts.append(load(table(path, text, header=columns), partial(make, subject, prefix)))
    return Loaded.joined(parts)


def read(folder: Path, n_shots: int) -> Loaded:
    splits = ("data/mmlu/dev", "data/mmlu/test")
    return read_subjects(folder / "mmlu", splits, n_shots, columns=False, header=_header, ask=_ask)


def _header(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def _ask(row: list[str]) -> tuple[str, str]:
    question, *texts, letter = row
    if len(texts) != len(LETTERS):
        raise ValueError(f"{len(row)} columns of 6")
    lines = "\n".join(f"{name}. {text}" for name, text in zip(LETTERS, texts))
    return f"{question.strip()}\n{lines}\nAnswer:", letter


TASK = Task("mmlu", read, ("acc",), "mmlu/data.tar.gz", "mmlu 1.0", n_shots=5)
