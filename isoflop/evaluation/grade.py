"""Answers of a model to scores of items, and those to metrics with intervals. No torch here."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.evaluation.recipe import NORMALISATIONS
from isoflop.evaluation.statistics import Interval, accuracy_of, mean_of, normalised, pass_at_k, weighted_mean
from isoflop.evaluation.tasks.task import Choice, Item, Passage, Question, Task

BITS = "answer_bits_per_byte"
"""Metric of every task with options: bits per byte of the right option given its context. It moves long before accuracy
does, so predictions start from it (arXiv 2412.04403, section 3.1)."""


@dataclass(frozen=True)
class Graded:
    """Scores of one item."""

    scores: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)
    """Of a score in the mean of its metric; 1 where absent."""
    verdict: Any = None
    """Chosen option of each accuracy, or the verdicts on programs."""


def grade(task: Task, item: Item, answer: Mapping[str, Any], metrics: Sequence[str], k: Sequence[int]) -> Graded | None:
    """Scores of an item; None where the answer is missing, which is not a 0."""
    if "problem" in answer:
        return None
    if isinstance(item, Choice):
        return _grade_choice(item, answer, [*dict.fromkeys((*task.metrics, *metrics))])
    if isinstance(item, Passage):
        n_bytes = len(item.text.encode("utf-8", "surrogatepass"))
        bits = -sum(answer["nats"]) / math.log(2) / n_bytes
        return Graded({"bits_per_byte": bits}, {"bits_per_byte": float(n_bytes)})
    return _grade_question(task, item, answer, k)


def _grade_choice(item: Choice, answer: Mapping[str, Any], metrics: Sequence[str]) -> Graded:
    scores, chosen = {}, {}
    for metric in metrics:
        values = option_scores(item, answer, metric)
        scores[metric] = accuracy_of(values, item.gold)
        chosen[metric] = max(range(len(values)), key=values.__getitem__)
    right = item.gold[0]
    per_byte = answer["nats"][right] / max(1, len(_shown(item.options[right])))
    return Graded({**scores, BITS: -per_byte / math.log(2)}, verdict=chosen)


def option_scores(item: Choice, answer: Mapping[str, Any], metric: str) -> list[float]:
    """What is compared between options: the log-probabilities in the normalisation of a metric."""
    by, nats = NORMALISATIONS[metric], answer["nats"]
    if by == "whole text":
        return [value / n for value, n in zip(answer["whole_text"], answer["whole_text_tokens"], strict=True)]
    if by == "unconditional":
        return [given - alone for given, alone in zip(nats, answer["unconditional"], strict=True)]
    return normalised(nats, item.options, by, answer["nats_tokens"])


def _shown(option: str) -> bytes:
    return option.removeprefix(" ").encode("utf-8", "surrogatepass")


def _grade_question(task: Task, item: Question, answer: Mapping[str, Any], k: Sequence[int]) -> Graded | None:
    outputs = answer["outputs"]
    if task.job is not None:
        if "verdicts" not in answer:
            return None
        n_right = sum(verdict == "passed" for verdict, _ in answer["verdicts"])
        (first,) = task.metrics
        scores = {(first if n == 1 else f"pass@{n}"): pass_at_k(len(outputs), n_right, n) for n in k}
        return Graded(scores, verdict=answer["verdicts"])
    assert task.grade is not None
    found = [task.grade(item, output) for output in outputs]
    scores = {metric: sum(one[metric] for one in found) / len(found) for metric in found[0]}
    return Graded(scores, {metric: task.weigh(item, metric) for metric in scores} if task.weigh else {})


def summarise(items: Sequence[Item], graded: Sequence[Graded | None]) -> dict[str, Interval]:
    """Metrics with 95% intervals, over the items that have a score; clustered where items have groups.

    Items that all belong to one group are taken as independent draws from it.
    """
    rows: dict[str, list[tuple[float, float, Hashable]]] = {}
    for item, one in zip(items, graded, strict=True):
        for metric, value in (one.scores if one else {}).items():
            assert one is not None
            rows.setdefault(metric, []).append((value, one.weights.get(metric, 1.0), item.group or item.id))
    found = {}
    for metric, row in rows.items():
        scores, weights, groups = ([*column] for column in zip(*row))
        if len({*groups}) < 2:
            groups = None
        even = len({*weights}) == 1
        found[metric] = mean_of(scores, groups) if even else weighted_mean(scores, weights, groups)
    return found
