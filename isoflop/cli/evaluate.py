"""The commands that measure what a run can do: eval, judge."""

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Writes, is_override, load_recipe
from isoflop.cli.console import Bar, print_rows, print_table, report_found, shown, stop_on_signal
from isoflop.errors import RecipeError
from isoflop.recipe import NotNegativeInt, plain, write_text

Words = Annotated[
    str, Parameter("RUN... RECIPE", help="folders of runs or sweeps, an evaluation recipe, SECTION.KEY=VALUE")
]


def evaluate(
    *words: Words,
    data: Annotated[Path | None, Parameter(metavar="DIR", help="official files; default: tasks.data")] = None,
    tasks: Annotated[str, Parameter(metavar="A,B", help="only these benchmarks; default: tasks.names")] = "",
    limit: Annotated[NotNegativeInt | None, Parameter(help="the first so many items of each; 0: all")] = None,
    train_text: Annotated[
        str,
        Parameter(
            metavar="A,B", help="training text or runs: mark items that it holds; default: contamination.train_text"
        ),
    ] = "",
    json: Json = None,
    report: Annotated[
        Path | None, Writes(".html"), Parameter(metavar="FILE", help="also write a page that compares the runs")
    ] = None,
    samples: Annotated[
        Path | None, Writes(".jsonl"), Parameter(metavar="FILE", help="also write every item with prompt and answer")
    ] = None,
) -> None:
    """Runs and benchmarks -> scores with intervals; goes on where it was stopped."""
    from isoflop.evaluation.recipe import EvalRecipe, check

    *runs, path = [word for word in words if not is_override(word)] or [""]
    if not runs:
        raise RecipeError("isoflop eval needs RUN... RECIPE; isoflop eval --help says more")
    recipe = load_recipe(path, EvalRecipe, [word for word in words if is_override(word)])
    given: dict[str, Any] = {}
    if data is not None:
        given["data"] = str(data)
    if tasks:
        given["names"] = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if limit is not None:
        given["limit"] = limit
    recipe = dataclasses.replace(recipe, tasks=dataclasses.replace(recipe.tasks, **given))
    if train_text:
        paths = tuple(path.strip() for path in train_text.split(","))
        if not all(paths):
            raise RecipeError(f"--train-text = {train_text!r} must be paths with commas between them")
        section = dataclasses.replace(recipe.contamination, train_text=paths)
        recipe = dataclasses.replace(recipe, contamination=section)
    check(recipe)
    from isoflop.evaluation.run import evaluate as measure

    with Bar("item") as bar, stop_on_signal() as stop:
        found, items = measure(
            runs, recipe, with_samples=bool(samples or report), on_progress=bar.stage, should_stop=stop
        )
    items = list(items)
    if report is not None:
        from isoflop.evaluation.report import report_page

        write_text(report, report_page(found, items))
    if samples is not None:
        lines = (json_module.dumps(plain(row), ensure_ascii=False) for row in items)
        write_text(samples, "".join(f"{line}\n" for line in lines))
    rows = [
        {"run": name, "task": task, "metric": metric, **values, **_clean(run["details"][task], metric)}
        for name, run in found["runs"].items()
        for task, metrics in run["tasks"].items()
        for metric, values in metrics.items()
    ]
    problems = [
        (f"{name}, {task}", f"{d['n_missing']} missing, {d['n_skipped']} rows skipped, {d['n_truncated']} cut; {first}")
        for name, run in found["runs"].items()
        for task, d in run["details"].items()
        if d["n_missing"] or d["n_skipped"] or d["n_truncated"]
        for first in [shown((d["problems"] or ["cut from the left to fit the context"])[0])]
    ]
    report_found(found, json, f"{len(rows)} scores of {len(found['runs'])} runs", problems)
    print_table(rows)


def _clean(details: dict[str, Any], metric: str) -> dict[str, Any]:
    """Columns of the items that the training text does not hold, where it was looked for."""
    if "contamination" not in details:
        return {}
    marked = details["contamination"]
    none = {"value": None, "low": None, "high": None, "n": 0}
    clean = {f"clean_{name}": value for name, value in marked["clean"].get(metric, none).items()}
    return {"contaminated": marked["n_contaminated"], **clean}


def judge(
    *words: Annotated[str, Parameter("A [B] RECIPE", help="runs or files of answers, a judge recipe, overrides")],
    data: Annotated[Path | None, Parameter(metavar="DIR", help="official files; default: questions.data")] = None,
    limit: Annotated[NotNegativeInt | None, Parameter(help="the first so many questions; 0: all")] = None,
    out: Annotated[Path, Writes("folder"), Parameter(metavar="DIR", help="folder of the judgements")] = Path(
        "runs/judged"
    ),
    json: Json = None,
) -> None:
    """A model's answers, judged by another behind an endpoint; two models in both orders; goes on where it stopped."""
    from isoflop.evaluation.judge.recipe import JudgeRecipe, check

    *names, path = [word for word in words if not is_override(word)] or [""]
    if not 1 <= len(names) <= 2:
        raise RecipeError(f"isoflop judge needs A RECIPE or A B RECIPE, not {len(names)} models")
    recipe = load_recipe(path, JudgeRecipe, [word for word in words if is_override(word)])
    given = {"data": None if data is None else str(data), "limit": limit}
    given = {key: value for key, value in given.items() if value is not None}
    recipe = dataclasses.replace(recipe, questions=dataclasses.replace(recipe.questions, **given))
    check(recipe)
    from isoflop.evaluation.judge.run import judge as ask_judge

    with Bar("call") as bar, stop_on_signal() as stop:
        found = ask_judge(names, recipe, out, on_progress=bar.stage, should_stop=stop)
    counts = f"{found['n_calls']} calls, {found['n_failed']} failed, {found['n_unread']} without a verdict"
    report_found(found, json, f"{found['benchmark']}: {counts}; all in {found['judgements']}", [])
    print_table([{"metric": name, "low": None, "high": None, **row} for name, row in found["metrics"].items()])
    print_rows(("missing", problem) for problem in found["problems"])
