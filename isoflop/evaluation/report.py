"""One page that compares checkpoints: scores side by side, differences, samples, and how scores go with the loss.

In: what `isoflop.evaluation.run.evaluate` found, with samples, and the result.json of runs that have one. Out: HTML.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import DataError
from isoflop.evaluation.grade import BITS
from isoflop.evaluation.statistics import paired
from isoflop.pages.html import page
from isoflop.pages.plot import MUTED, NAMED, installed, light_grid, new_figure, style, svg_text
from isoflop.recipe import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
Sample = Mapping[str, Any]
SIDE_BY_SIDE = 6
"""Runs that fit beside each other; with more, a run is a row and no differences are shown (assumption)."""
SHOWN, MOST_CHARACTERS = 12, 700
"""Samples of a task in each direction, and the end of a prompt that is shown."""


def report_page(found: Found, samples: Iterable[Sample]) -> str:
    """The page of one evaluation of one run or more; the first run is what others are compared with."""
    runs: dict[str, Any] = found["runs"]
    labels = short_names(list(runs))
    by_run: dict[str, dict[str, dict[str, Sample]]] = {name: {} for name in runs}
    for row in samples:
        by_run[row["run"]].setdefault(row["task"], {})[row["item"]] = row
    losses = {name: loss for name in runs if (loss := loss_of(Path(name))) is not None}
    pictures = {}
    if installed():
        pictures["scores"] = svg_text(score_figure(runs, labels), "scores", "scores with 95% intervals")
        if len(losses) > 2:
            pictures["loss"] = svg_text(loss_figure(runs, losses), "loss", "scores against loss")
    first, *_, last = [*runs, *runs]
    return page(
        "evaluation/report.html",
        pictures=pictures,
        title="Evaluation" if len(runs) > 1 else f"Evaluation of {labels[first]}",
        labels=labels,
        beside=len(runs) <= SIDE_BY_SIDE,
        scores=_score_rows(runs, labels),
        differences=_difference_rows(by_run, labels, first) if len(runs) <= SIDE_BY_SIDE else [],
        browser=[] if first == last else _browser(by_run[first], by_run[last]),
        first=labels[first],
        last=labels[last],
        contamination=_contamination_rows(runs, labels),
        train_text=[text for run in list(runs.values())[:1] for text in run["settings"].get("train_text", [])],
        problems=_problem_rows(runs, labels),
        settings={
            labels[name]: json.dumps(run["settings"], indent=1, ensure_ascii=False) for name, run in runs.items()
        },
        commit=runs[first]["settings"]["commit"],
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Folders without what all of them begin with; of one, its own name."""
    parts = [Path(name).parts for name in names]
    same = 0
    while all(len(one) > same + 1 for one in parts) and len({one[same] for one in parts}) == 1:
        same += 1
    return {name: str(Path(*one[same:])) for name, one in zip(names, parts, strict=True)}


def loss_of(run: Path) -> float | None:
    """Validation bits per byte of a run, where training measured them."""
    path = run / "result.json"
    return read_json(path, DataError, "run isoflop train again").get("bits_per_byte") if path.is_file() else None


