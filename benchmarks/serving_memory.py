"""Whether an engine's memory stays where it is under a mixed load that is often cancelled.

    python benchmarks/serving_memory.py --minutes 30 --json memory.json

A tiny model, requests of all kinds (lengths, filters, penalties, log-probabilities, shared beginnings, drafts) that
come and are cancelled at random. Resident anonymous memory and swap are read every second; the last half of the time
should be flat. At the end every table of the engine must be empty.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.serving import Engine, EngineOptions, Sampling

CONFIG = ModelConfig(2, 48, 4, 2, 12, 64, 512, 512, init_std=0.1)


def held_bytes() -> int:
    """Of this process: RssAnon + VmSwap."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def make_request(generator: random.Random) -> tuple[list[int], Sampling]:
    prompt = [(at * 7 + generator.choice([1, 2])) % 512 for at in range(generator.randint(1, 200))]
    kind = generator.randrange(5)
    return prompt, Sampling(
        max_tokens=generator.randint(1, 120),
        temperature=generator.choice([0.0, 0.7, 1.3]),
        top_p=0.9 if kind == 1 else 1.0,
        top_k=20 if kind == 2 else 0,
        frequency_penalty=0.5 if kind == 3 else 0.0,
        logprobs=5 if kind == 4 else None,
        seed=generator.choice([None, 3]),
    )


def load(minutes: float, seed: int = 0) -> dict[str, object]:
    """Run the load; returns memory by second, what was done, and what the engine still holds."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    engine = Engine(model, None, EngineOptions(max_rows=8, cache_bytes=200_000, draft="lookup", max_waiting=50))
    generator, alive = random.Random(seed), set[int]()
    counts = {"added": 0, "cancelled": 0, "finished": 0}
    began, seen = time.monotonic(), []
    while (elapsed := time.monotonic() - began) < 60 * minutes:
        if elapsed >= len(seen):
            seen.append(held_bytes())
        while len(alive) < 20 and generator.random() < 0.5:
            alive.add(engine.add(*make_request(generator)))
            counts["added"] += 1
        if alive and generator.random() < 0.05:
            number = generator.choice(sorted(alive))
            engine.cancel(number)
            alive.discard(number)
            counts["cancelled"] += 1
        for output in engine.step():
            if output.finish_reason:
                alive.discard(output.number)
                counts["finished"] += 1
    for number in alive:
        engine.cancel(number)
    half = seen[len(seen) // 2 :]
    return {
        **counts,
        "n_preempted": engine.scheduler.n_preempted,
        "pages_held": engine.pool.n_held,
        "requests_held": len(engine._requests),
        "growth_of_last_half": half[-1] / half[0] - 1,
        "bytes_by_second": seen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    found = load(args.minutes)
    for key, value in found.items():
        if key != "bytes_by_second":
            print(f"{key:20s} {value}")
    if args.json:
        Path(args.json).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
