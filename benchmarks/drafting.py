"""What prediction modules gain as drafts: measured, against (1 + a) / (1 + c).

    python benchmarks/drafting.py RUN [--device cuda] [--batch 1 8] [--domain code] [--json FILE]

RUN is a trained run whose model has a prediction module. Prompts are windows of its held-out text, answers are greedy.
Answers that repeat themselves (isoflop.alignment.repetition) are left out. a is the share of accepted drafts, c the
time of a draft, head and choice included, over that of a step in plain decoding; on a GPU, where the engine has both in
one graph, the draft is timed in replays of a graph of its own. The formula takes a step that checks a draft for a plain
one: what it really takes is printed beside it. Plain and drafted decoding take turns, and the best of each counts; in
float32 both give the same text, in bfloat16 near ties may fall differently.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.alignment.repetition import repeats
from isoflop.model.few_rows import run_head, run_mtp_step, run_step
from isoflop.model.pages import PAGE, Span, Step, make_step
from isoflop.numerics import few_rows
from isoflop.numerics.few_rows import most_likely
from isoflop.recipe import load_recipe
from isoflop.run import commit, now, processor
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.options import Completion
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.recipe import PretrainRecipe


def held_out_prompts(run: Path, n: int, length: int, wanted: list[str]) -> list[list[int]]:
    """Windows spread evenly over the held-out tokens of every domain, or of the wanted ones."""
    recipe = load_recipe(run / "recipe.toml", PretrainRecipe)
    tokens = TokenSet.open(recipe.data.tokens)
    found: list[list[int]] = []
    domains = [domain for domain in tokens.domains("valid") if not wanted or domain in wanted]
    for number, domain in enumerate(domains):
        ids = tokens.tokens("valid", domain)
        share = n // len(domains) + (number < n % len(domains))
        found += [ids[at : at + length].tolist() for at in np.linspace(0, len(ids) - length, share).astype(int)]
    return found


def microseconds(run: Callable[[], Any], device: torch.device, n_calls: int = 20) -> float:
    """Of one call: on a GPU replays of a graph of several, so that launches from Python do not count."""
    for _ in range(3):
        run()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(n_calls):
            run()
        return 1e6 * (time.perf_counter() - began) / n_calls
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(n_calls):
            run()
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        best = min(best, 1e6 * (time.perf_counter() - began) / n_calls)
    return best


@torch.inference_mode()
def parts(engine: Engine, batch: int, held: int) -> dict[str, float]:
    """Microseconds of a step of one token and of two, and of a draft with its choice, after `held` tokens."""
    model, device = engine.model, engine.runner.device
    n_pages = -(-(held + 2) // PAGE)
    assert batch * n_pages < engine.pool.n_pages

    def step_of(width: int) -> tuple[torch.Tensor, Step]:
        rows = [Span(range(1 + row * n_pages, 1 + (row + 1) * n_pages), held, width) for row in range(batch)]
        tokens_N = torch.zeros(batch * width, dtype=torch.int64, device=device)
        return tokens_N, make_step(rows, width=width, device=device, in_place=False)

    def decode(tokens_N: torch.Tensor, step: Step) -> torch.Tensor:
        return most_likely(run_head(model, run_step(model, tokens_N, step, engine.runner.layers), engine.n_tokens))

    def draft() -> torch.Tensor:
        found_ND = run_mtp_step(model, 1, hidden_ND, two[0], two[1], engine.runner.layers[-1])
        return most_likely(run_head(model, found_ND, engine.n_tokens))

    one, two = step_of(1), step_of(2)
    hidden_ND = torch.zeros(2 * batch, model.config.d_model, dtype=model.dtype, device=device)
    runs = {"step": lambda: decode(*one), "step_of_two": lambda: decode(*two), "draft": draft}
    return {name: microseconds(run, device) for name, run in runs.items()}


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


def unrepeated(prompts: list[list[int]], texts: list[Completion]) -> list[list[int]]:
    """Prompts whose answers do not repeat themselves."""
    pairs = zip(prompts, texts, strict=True)
    return [p for p, text in pairs if not repeats(text.ids, stopped=text.finish_reason != "length")]


def measure(run: Path, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    prompts = held_out_prompts(run, args.prompts, args.prompt_tokens, args.domain)
    engines = {
        draft: Engine.open(
            run, EngineOptions(max_rows=batch, prefix_reuse=False, draft=draft), device=args.device, dtype=args.dtype
        )
        for draft in ("none", "mtp")
    }
    n_all = len(prompts)
    prompts = unrepeated(prompts, decode(engines["none"], prompts, batch, args.new_tokens).texts)
    if not prompts:
        raise SystemExit(f"batch {batch}: all of {n_all} answers repeat themselves")
    best: dict[str, Timed] = {}
    for _ in range(args.rounds + 1):  # the first warms up
        for draft, engine in engines.items():
            timed = decode(engine, prompts, batch, args.new_tokens)
            if draft not in best or timed.seconds < best[draft].seconds:
                best[draft] = timed
    plain, drafted = best["none"], best["mtp"]
    engine = engines["mtp"]
    a = engine.stats.accepted[0] / max(1, engine.stats.proposed[0])
    took, step_us = parts(engine, batch, args.prompt_tokens + args.new_tokens // 2), 1e6 * plain.seconds / plain.n_steps
    c = took["draft"] / step_us
    n_tokens = [sum(len(text.ids) for text in timed.texts) for timed in (plain, drafted)]
    found = {
        "batch": batch,
        "acceptance": a,
        "draft_over_step": c,
        "gain": plain.seconds / drafted.seconds,
        "gain_by_formula": (1 + a) / (1 + c),
        "microseconds": {**took, "plain": step_us, "round": 1e6 * drafted.seconds / drafted.n_steps},
        "tokens_per_s": [n / timed.seconds for n, timed in zip(n_tokens, (plain, drafted), strict=True)],
        "answers": n_all,
        "answers_kept": len(prompts),
        "equal": sum(one.ids == other.ids for one, other in zip(plain.texts, drafted.texts, strict=True)),
    }
    rates = " -> ".join(f"{rate:.1f}" for rate in found["tokens_per_s"])
    print(
        f"batch {batch}: {rates} tokens/s, {found['gain']:.2f} times; a = {a:.3f} ({len(prompts)} of {n_all} kept), "
        f"c = {c:.3f}: {found['gain_by_formula']:.2f} by the formula; {found['equal']} texts equal\n    "
        + ", ".join(f"{name} {us:.0f} us" for name, us in found["microseconds"].items()),
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--domain", nargs="*", default=[], help="of the prompts; default: all")
    parser.add_argument("--pair", type=int, nargs="*", help="tiles of two tokens (pair_products.py); none: cuBLAS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.pair is not None:
        few_rows.PAIR = tuple(args.pair) or None
    cases = [measure(args.run, batch, args) for batch in args.batch]
    if args.json:
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {args.threads} threads"
        head = {"device": where, "commit": commit(), "measured_at": now()}
        Path(args.json).write_text(json.dumps({**head, "cases": cases}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
