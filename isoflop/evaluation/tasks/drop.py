"""DROP: reading and counting; F1 between bags of words, best over the annotators, numbers must agree."""

import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from isoflop.evaluation.tasks.answers import cut
from isoflop.evaluation.tasks.files import find, whole_json
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load

STOPS = (".",)


def read(folder: Path, n_shots: int) -> Loaded:
    where = next((p for p in (folder / "drop", folder / "drop_sample") if p.is_dir()), folder / "drop")
    path = find(where, "drop_dataset_dev.json", "drop.json")
    return load(((f"{path}: {name}", (name, passage)) for name, passage in whole_json(path).items()), _make)


def _make(where: str, row: tuple[str, dict[str, Any]]) -> Iterator[Question]:
    name, passage = row
    for i, asked in enumerate(passage["qa_pairs"]):
        annotated = [asked["answer"], *asked.get("validated_answers", [])]
        golds = tuple(dict.fromkeys(_spans(answer) for answer in annotated))
        prompt = f"{passage['passage']} {asked['question']}"
        yield Question(asked.get("query_id", f"{name}-{i}"), prompt, golds, STOPS, 64, group=name)


def _spans(answer: dict[str, Any]) -> tuple[str, ...]:
    if answer["number"] != "":
        return (str(answer["number"]),)
    date = answer["date"]
    return tuple(answer["spans"]) or (" ".join([date["day"], date["month"], date["year"]]).strip(),)


def grade(question: Question, output: str) -> dict[str, float]:
    said = cut(output, STOPS)
    scores = [_score(said, gold) for gold in question.gold if gold[0].strip()]
    return {"em": max((em for em, _ in scores), default=0.0), "f1": max((f1 for _, f1 in scores), default=0.0)}


def _score(said: str, gold: Sequence[str]) -> tuple[float, float]:
    found, wanted = [_normal(said)], [_normal(span) for span in gold]
    exact = float(found == wanted or (set(found) == set(wanted) and len(found) == len(wanted)))
    table = np.array([[_f1(set(f.split()), set(w.split())) for f in found] for w in wanted])
    rows, columns = linear_sum_assignment(-table)
    best = np.zeros(max(table.shape))
    best[rows] = table[rows, columns]
    return exact, round(float(best.mean()), 2)


def _f1(found: set[str], wanted: set[str]) -> float:
    numbers = {word for word in wanted if _is_number(word)}
    if numbers and not numbers & {word for word in found if _is_number(word)}:
        return 0.0
    shared = len(found & wanted)
    precision = shared / len(found) if found else 1.0
    recall = shared / len(wanted) if wanted else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _normal(text: str) -> str:
    words = [_word(word) for word in re.split(" |-", text)]
    return " ".join(word for word in words if word.strip()).strip()


def _word(word: str) -> str:
    word = word.lower()
    if not _is_number(word):
        word = "".join(letter for letter in word if letter not in string.punctuation)
    if _is_number(word):
        word = str(float(word))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", word).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


TASK = Task(
    name="drop",
    read=read,
    metrics=("em", "f1"),
    source="drop/drop_dataset_dev.json or drop_sample/drop.json",
    lm_eval="drop 3.0",
    form="no worked example by default, as in lm-eval; stops at a full stop, which cuts decimals, as there",
    grade=grade,
)
