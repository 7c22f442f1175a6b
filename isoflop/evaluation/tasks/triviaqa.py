"""TriviaQA without documents: a short answer, any alias counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.answers import cut, is_any
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load, short

STOPS = ("\n", ".", ",")


def read(folder: Path, n_shots: int) -> Loaded:
    found = load(json_lines(find(folder / "triviaqa", "triviaqa_sm_sub.jsonl")), _make)
    shown, asked = found.items[:n_shots], found.items[n_shots:]
    prefix = "".join(f"{q.prompt} {q.gold[0]}\n\n" for q in shown if isinstance(q, Question))
    return Loaded(asked, found.skipped).behind(prefix)


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    question = row["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
    answers = tuple(dict.fromkeys([row["answer"], *row["aliases"]]))
    yield Question(short(where), f"Question: {question}?\nAnswer:", answers, STOPS, 32)


def grade(question: Question, output: str) -> dict[str, float]:
    return {"exact_match": float(is_any(cut(output, STOPS).strip(), question.gold))}


TASK = Task(
    name="triviaqa",
    read=read,
    metrics=("exact_match",),
    source="triviaqa/triviaqa_sm_sub.jsonl",
    lm_eval="triviaqa 3.0",
    form="worked examples are the first questions of the file, which are then not asked; blanks are cut at both ends",
    n_shots=5,
    grade=grade,
)
