"""How well a run's end is forecast from its own curve, and how soon a run that leaves its band is flagged.

Ten small undisturbed runs (widths, depths, schedules, rates and seeds differ), and three whose rate is multiplied by
ten at 40% of their steps. Forecasts and warnings are those of isoflop.training.forecast, made from the metrics step by
step, as `isoflop train` makes them. Finished runs are read, not repeated.

    python benchmarks/schedules.py --tokens demo/tokens --out runs/schedules --json found.json --figure forecast.svg

Writes one row per run: errors of the forecast at shares of the steps, in %, and where it was flagged.
"""

import argparse
import dataclasses
import json
import math
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from isoflop.pages.plot import BLUE, GREEN, INK, MUTED, VERMILION, light_grid, new_figure, save, style
from isoflop.recipe import from_tree, write_json
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.recipe import PretrainRecipe
from isoflop.training.pretrain.workload import Pretraining, forecast_of
from isoflop.training.run import run

SCHEDULES = ("constant_cooldown", "multi_step", "cosine")
SIZES = ((32, 2, 3200), (48, 2, 2600), (32, 3, 2800), (48, 3, 2400), (64, 2, 2400))
"""d_model, n_layers, steps."""
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DISTURBED_AT, TIMES = 0.4, 10.0


def recipe_of(tokens: Path, size: tuple[int, int, int], schedule: str, seed: int, rate: float) -> PretrainRecipe:
    d_model, n_layers, n_steps = size
    n_heads, batch = d_model // 16, 896
    model = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_heads, "d_head": 16}
    model |= {"d_ff": 16 * math.ceil(d_model / 6), "vocab_size": 1024, "seq_len": 64, "init_std": 0.4 / d_model**0.5}
    train = {"n_tokens": n_steps * batch, "batch_tokens": batch, "learning_rate": rate, "seed": seed}
    train |= {"warmup_steps": round(0.02 * n_steps), "schedule": schedule, "beta2": 0.99, "device": "cpu", "threads": 1}
    tree = {"model": model, "data": {"tokens": str(tokens)}, "train": train, "checkpoint": {"every_s": 0.0}}
    return from_tree(tree | {"validate": {"max_tokens": 65536}}, PretrainRecipe)