def _score_rows(runs: Mapping[str, Any], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, run in runs.items():
        for task, metrics in run["tasks"].items():
            for metric, value in metrics.items():
                row = rows.setdefault((task, metric), {"task": task, "metric": metric, "runs": []})
                row["runs"].append({"run": labels[name], **value})
    return list(rows.values())


def _difference_rows(
    by_run: Mapping[str, Mapping[str, Mapping[str, Sample]]], labels: Mapping[str, str], first: str
) -> list[dict[str, Any]]:
    """Every other run minus the first, on the items that both have a score for."""
    rows = []
    for name, tasks in by_run.items():
        for task, items in tasks.items() if name != first else ():
            ours = by_run[first].get(task, {})
            both = [(ours[at], items[at]) for at in items if at in ours and ours[at]["scores"] and items[at]["scores"]]
            for metric in both[0][0]["scores"] if both else ():
                pairs = [(a, b) for a, b in both if metric in a["scores"] and metric in b["scores"]]
                groups = [a["group"] or a["item"] for a, _ in pairs]
                if len({*groups}) < 2:
                    continue
                before, after = ([one["scores"][metric] for one in side] for side in zip(*pairs, strict=True))
                gap = paired(before, after, groups)
                clear = gap.low > 0 or gap.high < 0
                row = {"run": labels[name], "task": task, "metric": metric, "difference": gap.value, "n": gap.n}
                rows.append({**row, "interval": (gap.low, gap.high), "clear": "yes" if clear else "no"})
    return rows


def _browser(ours: Mapping[str, Mapping[str, Sample]], theirs: Mapping[str, Mapping[str, Sample]]) -> list[dict]:
    """By task: items right in one run and wrong in the other, by the task's last accuracy."""
    found = []
    for task, items in ours.items():
        both = [(a, theirs[task][at]) for at, a in items.items() if at in theirs.get(task, {})]
        both = [(a, b) for a, b in both if a["scores"] and b["scores"]]
        names = [name for name in (both[0][0]["scores"] if both else ()) if "bits" not in name]
        if not names:
            continue
        metric = names[-1]
        for right, pairs in (
            ("first", [(a, b) for a, b in both if a["scores"][metric] >= 1 > b["scores"][metric]]),
            ("last", [(a, b) for a, b in both if b["scores"][metric] >= 1 > a["scores"][metric]]),
        ):
            shown = [_shown(a, b, metric) for a, b in pairs[:SHOWN]]
            found.append(
                {"task": task, "metric": metric, "right": right, "n": len(pairs), "of": len(both), "items": shown}
            )
    return found


def _shown(a: Sample, b: Sample, metric: str) -> dict[str, Any]:
    prompt = a["prompt"] if isinstance(a["prompt"], str) else a["prompt"][0]
    item: dict[str, Any] = {"item": a["item"], "prompt": prompt[-MOST_CHARACTERS:], "options": [], "outputs": None}
    if "options" in a:
        chosen = a["verdict"][metric], b["verdict"][metric]
        item["options"] = [
            {"text": text, "gold": at in a["gold"], "first": at == chosen[0], "last": at == chosen[1]}
            for at, text in enumerate(a["options"])
        ]
    elif "outputs" in a:
        item["outputs"] = [(one["outputs"] or [""])[0][:MOST_CHARACTERS] for one in (a, b)]
    return item


def _contamination_rows(runs: Mapping[str, Any], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Scores of all items beside those of the items that the training text does not hold; empty if not looked for."""
    rows = []
    for name, run in runs.items():
        for task, metrics in run["tasks"].items():
            marked = run["details"][task].get("contamination")
            for metric, value in metrics.items() if marked else ():
                row = {"run": labels[name], "task": task, "metric": metric, **marked, "value": value["value"]}
                row["interval"] = (value["low"], value["high"])
                clean = marked["clean"].get(metric)
                if clean:
                    row |= {"clean_value": clean["value"], "clean_interval": (clean["low"], clean["high"])}
                rows.append(row | {"clean_n": clean["n"] if clean else 0})
    return rows


def _problem_rows(runs: Mapping[str, Any], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """What was missing, skipped or cut; nothing where nothing was."""
    return [
        {"run": labels[name], "task": task, "first": (d["problems"] or [None])[0]}
        | {key: d[key] for key in ("n_items", "n_missing", "n_skipped", "n_truncated")}
        for name, run in runs.items()
        for task, d in run["details"].items()
        if d["n_missing"] or d["n_skipped"] or d["n_truncated"]
    ]


def score_figure(runs: Mapping[str, Any], labels: Mapping[str, str]) -> "Figure":
    """A panel per task: each metric that lies between 0 and 1, a dot and its interval per run; chance is dashed."""
    tasks = list(next(iter(runs.values()))["tasks"])
    with style():
        height = max(2.2, 0.24 * len(runs) + 1.2)
        figure = new_figure(height * -(-len(tasks) // 2))
        panels = figure.subplots(-(-len(tasks) // 2), 2, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            metrics = [name for name in next(iter(runs.values()))["tasks"][task] if "bits" not in name]
            for place, run in enumerate(runs.values()):
                for index, metric in enumerate(metrics):
                    v = run["tasks"][task].get(metric)
                    if v:
                        at = -place - 0.7 * (index - (len(metrics) - 1) / 2) / max(len(metrics), 1)
                        label = metric if not place else None
                        axes.plot([v["low"], v["high"]], [at, at], color=NAMED[index % len(NAMED)], linewidth=1.2)
                        axes.plot(v["value"], at, "o", color=NAMED[index % len(NAMED)], markersize=4, label=label)
            chance = next(iter(runs.values()))["details"][task].get("chance")
            if chance is not None:
                axes.axvline(chance, color=MUTED, linestyle="--", linewidth=1)
            many = len(runs) > 2 * SIDE_BY_SIDE
            axes.set_yticks([] if many else [-place for place in range(len(runs))], [] if many else labels.values())
            axes.set_title(task)
            light_grid(axes, "x")
            if metrics:
                axes.legend(frameon=False, fontsize=8)
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
    return figure


def loss_figure(runs: Mapping[str, Any], losses: Mapping[str, float]) -> "Figure":
    """Two panels per task: bits per byte of right answers against validation loss, and accuracy against those bits."""
    tasks = [task for task, metrics in next(iter(runs.values()))["tasks"].items() if BITS in metrics]
    with style():
        figure = new_figure(max(2.6 * len(tasks), 1.0))
        for (left, right), task in zip(figure.subplots(max(len(tasks), 1), 2, squeeze=False), tasks, strict=False):
            scored = {name: run["tasks"][task] for name, run in runs.items() if BITS in run["tasks"].get(task, {})}
            known = [name for name in scored if name in losses]
            left.plot([losses[n] for n in known], [scored[n][BITS]["value"] for n in known], "o", color=NAMED[0])
            left.set_title(task)
            left.set_ylabel("answer bits per byte")
            left.set_xlabel("validation loss (bits per byte)")
            metrics = [m for m in next(iter(scored.values())) if "bits" not in m]
            for index, metric in enumerate(metrics):
                rows = [(one[BITS]["value"], one[metric]) for one in scored.values()]
                color = NAMED[index % len(NAMED)]
                for bits, v in rows:
                    right.plot([bits, bits], [v["low"], v["high"]], color=color, linewidth=0.8, alpha=0.5)
                right.plot([x for x, _ in rows], [v["value"] for _, v in rows], "o", color=color, label=metric)
            chance = next(iter(runs.values()))["details"][task].get("chance")
            if chance is not None:
                right.axhline(chance, color=MUTED, linestyle="--", linewidth=1, label="chance")
            right.set_ylabel("accuracy")
            right.set_xlabel("answer bits per byte")
            right.legend(frameon=False, fontsize=8)
            for axes in (left, right):
                axes.invert_xaxis()  # better to the right
                light_grid(axes)
    return figure
