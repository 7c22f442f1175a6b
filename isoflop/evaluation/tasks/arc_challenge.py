"""ARC-Challenge: as ARC-Easy, harder questions."""

from pathlib import Path

from isoflop.evaluation.tasks.arc_easy import make
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Task, load


def read(folder: Path, n_shots: int) -> Loaded:
    return load(json_lines(find(folder / "arc", "arc_challenge.jsonl", "ARC-Challenge-Test.jsonl")), make)


TASK = Task("arc_challenge", read, ("acc", "acc_norm"), "arc/ARC-Challenge-Test.jsonl", "arc_challenge 1.0")
