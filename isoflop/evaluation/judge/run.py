"""Answers and a judge -> scores with intervals; what failed or said nothing is missing, never a 0.

`OUT/judgements.jsonl` holds every prompt with what the judge said, by a key of both the prompt and the judge's name: a
start that was stopped goes on where it was, and a call that failed is made again. Two models are compared in both
orders, and a verdict that turns with the order is a tie (arXiv 2306.05685, section 3.4).
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from isoflop.errors import DataError, RecipeError, undamaged
from isoflop.evaluation.judge.endpoint import CallFailed, ask
from isoflop.evaluation.judge.questions import Call, Case, Judged, judged, key_of, read_answers, winner
from isoflop.evaluation.judge.recipe import JudgeRecipe, JudgeSection
from isoflop.evaluation.statistics import mean_of
from isoflop.recipe import to_tree
from isoflop.run import append_json_line, commit, now, only_one, read_json_lines

Progress = Callable[[str, int, int], None]
Valued = Sequence[tuple[Call, Any]]
"""Calls with what their judgement says; those that are missing are left out."""


def judge(
    names: Sequence[str],
    recipe: JudgeRecipe,
    out: Path,
    *,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Scores of one run or file of answers, or the comparison of two, as plain data.

    Raises:
        RecipeError: no pairs in this benchmark, or more calls than `judge.max_calls`.
        DataError: answers or official files that cannot be used; an endpoint that refuses, or gave no verdict at all.
        KeyboardInterrupt: it was asked to stop; judgements so far are kept.
    """
    q = recipe.questions
    benchmark = judged(q.benchmark, Path(q.data), q.limit)
    if len(names) == 2 and benchmark.pair is None:
        raise RecipeError(f"questions.benchmark = {q.benchmark} judges one model at a time; give one run")
    answers = [_answers(Path(name), benchmark.cases, recipe, on_progress, should_stop) for name in names]
    calls = _calls(benchmark, answers)
    if not calls:
        raise DataError(f"{' and '.join(names)}: no question of {q.benchmark} has an answer; check question_id")
    with only_one(out):
        said, failed = _ask_all(calls, recipe.judge, out / "judgements.jsonl", on_progress, should_stop)
    read = winner if len(names) == 2 else benchmark.read_single
    keys = [key_of(recipe.judge.model, call) for call in calls]
    valued = [(call, read(said[key])) for call, key in zip(calls, keys, strict=True) if key in said]
    problems = [f"question {call.item}: {failed[key]}" for call, key in zip(calls, keys, strict=True) if key in failed]
    problems += [f"question {call.item}: no verdict, or two, in what the judge said" for call, v in valued if v is None]
    valued = [(call, value) for call, value in valued if value is not None]
    if not valued:
        raise DataError(f"judge.url = {recipe.judge.url}: no verdict in {len(calls)} calls; the first: {problems[0]}")
    return {
        "benchmark": q.benchmark,
        "models": list(names),
        "metrics": _pair_metrics(valued) if len(names) == 2 else _single_metrics(benchmark, valued),
        "n_questions": len(benchmark.cases),
        "n_without_answer": len(benchmark.cases) - len({call.item for call in calls}),
        "n_calls": len(calls),
        "n_failed": sum(key in failed for key in keys),
        "n_unread": len(calls) - len(valued) - sum(key in failed for key in keys),
        "problems": problems[:5],
        "form": benchmark.form,
        "judgements": str(out / "judgements.jsonl"),
        "settings": {"recipe": to_tree(recipe), "commit": commit(), "measured_at": now()},
    }


def _answers(
    path: Path, cases: list[Case], recipe: JudgeRecipe, on_progress: Progress | None, should_stop: Callable[[], bool]
) -> dict[str, list[str]]:
    """Answers by question: from a file of them, or written by a run."""
    if path.is_file():
        return read_answers(path, cases)
    from isoflop.evaluation.judge.answer import write_turns

    return write_turns(path, cases, recipe, on_progress=on_progress, should_stop=should_stop)


def _calls(benchmark: Judged, answers: Sequence[Mapping[str, list[str]]]) -> list[Call]:
    """Of the questions that every model answered."""
    calls: list[Call] = []
    for case in benchmark.cases:
        given = [one[case.id] for one in answers if case.id in one]
        if len(given) < len(answers):
            continue
        if len(given) == 1:
            calls += benchmark.single(case, given[0])
        else:
            assert benchmark.pair is not None
            calls += benchmark.pair(case, *given)
    return calls


