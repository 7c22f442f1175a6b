"""IFEval: prompts with instructions that a program can check; strict, and loose over eight forms of the response."""

from collections.abc import Iterator
from typing import Any

from isoflop.evaluation.tasks.files import each_line
from isoflop.evaluation.tasks.instructions import CHECKS, follows
from isoflop.evaluation.tasks.task import Question, Task


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    kinds, arguments = row["instruction_id_list"], row["kwargs"]
    unknown = [kind for kind in kinds if kind not in CHECKS]
    if unknown or len(kinds) != len(arguments):
        raise ValueError(f"{len(arguments)} arguments for the instructions {kinds}, unknown: {unknown}")
    gold = [(kind, {k: v for k, v in given.items() if v}) for kind, given in zip(kinds, arguments)]
    yield Question(str(row["key"]), row["prompt"], gold, (), 1280)


def loose_forms(response: str) -> list[str]:
    """The response without its first line, its last, both, and all four without stars."""
    lines = response.split("\n")
    forms = [response, *("\n".join(cut).strip() for cut in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*forms, *(form.replace("*", "") for form in forms)]


def judge(question: Question, response: str) -> tuple[list[bool], list[bool]]:
    """Which instructions are followed: strictly, and by any of the loose forms."""
    strict = [follows(kind, response, given) for kind, given in question.gold]
    forms = loose_forms(response)
    loose = [any(follows(kind, form, given) for form in forms) for kind, given in question.gold]
    return strict, loose


def grade(question: Question, output: str) -> dict[str, float]:
    """Per prompt, all instructions followed; per instruction, the share followed (weighed by their number)."""
    strict, loose = judge(question, output)
    return {
        "prompt_level_strict_acc": float(all(strict)),
        "inst_level_strict_acc": sum(strict) / len(strict),
        "prompt_level_loose_acc": float(all(loose)),
        "inst_level_loose_acc": sum(loose) / len(loose),
    }


def weigh(question: Question, metric: str) -> float:
    return float(len(question.gold)) if metric.startswith("inst_level") else 1.0


TASK = Task(
    name="ifeval",
    read=each_line(_make, "ifeval", "input_data.jsonl"),
    metrics=("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"),
    source="ifeval/input_data.jsonl",
    lm_eval="ifeval 4.0",
    form="sentences and capital words are counted by rules of ours, without a downloaded tokenizer",
    grade=grade,
    weigh=weigh,
)
