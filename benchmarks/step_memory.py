"""Memory of a training step on a GPU: the forecast of `isoflop inspect` against the allocator's peak.

    python benchmarks/step_memory.py [--rows dense-1.3b MoE ...] [--json FILE]

Each row is one shape, micro-batch, number format, with blocks compiled or not: two steps of two micro-batches of random
tokens, as train_step.py takes them, each row in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from train_step import CASES, measure

from isoflop.model.accounting import training_memory
from isoflop.recipe import load_recipe
from isoflop.run import commit
from isoflop.training.pretrain.recipe import PretrainRecipe

SHAPES = {name: (shape, micro_batch) for name, shape, micro_batch, _ in CASES["cuda"]}
RECIPES = {"dense-125m": 2, "dense-1.3b": 2, "deepseek-7b": 1}
"""Recipes of the repository, and their micro-batches."""
ROWS = [
    *((name, "bfloat16", compiled) for name in (*RECIPES, *SHAPES) for compiled in ("off", "on")),
    *(("1.3B", format, "off") for format in ("fp8_block", "fp8_tensorwise")),
    ("MoE", "fp8_rowwise", "off"),
]


def run(name: str, format: str, compiled: str) -> dict[str, Any]:
    """One row, in this process."""
    if name in RECIPES:
        shape, micro_batch = load_recipe(Path(f"recipes/pretrain/{name}.toml"), PretrainRecipe).model, RECIPES[name]
    else:
        shape, micro_batch = SHAPES[name]
    args = argparse.Namespace(modules="blocks.*", compile=compiled, steps=1, warmup=1, repeats=1)
    measured = measure((name, shape, micro_batch, 2 * micro_batch), format, torch.device("cuda"), args)["memory_gib"]
    step = "kernels" if format == "bfloat16" else "fp8"
    forecast = training_memory(shape, micro_batch=micro_batch, step=step).total_bytes / 2**30
    where = {"name": name, "micro_batch": micro_batch, "format": format, "compiled": compiled == "on"}
    return {**where, "forecast_gib": forecast, "measured_gib": measured, "off": forecast / measured - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help="names of shapes, default all")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(*args.one)))
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, commit {commit()}")
    found = []
    for row in [row for row in ROWS if not args.rows or row[0] in args.rows]:
        done = subprocess.run([sys.executable, __file__, "--one", *row], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{row}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print("{name}, {micro_batch}, {format}, compiled {compiled}: forecast {forecast_gib:.2f} GiB, "
              "measured {measured_gib:.2f}, {off:+.1%}".format(**found[-1]), flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
