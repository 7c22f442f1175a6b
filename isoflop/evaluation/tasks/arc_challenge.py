"""ARC-Challenge: as ARC-Easy, harder questions."""

from isoflop.evaluation.tasks.arc_easy import make
from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.task import Task

TASK = Task(
    "arc_challenge",
    each_line(make, "arc", "arc_challenge.jsonl", "ARC-Challenge-Test.jsonl"),
    ("acc", "acc_norm"),
    "arc/ARC-Challenge-Test.jsonl",
    "arc_challenge 1.0",
)
