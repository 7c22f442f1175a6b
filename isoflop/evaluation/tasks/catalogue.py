"""All tasks by name, and how the programs among the outputs are judged together."""

from collections.abc import Sequence
from importlib import import_module

from isoflop.errors import RecipeError
from isoflop.evaluation.tasks.task import Question, Task
from isoflop.sandbox.jobs import Outcome, Verdict
from isoflop.sandbox.sandbox import Sandbox

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


def run_programs(
    wanted: Task, questions: Sequence[Question], outputs: Sequence[str], sandbox: Sandbox
) -> list[tuple[dict[str, float] | None, Outcome]]:
    """Scores of outputs that are programs, each with how its run ended.

    An answer that was refused by the sandbox was not judged: its score is missing, not 0.

    Raises:
        SandboxError: the sandbox does not hold here.
    """
    assert wanted.job is not None
    sandbox.require()
    outcomes = sandbox.run_all([wanted.job(q, output) for q, output in zip(questions, outputs, strict=True)])
    (metric,) = wanted.metrics
    return [(None if o.verdict == Verdict.REFUSED else {metric: float(o.verdict == "passed")}, o) for o in outcomes]
