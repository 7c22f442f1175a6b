"""CMMLU: 67 Chinese subjects, five worked examples of the subject, one letter is scored."""

from pathlib import Path

from isoflop.evaluation.tasks.ceval import read_exam
from isoflop.evaluation.tasks.task import Loaded, Task


def read(folder: Path, n_shots: int) -> Loaded:
    return read_exam("cmmlu", folder, ("data/dev", "data/test"), n_shots, "Question", "Answer")


TASK = Task("cmmlu", read, ("acc", "acc_norm"), "cmmlu/data.tar.gz", "cmmlu 1.0", n_shots=5)
