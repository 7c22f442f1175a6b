"""GSM8K: word problems worked out; strict is the number after "####", flexible the last number-like run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.answers import cut, normal
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load, short

STOPS = ("Question:", "</s>", "<|im_end|>")
IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


def read(folder: Path, n_shots: int) -> Loaded:
    found = load(json_lines(find(folder / "gsm8k", "test.jsonl")), _make)
    shown = load(json_lines(find(folder / "gsm8k", "train.jsonl")), _make).items[:n_shots] if n_shots else []
    prefix = "".join(f"{q.prompt} {q.gold}\n\n" for q in shown if isinstance(q, Question))
    return found.behind(prefix)


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    if "#### " not in row["answer"]:
        raise ValueError("the answer has no '#### '")
    yield Question(short(where), f"Question: {row['question']}\nAnswer:", row["answer"], STOPS, 512)


def strict(output: str) -> str:
    found = re.search(r"#### (\-?[0-9\.\,]+)", output)
    return found[1] if found else ""


def flexible(output: str) -> str:
    found = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", output)
    return found[-1] if found else ""


def grade(question: Question, output: str) -> dict[str, float]:
    output = cut(output, STOPS)
    gold = normal(question.gold, IGNORED, punctuation=False)
    same = {
        name: normal(found, IGNORED, punctuation=False) == gold
        for name, found in (("strict-match", strict(output)), ("flexible-extract", flexible(output)))
    }
    return {f"exact_match,{name}": float(right) for name, right in same.items()}


TASK = Task(
    name="gsm8k",
    read=read,
    metrics=("exact_match,strict-match", "exact_match,flexible-extract"),
    source="gsm8k/test.jsonl, gsm8k/train.jsonl",
    lm_eval="gsm8k 3.0",
    form="worked examples are the first of the training file; lm-eval draws them",
    n_shots=5,
    grade=grade,
)
