"""Two sweeps against each other: laws, compute multiplier at every budget, differences of equal cells, one picture.

    python recipes/study/pair.py docs/studies/data/raw.jsonl docs/studies/data/clean.jsonl \\
        --labels raw cleaned --out docs/studies/data

`isoflop compare` answers by the laws, and at any budget. Where both sweeps ran the same cells (shape, tokens, seed),
their losses differ by what was changed and little else, so the mean difference is known more exactly; it holds for
these budgets only. Cells of one shape and seed share a trunk and count as one witness.
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import IsoflopError

LEVEL = 0.9


def cells(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Finished cells by what was trained."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {
        (row["d_model"], row["n_layers"], row["n_tokens"], row["seed"]): row
        for row in rows
        if row["status"] == "finished"
    }


def paired(a: dict[tuple[Any, ...], Any], b: dict[tuple[Any, ...], Any]) -> dict[str, dict[str, float]]:
    """Mean ln(loss of B / loss of A) of equal cells with its interval: in all, by domain, by budget."""
    from scipy.stats import t

    groups: dict[str, dict[tuple[Any, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for key in a.keys() & b.keys():
        one, other, witness = a[key], b[key], (key[0], key[1], key[3])
        ratio = math.log(other["bits_per_byte"] / one["bits_per_byte"])
        groups["all"][witness].append(ratio)
        groups[f"{one['budget_flops']:.3g} FLOPs"][witness].append(ratio)
        for domain, value in one["bits_per_byte_by_domain"].items():
            groups[domain][witness].append(math.log(other["bits_per_byte_by_domain"][domain] / value))
    found = {}
    for name, witnesses in sorted(groups.items()):
        means = [statistics.fmean(values) for values in witnesses.values()]
        half = math.nan
        if len(means) > 1:
            half = float(t.ppf((1 + LEVEL) / 2, len(means) - 1)) * statistics.stdev(means) / math.sqrt(len(means))
        mean = statistics.fmean(means)
        found[name] = {"mean": mean, "low": mean - half, "high": mean + half, "witnesses": len(means)}
    return found


def slope(laws: dict[str, Any], total_flops: float) -> float:
    """d ln L / d ln C of L*(C) = E + k C^-g."""
    law = laws["lstar"]
    falling = law["k"] * total_flops ** -law["g"]
    return -law["g"] * falling / (law["E"] + falling)


def show(result: dict[str, Any], labels: list[str]) -> None:
    """Markdown."""
    print(f"| budget (FLOPs) | {labels[1]} over {labels[0]}, compute multiplier by the laws (90%) | of equal cells |")
    print("|---|---|---|")
    for row in result["budgets"]:
        m, pair = row["multiplier"], row.get("paired")
        direct = f"{pair['center']:.3f} ({pair['low']:.3f} to {pair['high']:.3f})" if pair else "-"
        print(f"| {row['budget_flops']:.3g} | {m['center']:.2f} ({m['low']:.2f} to {m['high']:.2f}) | {direct} |")
    for name, row in result["paired"].items():
        if "FLOPs" not in name:
            print(
                f"loss of equal cells, {name}: {row['mean']:+.2%} ({row['low']:+.2%} to {row['high']:+.2%}), "
                f"{row['witnesses']} shapes and seeds"
            )


def draw(path: Path, sides: list[dict[tuple[Any, ...], Any]], laws: list[Any], labels: list[str]) -> None:
    """Loss against compute: all cells, and the best loss by each side's laws."""
    from isoflop.pages.plot import BLUE, VERMILION, light_grid, new_figure, style
    from isoflop.scaling.plan.predict import central_constants, optimum_losses

    with style():
        figure = new_figure(4.6)
        axes = figure.subplots()
        for runs, law, label, color in zip(sides, laws, labels, (BLUE, VERMILION)):
            flops = np.array([row["total_flops"] for row in runs.values()])
            losses = np.array([row["bits_per_byte"] for row in runs.values()])
            axes.plot(flops, losses, "o", color=color, markersize=4, alpha=0.6, label=f"{label}: runs")
            line = np.geomspace(flops.min(), flops.max() * 3, 60)
            centre = central_constants(law)
            curves = np.array(
                [list(optimum_losses(law, centre, float(c)).values()) for c in line], dtype=float
            ).reshape(len(line), -1)
            axes.plot(line, curves.mean(1), color=color, label=f"{label}: best, by its laws")
        axes.set_xscale("log")
        axes.set_xlabel("training compute M D (FLOPs)")
        axes.set_ylabel("validation loss (bits per byte)")
        axes.legend(frameon=False)
        light_grid(axes, "y")
        figure.savefig(path, dpi=150)


def main() -> None:
    """Read the command line."""
    from isoflop.recipe import write_json
    from isoflop.scaling.fit.joint import fit_law_set
    from isoflop.scaling.plan.compare import compare
    from isoflop.scaling.sweep.records import read_records

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs=2, type=Path, metavar="RECORDS", help="records.jsonl of A and of B")
    parser.add_argument("--labels", nargs=2, default=["A", "B"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    laws = [fit_law_set(read_records(path), hyper=False) for path in options.records]
    sides = [cells(path) for path in options.records]
    differences = paired(*sides)
    budgets = sorted(
        {row["budget_flops"] for row in sides[0].values()} | {r["budget_flops"] for r in sides[1].values()}
    )
    rows = []
    for budget in budgets:
        verdict = compare(laws[0], laws[1], budget_flops=budget, level=LEVEL)
        row: dict[str, Any] = {
            "budget_flops": budget,
            "multiplier": verdict["multiplier"],
            "verdict": verdict["verdict"],
        }
        if pair := differences.get(f"{budget:.3g} FLOPs"):
            steep = slope(laws[0], budget)
            ends = [math.exp(pair[key] / steep) for key in ("low", "high")]
            row["paired"] = {"center": math.exp(pair["mean"] / steep), "low": min(ends), "high": max(ends)}
        rows.append(row)
    result = {"labels": options.labels, "level": LEVEL, "budgets": rows, "paired": differences}
    write_json(options.out / "compare.json", result)
    draw(options.out / "compare.png", sides, laws, options.labels)
    show(result, options.labels)
    print(rows[-1]["verdict"])


if __name__ == "__main__":
    try:
        main()
    except IsoflopError as error:
        sys.exit(f"error: {error}")
