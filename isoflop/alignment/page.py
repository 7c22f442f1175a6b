"""The page of one run of alignment: curves, answers before and after, lengths, what was set aside.

In: the run folder with metrics.jsonl, before.json and quarantine.jsonl, and what the run found. Out: report.html.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.alignment.build import BEFORE
from isoflop.errors import DataError
from isoflop.pages.html import page
from isoflop.pages.plot import NAMED, installed, light_grid, new_figure, style, svg_text
from isoflop.recipe import read_json, to_toml, write_text
from isoflop.run import read_json_lines

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
    before_path, bad_path, metrics_path = (run_dir / name for name in (BEFORE, "quarantine.jsonl", "metrics.jsonl"))
    way_out = "delete it and run the same command again"
    before = read_json(before_path, DataError, way_out) if before_path.is_file() else {}
    lines = read_json_lines(metrics_path) if metrics_path.is_file() else []
    metrics = [line for line in lines if "loss_nats" in line]
    drawn = installed() and len(metrics) > 1
    samples = result["samples"]
    bad = bad_path.read_text(encoding="utf-8").splitlines()[:SHOWN_BAD] if bad_path.is_file() else []
    text = page(
        "alignment/page.html",
        pictures={"curves": svg_text(curves(metrics), "curves", f"{kind} training curves")} if drawn else {},
        title=f"{kind}: {run_dir.name}",
        name=run_dir.name,
        result=result,
        samples=samples,
        tiles=_tiles(before, result),
        answers=_answers(before.get("answers"), said),
        lengths=[{"tokens": int(tokens), "n": n} for tokens, n in samples["lengths"].items()],
        set_aside=[{"reason": reason, "n": n} for reason, n in samples["set_aside"].items()],
        quarantine=[json.loads(line) for line in bad],
        recipe=to_toml(recipe),
    )
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
                axes.plot([line["step"] for line in metrics], values, color=NAMED[index], label=LABELS[key])
            axes.set_ylabel(LABELS[keys[0]] if len(keys) == 1 else "")
            axes.set_xlabel("optimizer step")
            light_grid(axes)
            if len(keys) > 1:
                axes.legend(frameon=False)
        for axes in panels[len(present) :]:
            axes.set_visible(False)
    return figure


def _tiles(before: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    items: list[tuple[str, str, str]] = []
    validation = result.get("validation") or {}
    if "loss_nats" in validation:
        start = before.get("assistant_loss", {}).get("value")
        remark = f"nats on {validation['n']:,} held-out samples" + (f"; before: {start:.3f}" if start else "")
        items.append(("held-out loss", f"{validation['loss_nats']:.3f}", remark))
    if "accuracy" in result:
        longer = validation.get("longer_wins")
        items.append(("pairs won", f"{result['accuracy']:.1%}", "" if longer is None else f"longer wins: {longer:.1%}"))
    answers = before.get("answers") or {}
    for key, name in (("stop_share", "answers that stop"), ("repetition_ratio", "answers that loop")):
        if key in result:
            start = answers.get(key, {}).get("value")
            items.append((name, f"{result[key]:.1%}", "" if start is None else f"before: {start:.1%}"))
    return items


def _answers(before: Mapping[str, Any] | None, said: Mapping[str, Any]) -> list[dict[str, str | None]]:
    shown = said.get("shown", [])
    earlier = (before or {}).get("shown") or [None] * len(shown)
    return [
        {
            "asked": "\n".join(content for _, content in new["prompt"]),
            "expected": new["expected"],
            "before": old and answer_text(old),
            "after": answer_text(new),
        }
        for old, new in zip(earlier, shown)
    ]


def answer_text(item: Mapping[str, Any], most: int = 400) -> str:
    """An answer as pages show it: its beginning, and whether it stopped."""
    text = item["answer"] if len(item["answer"]) <= most else f"{item['answer'][:most]} ..."
    return text if item["stopped"] else f"{text} [did not stop]"
