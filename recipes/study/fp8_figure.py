"""The runs of the FP8 study beside each other: losses averaged over 20 steps, what FP8 adds to them, held-out loss.

    python recipes/study/fp8_figure.py runs/fp8 --out docs/studies/fp8

Writes fp8.json and fp8.png, of those that have been trained: `fp8_block`, and `fp8_block_until`, which is FP8 until the
rate falls.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from isoflop.pages.plot import BLUE, GREEN, VERMILION, light_grid, new_figure, style
from isoflop.recipe import write_json

BASE = "bfloat16"
COLORS = {BASE: BLUE, "fp8_block": VERMILION, "fp8_block_until": GREEN}
"""Of each run, by the name of its folder."""
STEPS = 20
WARMUP = 64
"""Steps of `fp8_train.toml` before which nothing is compared."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, help="default: the folder of the runs")
    options = parser.parse_args()
    names = [name for name in COLORS if name == BASE or (options.runs / name / "result.json").is_file()]
    results = {name: json.loads((options.runs / name / "result.json").read_text()) for name in names}
    means = {name: averaged(options.runs / name / "metrics.jsonl") for name in names}
    excess = {name: (means[name] / means[BASE] - 1)[WARMUP:] for name in names[1:]}  # windows begin after warm-up
    held_out = {name: results[name]["loss_nats"] for name in names}
    found = {
        "training_loss_excess": {
            name: {"mean": over.mean(), "most": over.max(), "last": over[-1]} for name, over in excess.items()
        },
        "held_out_loss_nats": held_out,
        "held_out_loss_excess": {name: held_out[name] / held_out[BASE] - 1 for name in excess},
        "n_tokens": results[BASE]["n_tokens"],
        "numerics": {name: results[name]["numerics"] for name in names},
        "tokens_per_s": {name: results[name]["tokens_per_s"] for name in names},
        "device": results[BASE]["device"],
        "every_20_steps": {name: means[name][::STEPS].round(5).tolist() for name in names},
    }
    out = options.out or options.runs
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "fp8.json", found)
    draw(out / "fp8.png", means, excess, results[BASE]["n_tokens"] / results[BASE]["n_steps"] / 1e6)
    print(f"{'over ' + BASE:16s} held-out  training: mean    most  at the end")
    for name, over in found["training_loss_excess"].items():
        gaps = (found["held_out_loss_excess"][name], over["mean"], over["most"], over["last"])
        print(f"{name:16s} " + "  ".join(f"{gap:+9.2%}" for gap in gaps))


def averaged(metrics: Path) -> np.ndarray:
    """Training losses, each the mean of `STEPS` steps in a row."""
    rows = map(json.loads, metrics.read_text().splitlines())
    return np.convolve([row["loss_nats"] for row in rows], np.full(STEPS, 1 / STEPS), "valid")


def draw(path: Path, means: dict[str, np.ndarray], excess: dict[str, np.ndarray], step_mtokens: float) -> None:
    """The losses, and under them what FP8 adds."""
    with style():
        figure = new_figure(4.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for name, mean in means.items():
            upper.plot((np.arange(len(mean)) + STEPS) * step_mtokens, mean, color=COLORS[name], label=name)
        upper.set_ylabel("training loss (nats)")
        upper.legend(frameon=False)
        for name, over in excess.items():
            lower.plot((np.arange(len(over)) + WARMUP + STEPS) * step_mtokens, over * 100, color=COLORS[name])
        lower.axhline(0.25, color="0.6", linewidth=0.8, linestyle="--")
        lower.axhline(0, color="0.6", linewidth=0.8)
        lower.set_ylabel("FP8 over bf16 (%)")
        lower.set_xlabel("tokens (million)")
        for axes in (upper, lower):
            light_grid(axes, "y")
        figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
