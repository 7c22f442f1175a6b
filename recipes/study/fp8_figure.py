"""The runs of the FP8 study beside bf16: losses averaged over 20 steps and held-out loss, and what FP8 adds to them.

    python recipes/study/fp8_figure.py runs/fp8/dense --out docs/studies/fp8

Reads seed*/RUN of the folder, compares each run with `bfloat16` of its seed, and writes dense.json and dense.png (named
like the folder).
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from isoflop.pages.plot import AMBER, BLUE, GREEN, MAUVE, VERMILION, light_grid, new_figure, style
from isoflop.recipe import write_json

BASE = "bfloat16"
COLORS = {BASE: BLUE, f"{BASE}_again": "0.55"}
OF_FORMATS = (VERMILION, GREEN, AMBER, MAUVE)
STEPS = 20
WARMUP = 64
"""Steps of the study's recipes before which nothing is compared."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, help="default: the folder of the runs")
    options = parser.parse_args()
    bases = {path.parent.name: path for path in sorted(options.runs.glob(f"seed*/{BASE}")) if _done(path)}
    if not bases:
        raise SystemExit(f"error: {options.runs} holds no finished seed*/{BASE}, which the others are compared with")
    runs = [path for base in bases.values() for path in sorted(base.parent.iterdir()) if path != base and _done(path)]
    rows = [compared(path, bases[path.parent.name]) for path in runs]
    by_name = {name: [row for row in rows if row["run"] == name] for name in sorted({row["run"] for row in rows})}
    first = json.loads((next(iter(bases.values())) / "result.json").read_text())
    found = {
        "n_tokens": first["n_tokens"],
        "device": first["device"],
        "mean_excess": {name: {key: _mean(row[key] for row in of) for key in KEYS} for name, of in by_name.items()},
        "runs": [_summary(path) for path in bases.values()] + [row | _summary(path) for row, path in zip(rows, runs)],
    }
    out = options.out or options.runs
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{options.runs.name}.json", found)
    draw(out / f"{options.runs.name}.png", bases, runs, list(by_name))
    print(f"{'over ' + BASE:24s} {'seed':8s} held-out  training: mean    most  at the end")
    for row in rows:
        print(f"{row['run']:24s} {row['seed']:8s} " + "  ".join(f"{row[key]:+9.2%}" for key in KEYS))
    for name, of in found["mean_excess"].items():
        print(f"{name:24s} {'mean':8s} " + "  ".join(f"{of[key]:+9.2%}" for key in KEYS))


KEYS = ("held_out", "mean", "most", "last")
"""Of a comparison: held-out loss; training losses over all windows, the worst and the last of them."""


def compared(run: Path, base: Path) -> dict:
    """What `run` has over `base`, as shares of the loss."""
    over = excess(run, base)
    held_out = json.loads((run / "result.json").read_text())["loss_nats"]
    base_loss = json.loads((base / "result.json").read_text())["loss_nats"]
    shares = (held_out / base_loss - 1, over.mean(), over.max(), over[-1])
    return {"run": run.name, "seed": run.parent.name} | dict(zip(KEYS, map(float, shares)))


def excess(run: Path, base: Path) -> np.ndarray:
    """Averaged training losses over those of `base`, from the first window after warm-up."""
    return (averaged(run / "metrics.jsonl") / averaged(base / "metrics.jsonl") - 1)[WARMUP:]


def averaged(metrics: Path) -> np.ndarray:
    """Training losses, each the mean of `STEPS` steps in a row."""
    rows = map(json.loads, metrics.read_text().splitlines())
    return np.convolve([row["loss_nats"] for row in rows], np.full(STEPS, 1 / STEPS), "valid")


def draw(path: Path, bases: dict[str, Path], runs: list[Path], names: list[str]) -> None:
    """The losses, and under them what each run has over bf16; a line a seed."""
    first = json.loads((next(iter(bases.values())) / "result.json").read_text())
    step_mtokens = first["n_tokens"] / first["n_steps"] / 1e6
    colors = dict(zip((name for name in names if name not in COLORS), OF_FORMATS)) | COLORS
    with style():
        figure = new_figure(4.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for run in [*bases.values(), *runs]:
            mean = averaged(run / "metrics.jsonl")
            label = run.name if run.parent.name == next(iter(bases)) else None
            upper.plot((np.arange(len(mean)) + STEPS) * step_mtokens, mean, color=colors[run.name], label=label)
        upper.set_ylabel("training loss (nats)")
        upper.legend(frameon=False)
        for run in runs:
            over = excess(run, bases[run.parent.name])
            lower.plot((np.arange(len(over)) + WARMUP + STEPS) * step_mtokens, over * 100, color=colors[run.name])
        lower.axhline(0.25, color="0.6", linewidth=0.8, linestyle="--")
        lower.axhline(0, color="0.6", linewidth=0.8)
        lower.set_ylabel("over bfloat16 (%)")
        lower.set_xlabel("tokens (million)")
        for axes in (upper, lower):
            light_grid(axes, "y")
        figure.savefig(path, dpi=150)


def _done(run: Path) -> bool:
    return (run / "result.json").is_file()


def _summary(run: Path) -> dict:
    """What the record keeps of a run."""
    result = json.loads((run / "result.json").read_text())
    losses = averaged(run / "metrics.jsonl")[::STEPS].round(5).tolist()
    kept = {key: result[key] for key in ("loss_nats", "numerics", "tokens_per_s")}
    return {"run": run.name, "seed": run.parent.name} | kept | {"every_20_steps": losses}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
