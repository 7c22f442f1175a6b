"""C-Eval: 52 Chinese subjects, validation set, five worked examples of the subject, one letter is scored."""

from pathlib import Path

from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.mmlu import LETTERS, read_subjects
from isoflop.evaluation.tasks.task import Loaded, Task


def read_exam(name: str, folder: Path, splits: tuple[str, str], n_shots: int, question: str, answer: str) -> Loaded:
    """A Chinese exam in the form of MMLU; `question` and `answer` are columns of its tables."""
    said = texts(name)

    def ask(row: dict[str, str]) -> tuple[str, str]:
        lines = "\n".join(f"{letter}. {row[letter]}" for letter in LETTERS)
        return f"{row[question].strip()}\n{lines}\n{said['cue']}", row[answer]

    def header(subject: str) -> str:
        return said["header"].format(subject=said["subjects"].get(subject, subject))

    return read_subjects(folder / name, splits, n_shots, columns=True, header=header, ask=ask)


def read(folder: Path, n_shots: int) -> Loaded:
    return read_exam("ceval", folder, ("dev", "val"), n_shots, "question", "answer")


TASK = Task("ceval", read, ("acc", "acc_norm"), "ceval/{dev,val}/*.csv", "ceval-valid 2.0", n_shots=5)
