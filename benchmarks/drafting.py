"""What prediction modules gain as drafts: measured, against (1 + a) / (1 + c).

    python benchmarks/drafting.py RUN [--device cuda] [--batch 1 8] [--json FILE]

RUN is a trained run whose model has a prediction module. Prompts are windows of its held-out text, answers are greedy.
a is the share of accepted drafts, answers that repeat themselves left out (isoflop.alignment.repetition); c is the time
of a draft over that of a plain step, both by the clock, the device waited for. Plain and drafted decoding take turns,
the best of each counts, and both must give the same text.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.alignment.repetition import repeats
from isoflop.recipe import load_recipe
from isoflop.run import commit, now, processor
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.options import Completion
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.recipe import PretrainRecipe


def held_out_prompts(run: Path, n: int, length: int) -> list[list[int]]:
    """Windows spread evenly over the held-out tokens of every domain."""
    recipe = load_recipe(run / "recipe.toml", PretrainRecipe)
    tokens = TokenSet.open(recipe.data.tokens)
    found: list[list[int]] = []
    domains = tokens.domains("valid")
    for number, domain in enumerate(domains):
        ids = tokens.tokens("valid", domain)
        share = n // len(domains) + (number < n % len(domains))
        found += [ids[at : at + length].tolist() for at in np.linspace(0, len(ids) - length, share).astype(int)]
    return found


class Watched:
    """The drafts of an engine, timed with the device waited for before and after."""

    def __init__(self, engine: Engine):
        self.seconds, self.calls, self._draft, self._cuda = (
            0.0,
            0,
            engine.runner.draft,
            engine.runner.device.type == "cuda",
        )

    def __call__(self, *arguments: Any) -> list[list[int]]:
        self._wait()
        began = time.perf_counter()
        drafts = self._draft(*arguments)
        self._wait()
        self.seconds, self.calls = self.seconds + time.perf_counter() - began, self.calls + 1
        return drafts

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


@dataclass
class Timed:
    seconds: float
    n_steps: int
    texts: list[Completion]


def decode(engine: Engine, prompts: list[list[int]], batch: int, n_new: int) -> Timed:
    """All prompts, `batch` at a time; seconds and steps without the prompts' own."""
    seconds, n_steps, texts = 0.0, 0, []
    greedy = Sampling(max_tokens=n_new, temperature=0)
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        numbers = [engine.add(prompt, greedy) for prompt in some]
        done = {number: Completion(prompt) for number, prompt in zip(numbers, some, strict=True)}
        for output in engine.step():
            done[output.number].extend(output)
        began, before = time.perf_counter(), engine.stats.n_steps
        while not engine.is_finished():
            for output in engine.step():
                done[output.number].extend(output)
        seconds, n_steps = seconds + time.perf_counter() - began, n_steps + engine.stats.n_steps - before
        texts += done.values()
    return Timed(seconds, n_steps, texts)


def acceptance(engine: Engine, prompts: list[list[int]], texts: list[Completion], n_new: int) -> tuple[float, int]:
    """Of answers that do not repeat themselves, one by one; and how many they are."""
    engine.stats.proposed, engine.stats.accepted = [0], [0]
    kept = [
        p
        for p, text in zip(prompts, texts, strict=True)
        if not repeats(text.ids, stopped=text.finish_reason != "length")
    ]
    for prompt in kept:
        engine.complete([prompt], Sampling(max_tokens=n_new, temperature=0))
    return engine.stats.accepted[0] / max(1, engine.stats.proposed[0]), len(kept)


def measure(run: Path, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    prompts = held_out_prompts(run, args.prompts, args.prompt_tokens)
    engines = {
        draft: Engine.open(
            run, EngineOptions(max_rows=batch, prefix_reuse=False, draft=draft), device=args.device, dtype=args.dtype
        )
        for draft in ("none", "mtp")
    }
    best: dict[str, Timed] = {}
    for _ in range(args.rounds + 1):  # the first warms up
        for draft, engine in engines.items():
            timed = decode(engine, prompts, batch, args.new_tokens)
            if draft not in best or timed.seconds < best[draft].seconds:
                best[draft] = timed
    plain, drafted = best["none"], best["mtp"]
    engine = engines["mtp"]
    engine.runner.draft = watched = Watched(engine)  # type: ignore[method-assign]
    decode(engine, prompts, batch, args.new_tokens)
    a, n_kept = acceptance(engine, prompts, drafted.texts, args.new_tokens)
    c = watched.seconds / watched.calls / (plain.seconds / plain.n_steps)
    n_tokens = [sum(len(text.ids) for text in timed.texts) for timed in (plain, drafted)]
    found = {
        "batch": batch,
        "acceptance": a,
        "draft_over_step": c,
        "gain": plain.seconds / drafted.seconds,
        "gain_by_formula": (1 + a) / (1 + c),
        "tokens_per_s": [n / timed.seconds for n, timed in zip(n_tokens, (plain, drafted), strict=True)],
        "answers": len(prompts),
        "answers_kept": n_kept,
        "equal": sum(one.ids == other.ids for one, other in zip(plain.texts, drafted.texts, strict=True)),
    }
    rates = " -> ".join(f"{rate:.1f}" for rate in found["tokens_per_s"])
    print(
        f"batch {batch}: {rates} tokens/s, {found['gain']:.2f} times; a = {a:.3f} ({n_kept} of {len(prompts)} kept), "
        f"c = {c:.3f}: {found['gain_by_formula']:.2f} by the formula; {found['equal']} texts equal",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [measure(args.run, batch, args) for batch in args.batch]
    if args.json:
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {args.threads} threads"
        head = {"device": where, "commit": commit(), "measured_at": now()}
        Path(args.json).write_text(json.dumps({**head, "cases": cases}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
