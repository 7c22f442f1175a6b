"""The two runs of the FP8 study beside each other: losses averaged over 20 steps, their difference, held-out loss.

    python recipes/study/fp8_figure.py runs/fp8 --out docs/studies/fp8

Writes fp8.json and fp8.png.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from isoflop.pages.plot import BLUE, VERMILION, light_grid, new_figure, style
from isoflop.recipe import write_json

FORMATS = ("bfloat16", "fp8_block")
STEPS = 20
WARMUP = 64
"""Steps of `fp8_train.toml` before which nothing is compared."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, help="default: the folder of the runs")
    options = parser.parse_args()
    results = {name: json.loads((options.runs / name / "result.json").read_text()) for name in FORMATS}
    lines = {name: (options.runs / name / "metrics.jsonl").read_text().splitlines() for name in FORMATS}
    losses = {name: [json.loads(line)["loss_nats"] for line in lines[name]] for name in FORMATS}
    means = {name: np.convolve(losses[name], np.full(STEPS, 1 / STEPS), "valid") for name in FORMATS}
    excess = (means["fp8_block"] / means["bfloat16"] - 1)[WARMUP:]  # the window's first step lies after warm-up
    held_out = {name: results[name]["loss_nats"] for name in FORMATS}
    found = {
        "training_loss_excess": {"mean": excess.mean(), "most": excess.max(), "last": excess[-1]},
        "held_out_loss_nats": held_out,
        "held_out_loss_excess": held_out["fp8_block"] / held_out["bfloat16"] - 1,
        "n_tokens": results["fp8_block"]["n_tokens"],
        "tokens_per_s": {name: results[name]["tokens_per_s"] for name in FORMATS},
        "device": results["fp8_block"]["device"],
        "every_20_steps": {name: means[name][::STEPS].round(5).tolist() for name in FORMATS},
    }
    out = options.out or options.runs
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "fp8.json", found)
    draw(out / "fp8.png", means, excess, results["bfloat16"]["n_tokens"] / len(losses["bfloat16"]) / 1e6)
    print(json.dumps({key: value for key, value in found.items() if key != "every_20_steps"}, indent=1))


def draw(path: Path, means: dict[str, np.ndarray], excess: np.ndarray, step_mtokens: float) -> None:
    """Both losses, and under them what FP8 adds."""
    with style():
        figure = new_figure(4.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for name, color in zip(FORMATS, (BLUE, VERMILION)):
            upper.plot((np.arange(len(means[name])) + STEPS) * step_mtokens, means[name], color=color, label=name)
        upper.set_ylabel("training loss (nats)")
        upper.legend(frameon=False)
        lower.plot((np.arange(len(excess)) + WARMUP + STEPS) * step_mtokens, excess * 100, color=VERMILION)
        lower.axhline(0.25, color="0.6", linewidth=0.8, linestyle="--")
        lower.axhline(0, color="0.6", linewidth=0.8)
        lower.set_ylabel("FP8 over bf16 (%)")
        lower.set_xlabel("tokens (million)")
        for axes in (upper, lower):
            light_grid(axes, "y")
        figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
