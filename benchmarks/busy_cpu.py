"""Training on two cores, alone and beside one plain loop: what waiting threads do to each other.

    python benchmarks/busy_cpu.py                                       as isoflop sets it, against OpenMP's own default
    python benchmarks/busy_cpu.py --ways isoflop GOMP_SPINCOUNT=100 OMP_WAIT_POLICY=passive threads=1

A way is settings of the environment joined by commas; "isoflop" leaves them to isoflop.threads, and 300000 spins are
what GNU's OpenMP has by itself. Each way is a process of its own on the same two cores; ways take turns, so that a
machine that is not quiet disturbs all alike.
The model is the size of the demo's target (d_model 96, 4 layers).
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from isoflop.run import processor

REPOSITORY = Path(__file__).parents[1]


def train(seconds: float, n_threads: int) -> None:
    """Print the tokens per second of full steps, after a second of warm-up."""
    import torch

    from isoflop.model.config import ModelConfig, swiglu_width
    from isoflop.model.transformer import Transformer
    from isoflop.training.optim import adamw

    torch.set_num_threads(n_threads)
    config = ModelConfig(4, 96, 3, 3, 32, swiglu_width(96, 32), 4096, 256)
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    windows = torch.randint(4096, (8, 257), generator=torch.Generator().manual_seed(0))
    for length in (1.0, seconds):
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < length:
            (model.loss_sum(windows[:, :-1], windows[:, 1:]) / 2048).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        rate = steps * 2048 / (time.perf_counter() - began)
    print(rate)


def measured(way: str, beside: bool, seconds: float, cores: set[int]) -> float:
    """Tokens per second of one process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    settings = dict(part.split("=") for part in way.split(",") if "=" in part)
    n_threads = settings.pop("threads", str(len(cores)))
    environment |= settings
    environment["PYTHONPATH"] = str(REPOSITORY)
    pin = lambda: os.sched_setaffinity(0, cores)
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=pin) if beside else None
    try:
        command = [sys.executable, __file__, "--seconds", str(seconds), "--child", n_threads]
        return float(subprocess.check_output(command, env=environment, preexec_fn=pin).split()[-1])
    finally:
        if loop is not None:
            loop.kill()
            loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=["GOMP_SPINCOUNT=300000", "isoflop"])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train(args.seconds, args.child)
        return
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    print(f"{processor()}, two cores of it")
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(args.repeats):
        for way in args.ways:
            for beside in (False, True):
                found.setdefault((way, beside), []).append(measured(way, beside, args.seconds, cores))
    for way in args.ways:
        alone, beside = (statistics.median(found[way, key]) for key in (False, True))
        print(f"{way:36} {alone:9,.0f} tokens/s alone  {beside:9,.0f} beside a loop", flush=True)


if __name__ == "__main__":
    main()
