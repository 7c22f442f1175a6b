"""All tasks by name."""

from importlib import import_module

from isoflop.errors import RecipeError
from isoflop.evaluation.tasks.task import Task

NAMES = (
    *("hellaswag", "piqa", "winogrande", "triviaqa", "nq_open", "mmlu", "arc_easy", "openbookqa", "drop", "math"),
    *("gsm8k", "humaneval", "mbpp", "bbh", "agieval", "cluewsc", "chid", "cmmlu", "cmath", "c3", "ccpm"),
    *("leetcode", "ifeval"),
)
OTHERS = ("race", "arc_challenge", "ceval", "pile", "next_word", "next_words")
"""Read from official files that are not in the shared folder, or from files that are made."""


def task(name: str) -> Task:
    """The task of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in (*NAMES, *OTHERS):
        raise RecipeError(f"task {name!r} is unknown; known tasks: {', '.join((*NAMES, *OTHERS))}")
    return import_module(f"isoflop.evaluation.tasks.{name}").TASK
