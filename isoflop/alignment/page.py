"""The page of one run of alignment: curves, answers before and after, lengths, what was set aside.

In: the run folder with metrics.jsonl, before.json and quarantine.jsonl, and what the run found. Out: report.html.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.alignment.build import BEFORE, read_metrics
from isoflop.pages.charts import COLORS
from isoflop.pages.html import (
    Markup,
    decimal,
    duration,
    facts,
    fingerprint,
    folded,
    join,
    page,
    percent,
    picture,
    section,
    table,
    tag,
    tiles,
)
from isoflop.pages.plot import light_grid, new_figure, style, svg_text
from isoflop.recipe import to_toml, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "loss_nats": "loss (nats)",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "share of pairs won",
    "rewards/chosen": "reward, preferred",
    "rewards/rejected": "reward, other",
    "logps/chosen": "log-probability, preferred (nats)",
    "logps/rejected": "log-probability, other (nats)",
    "entropy": "entropy (nats a token)",
    "margin": "score margin",
    "accuracy": "share of pairs won",
}
SHOWN_BAD = 40


def write_page(run_dir: Path, kind: str, recipe: Any, result: Mapping[str, Any], said: Mapping[str, Any]) -> Path:
    """Write `run_dir`/report.html and return it."""
    before_path = run_dir / BEFORE
    before = json.loads(before_path.read_text(encoding="utf-8")) if before_path.is_file() else {}
    metrics = [line for line in read_metrics(run_dir) if "loss_nats" in line]
    pictures = {}
    if importlib.util.find_spec("matplotlib") is not None and len(metrics) > 1:
        pictures["curves"] = svg_text(curves(metrics), "curves", f"{kind} training curves")
    sections = [
        ("result", "Result", section("result", "Result", _tiles(before, result), _facts(result))),
        ("curves", "Curves", section("curves", "Curves", picture(pictures, "curves", "Each point is one step."))),
        ("answers", "Answers", section("answers", "Answers before and after", _answers(before.get("answers"), said))),
        ("data", "Data", section("data", "Data", _data(result["samples"], run_dir))),
        ("recipe", "Recipe", section("recipe", "Recipe", folded("Resolved recipe", tag("pre", to_toml(recipe))))),
    ]
    lead = f"{result['samples']['n_train']:,} samples, {result['step']:,} steps, {run_dir.name}"
    text = page(f"{kind}: {run_dir.name}", tag("p", lead), sections, f"commit {result.get('commit')}")
    write_text(run_dir / "report.html", text)
    return run_dir / "report.html"


def curves(metrics: Sequence[Mapping[str, Any]]) -> "Figure":
    """Panels of what metrics.jsonl has, the loss first."""
    groups = [
        ("loss_nats",),
        ("rewards/chosen", "rewards/rejected", "rewards/margins"),
        ("rewards/accuracies", "accuracy"),
        ("logps/chosen", "logps/rejected"),
        ("entropy",),
        ("gradient_norm",),
        ("learning_rate",),
    ]
    present = [[key for key in group if key in metrics[0]] for group in groups]
    present = [keys for keys in present if keys]
    with style():
        rows = -(-len(present) // 2)
        figure = new_figure(2.4 * rows)
        panels = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, keys in zip(panels, present):
            for index, key in enumerate(keys):
                values = [line[key] for line in metrics]
                axes.plot([line["step"] for line in metrics], values, color=COLORS[index], label=LABELS[key])
            axes.set_ylabel(LABELS[keys[0]] if len(keys) == 1 else "")
            axes.set_xlabel("optimizer step")
            light_grid(axes)
            if len(keys) > 1:
                axes.legend(frameon=False)
        for axes in panels[len(present) :]:
            axes.set_visible(False)
    return figure


def _tiles(before: Mapping[str, Any], result: Mapping[str, Any]) -> Markup:
    items: list[tuple[str, Any, Any]] = []
    validation = result.get("validation") or {}
    if "loss_nats" in validation:
        start = before.get("assistant_loss", {}).get("value")
        remark = f"nats a token on {validation['n']:,} held-out samples" + (f"; before: {start:.3f}" if start else "")
        items.append(("held-out loss", decimal(validation["loss_nats"], 3), remark))
    if "accuracy" in result:
        longer = validation.get("longer_wins")
        items.append(("pairs won", percent(result["accuracy"], 1), f"longer wins: {longer:.1%}" if longer else ""))
    answers = before.get("answers") or {}
    for key, name in (("stop_share", "answers that stop"), ("repetition_ratio", "answers that loop")):
        if key in result:
            start = answers.get(key, {}).get("value")
            items.append((name, percent(result[key], 1), "" if start is None else f"before: {start:.1%}"))
    return tiles(items)


def _facts(result: Mapping[str, Any]) -> Markup:
    return facts(
        [
            ("status", result["status"]),
            ("steps", result["step"]),
            ("time", duration(result.get("wall_s"))),
            ("tokens per second", result.get("tokens_per_s")),
            ("device", result.get("device")),
            ("template", result.get("template")),
            ("base weights", fingerprint(result.get("base_sha256"))),
        ]
    )


def _answers(before: Mapping[str, Any] | None, said: Mapping[str, Any]) -> Markup:
    if not said.get("shown"):
        return Markup("")
    earlier = (before or {}).get("shown") or [None] * len(said["shown"])
    rows = []
    for old, new in zip(earlier, said["shown"]):
        asked = "\n".join(content for _, content in new["prompt"])
        rows.append([asked, new["expected"], old and _said(old), _said(new)])
    return table(["asked", "in the data", "before", "after"], rows, text_columns=(0, 1, 2, 3))


def _said(item: Mapping[str, Any]) -> str:
    text = item["answer"]
    shown = text if len(text) <= 400 else f"{text[:400]} ..."
    return shown if item["stopped"] else f"{shown} [did not stop]"


def _data(summary: Mapping[str, Any], run_dir: Path) -> Markup:
    lengths = table(["tokens from", "samples"], [[int(k), n] for k, n in summary["lengths"].items()])
    counts = table(["set aside because", "records"], list(summary["set_aside"].items()))
    path = run_dir / "quarantine.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:SHOWN_BAD] if path.is_file() else []
    bad = [(item["origin"], item["reason"]) for item in map(json.loads, lines)]
    return join(
        facts(
            [
                ("training samples", summary["n_train"]),
                ("held-out samples", summary["n_valid"]),
                ("tokens", summary["tokens"]),
                ("tokens trained on", summary["targets"]),
                ("limit", f"{summary['max_tokens']} tokens; the longest sample has {summary['longest']}"),
            ]
        ),
        lengths,
        counts if summary["set_aside"] else "",
        folded("The first of them", table(["place", "reason"], bad, text_columns=(0, 1))) if bad else "",
    )
