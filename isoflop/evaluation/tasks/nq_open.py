"""NaturalQuestions, open: a short answer; worked examples come from the other file of the folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.answers import cut, is_any
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load, short

STOPS = ("\n", ".", ",")
ARTICLES = (r"\b(?:The |the |An |A |The |a |an )",)


def read(folder: Path, n_shots: int) -> Loaded:
    found = load(json_lines(find(folder / "nq_open", "NQ-open.dev.jsonl")), _make)
    prefix = "Answer these questions:\n\n"
    if n_shots:
        shown = load(json_lines(find(folder / "nq_open", "NQ-open.efficientqa.dev.1.1.jsonl")), _make).items[:n_shots]
        prefix += "".join(f"{q.prompt} {q.gold[0]}\n" for q in shown if isinstance(q, Question))
    return found.behind(prefix)


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    yield Question(short(where), f"Q: {row['question']}?\nA:", tuple(row["answer"]), STOPS, 32)


def grade(question: Question, output: str) -> dict[str, float]:
    return {"exact_match": float(is_any(cut(output, STOPS).strip(), question.gold, ARTICLES))}


TASK = Task(
    name="nq_open",
    read=read,
    metrics=("exact_match",),
    source="nq_open/NQ-open.dev.jsonl",
    lm_eval="nq_open 4.0",
    form="worked examples are the first questions of the EfficientQA file",
    n_shots=5,
    grade=grade,
)