def _ask_all(
    calls: Sequence[Call],
    section: JudgeSection,
    path: Path,
    on_progress: Progress | None,
    should_stop: Callable[[], bool],
) -> tuple[dict[str, str], dict[str, str]]:
    """What the judge said by key, and why there is nothing; at most `at_once` calls in flight."""
    with undamaged(str(path), DataError, "repair or remove that line, or give another folder with --out"):
        kept = read_json_lines(path) if path.is_file() else []
        said = {row["key"]: row["raw"] for row in kept if row["raw"] is not None}
        for key, raw in said.items():
            if not isinstance(raw, str):
                raise TypeError(f"raw = {raw!r:.40} of key {key} is no text")
    wanted = {key_of(section.model, call): call for call in calls}
    waiting = [(key, call) for key, call in wanted.items() if key not in said]
    if len(waiting) > section.max_calls:
        raise RecipeError(
            f"judge.max_calls = {section.max_calls} but {len(waiting)} calls are needed; raise it, or ask fewer "
            "questions with --limit"
        )
    failed: dict[str, str] = {}
    running: dict[Future[str], tuple[str, Call]] = {}
    in_a_row, stop = 0, threading.Event()
    with ThreadPoolExecutor(section.at_once) as pool:
        try:
            while running or (waiting and in_a_row < section.give_up_after):
                while waiting and len(running) < section.at_once and in_a_row < section.give_up_after:
                    key, call = waiting.pop(0)
                    running[pool.submit(ask, section, call.messages, stop)] = key, call
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    key, call = running.pop(future)
                    try:
                        said[key], in_a_row = future.result(), 0
                    except CallFailed as error:
                        failed[key] = str(error)
                        in_a_row += 1
                    append_json_line(path, _row(key, call, section.model, said.get(key), failed.get(key)))
                    if on_progress:
                        on_progress("judgement", len(wanted) - len(waiting) - len(running), len(wanted))
                if should_stop():
                    raise KeyboardInterrupt
        finally:
            stop.set()
    failed |= {key: f"not asked, {in_a_row} calls in a row had failed; start again to go on" for key, _ in waiting}
    return said, failed


def _row(key: str, call: Call, model: str, raw: str | None, error: str | None) -> dict[str, Any]:
    asked = {"item": call.item, "turn": call.turn, "order": call.order, "judge": model, "prompt": list(call.messages)}
    return {"key": key, **asked, "raw": raw, "error": error}


def _single_metrics(benchmark: Judged, valued: Valued) -> dict[str, Any]:
    found = {"score": _mean(valued)}
    turns = sorted({call.turn for call, _ in valued})
    for turn in turns if len(turns) > 1 else ():
        found[f"score, turn {turn + 1}"] = _mean([row for row in valued if row[0].turn == turn])
    category = {case.id: case.category for case in benchmark.cases}
    for name in dict.fromkeys(category[call.item] for call, _ in valued):
        found[f"score, {name}"] = _mean([row for row in valued if category[row[0].item] == name])
    return found


def _pair_metrics(valued: Valued) -> dict[str, Any]:
    """Share of the first model's wins, ties counted half; a turn without a verdict in both orders is missing."""
    by_turn: dict[tuple[str, int], dict[str, tuple[Call, str]]] = {}
    for call, value in valued:
        by_turn.setdefault((call.item, call.turn), {})[call.order] = call, value
    rows, counts = [], Counter()
    for one in by_turn.values():
        if len(one) == 2:
            (call, first), (_, turned) = one["AB"], one["BA"]
            same = first == {"A": "B", "B": "A", "C": "C"}[turned]
            outcome = {"A": "wins", "B": "losses", "C": "ties"}[first if same else "C"]
            counts.update([outcome, "same in both orders"] if same else [outcome])
            rows.append((call, {"wins": 1.0, "ties": 0.5, "losses": 0.0}[outcome]))
    if not rows:
        raise DataError("no question has a verdict in both orders; start again to ask for what is missing")
    names = ("wins", "ties", "losses", "same in both orders")
    return {"score": _mean(rows), **{name: {"value": counts[name] / len(rows), "n": len(rows)} for name in names}}


def _mean(valued: Valued) -> dict[str, float | None]:
    """Mean with a 95% interval over questions, whose turns are not independent; of one question there is none."""
    groups = [call.item for call, _ in valued]
    if len({*groups}) == 1:
        values = [value for _, value in valued]
        return {"value": sum(values) / len(values), "low": None, "high": None, "n": len(values)}
    return mean_of([value for _, value in valued], groups)._asdict()