def runs_of(tokens: Path) -> dict[str, tuple[PretrainRecipe, float]]:
    """Name -> recipe, and what its rate is multiplied by from `DISTURBED_AT` on."""
    found = {}
    for number in range(10):
        size, schedule = SIZES[number % 5], SCHEDULES[number % 3]
        recipe = recipe_of(tokens, size, schedule, 20 + number, (0.004, 0.003, 0.005)[number // 3 % 3])
        found[f"{schedule}-{size[0]}x{size[1]}-{size[2]}-{20 + number}"] = (recipe, 1.0)
    for seed, schedule in enumerate(("constant_cooldown", "cosine", "multi_step")):
        recipe = recipe_of(tokens, (32, 2, 1500), schedule, seed, 0.004)
        found[f"x10-{schedule}-32x2-1500-{seed}"] = (recipe, TIMES)
    return found


def train(job: tuple[Path, PretrainRecipe, float]) -> None:
    folder, recipe, times = job
    pretraining = Pretraining(recipe)
    begin = DISTURBED_AT * recipe.n_steps()
    rate = lambda step: recipe.rate(step) * (times if step >= begin else 1.0)
    pretraining.plan = dataclasses.replace(pretraining.plan, rate=rate)
    run(pretraining, folder)


def foreseen(folder: Path, recipe: PretrainRecipe) -> tuple[float, list[dict], np.ndarray]:
    """Final training loss, what was known at each hundredth of the run, and the losses of all steps."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [row for row in rows if "loss_nats" in row]
    forecast = forecast_of(recipe, TokenSet.open(recipe.data.tokens))
    assert forecast is not None
    known = [found for line in steps if (found := forecast.add(line))]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result["train_loss_nats"], known, np.array([step["loss_nats"] for step in steps])


def row_of(name: str, recipe: PretrainRecipe, final: float, known: list[dict]) -> dict:
    n_steps, row = recipe.n_steps(), {"run": name, "final": final}
    for share in SHARES:
        end = next((line.get("final") for line in known if line["step"] >= share * n_steps), None)
        row[f"{share:.0%}"] = end and 100 * (end["center"] / final - 1)
        row[f"inside {share:.0%}"] = end and end["low"] <= final <= end["high"]
    warned = next((line for line in known if "warning" in line), None)
    return row | {"flagged": warned and warned["step"] / n_steps, "warning": warned and warned["warning"]}


def figure_of(curves: dict[str, tuple[PretrainRecipe, float, list[dict], np.ndarray]]):
    """Left: error of the forecast of every undisturbed run as it goes on. Right: a run whose rate rises tenfold."""
    colors: dict[str, str] = dict(zip(SCHEDULES, (BLUE, VERMILION, GREEN), strict=True))
    with style():
        figure = new_figure(4.2, width=9.6)
        left, right = figure.subplots(1, 2)
        widths: dict[int, list[float]] = {}
        for name, (recipe, final, known, _) in curves.items():
            schedule = str(recipe.train.schedule)
            if name.startswith("x10"):
                continue
            rows = [(100 * line["step"] / recipe.n_steps(), line["final"]) for line in known if "final" in line]
            for share, end in rows:
                widths.setdefault(round(share), []).append(50 * (end["high"] - end["low"]) / final)
            errors = [100 * (end["center"] / final - 1) for _, end in rows]
            first = not left.get_legend_handles_labels()[1].count(schedule)
            label = schedule if first else None
            left.plot([x for x, _ in rows], errors, color=colors[schedule], linewidth=1.0, label=label)
        shares = sorted(widths)
        half = np.array([np.median(widths[share]) for share in shares])
        left.fill_between(shares, -half, half, color=MUTED, alpha=0.18, linewidth=0, label="90% interval (median)")
        left.set(xlabel="steps so far (%)", ylabel="forecast of the final loss, error (%)", ylim=(-9, 9))
        left.set_title("Ten runs, undisturbed")
        left.legend(frameon=False, fontsize=8, loc="upper right")
        light_grid(left)
        recipe, _, known, losses = next(curve for name, curve in curves.items() if name.startswith("x10"))
        right.plot(np.arange(1, len(losses) + 1), losses, color=MUTED, linewidth=0.4, alpha=0.6)
        right.plot([line["step"] for line in known], [line["loss_nats"] for line in known], color=BLUE, label="loss")
        warned = next(line for line in known if "warning" in line)
        band = [(line["step"], line["expected"]) for line in known if "expected" in line]
        band = [(step, expected) for step, expected in band if step <= warned["step"]]
        low, high = ([expected[end] for _, expected in band] for end in ("low", "high"))
        right.fill_between([step for step, _ in band], low, high, color=INK, alpha=0.2, linewidth=0, label="band")
        right.axvline(warned["step"], color=VERMILION, linewidth=1.2, label="warning")
        right.set(xlabel="step", ylabel="training loss (nats per token)", ylim=(3.4, 5.4))
        right.set_title("Learning rate x 10 at 40%")
        right.legend(frameon=False, fontsize=8)
        light_grid(right)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="tokens folder with 1,024 rows, as of isoflop demo")
    parser.add_argument("--out", type=Path, default=Path("runs/schedules"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    runs = runs_of(given.tokens)
    with get_context("spawn").Pool(given.workers) as pool:
        pool.map(train, [(given.out / name, recipe, times) for name, (recipe, times) in runs.items()], chunksize=1)
    curves = {name: (recipe, *foreseen(given.out / name, recipe)) for name, (recipe, _) in runs.items()}
    rows = [row_of(name, recipe, final, known) for name, (recipe, final, known, _) in curves.items()]
    for row in rows:
        errors = "  ".join(
            "    -" if row[f"{share:.0%}"] is None else f"{row[f'{share:.0%}']:+5.2f}" for share in SHARES
        )
        flagged = f"flagged at {row['flagged']:.1%}" if row["flagged"] else "no alarm"
        print(f"{row['run']:32}  {row['final']:.4f}  {errors}  {flagged}")
    calm = [row for row in rows if not row["run"].startswith("x10")]
    for share in SHARES:
        errors = np.abs([row[f"{share:.0%}"] for row in calm])
        inside = sum(row[f"inside {share:.0%}"] for row in calm)
        print(f"at {share:.0%}: mean {errors.mean():.2f}%, most {errors.max():.2f}%, inside {inside} of {len(calm)}")
    if given.json:
        write_json(given.json, {"rows": rows})
    if given.figure:
        save(figure_of(curves), given.figure)


if __name__ == "__main__":
    main()
