"""What prediction modules gain as drafts: measured, against (1 + a) / (1 + c).

    python benchmarks/drafting.py RUN [--device cuda] [--batch 1 8] [--domain code] [--json FILE]

RUN is a trained run whose model has a prediction module. Prompts are windows of its held-out text, answers are greedy.
Answers that repeat themselves (isoflop.alignment.repetition) are left out. a is the share of accepted drafts, c the
time of a draft, head and choice included, over that of a step in plain decoding; on a GPU, where the engine has both in
one graph, the draft is timed in replays of a graph of its own. The formula takes a step that checks a draft for a plain
one: what it really takes is printed beside it, with the parts of a round, each in a graph of its own (`device_round` is
all of them; `round` less that is what the host adds). Plain and drafted decoding take turns, and the best of each
counts; in float32 both give the same text, in bfloat16 near ties may fall differently.
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
from pair_products import microseconds as replayed

from isoflop.alignment.repetition import repeats
from isoflop.model.few_rows import Start, run_draft, run_head, run_step
from isoflop.model.pages import PAGE, Rows, Span, Step, make_step
from isoflop.numerics import few_rows
from isoflop.numerics.few_rows import most_likely
from isoflop.numerics.rounds import Begun, begin_round, end_round
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

    def several() -> None:
        for _ in range(n_calls):
            run()

    for _ in range(3):
        run()
    if device.type == "cuda":
        return replayed(several, n_calls, n_warm=0, n_replays=5)
    began = time.perf_counter()
    several()
    return 1e6 * (time.perf_counter() - began) / n_calls


@torch.inference_mode()
def parts(engine: Engine, batch: int, held: int) -> dict[str, float]:
    """Microseconds of a step of one token and of two, of a draft with its choice, of a round, and of what each has."""
    model, device, layers = engine.model, engine.runner.device, engine.runner.layers
    n_pages = -(-(held + 2) // PAGE)
    assert batch * n_pages < engine.pool.n_pages
    rows = [Span(range(1 + row * n_pages, 1 + (row + 1) * n_pages), held, 2) for row in range(batch)]
    table_RP = torch.tensor([[*row.pages] for row in rows], device=device)
    state_R4 = torch.tensor([[0, 0, held, 0]] * batch, device=device)
    report_2R5 = torch.zeros(2, batch, 5, dtype=torch.float64, pin_memory=device.type == "cuda")
    angles = model.get_buffer("cos"), model.get_buffer("sin")
    inputs: dict[int, tuple[torch.Tensor, Step]] = {}
    for width in (1, 2):
        spans = [row._replace(n=width) for row in rows]
        tokens_N = torch.zeros(batch * width, dtype=torch.int64, device=device)
        inputs[width] = tokens_N, make_step(spans, width=width, device=device, in_place=False)

    def decode(width: int) -> torch.Tensor:
        return most_likely(run_head(model, run_step(model, *inputs[width], layers), engine.n_tokens))

    step = inputs[2][1]
    hidden_ND = torch.zeros(2 * batch, model.config.d_model, dtype=model.dtype, device=device)
    logits_NV = run_head(model, hidden_ND, engine.n_tokens)
    chosen_N2 = most_likely(logits_NV)
    turned = model.angles_at(step.positions_N)

    def begin() -> Begun:
        return begin_round(state_R4, table_RP, model.embedding.weight, angles, PAGE)

    def draft() -> None:
        chosen_N2, drafted_NV = run_draft(model, logits_NV, hidden_ND, step, layers[-1], turned)
        end_round(state_R4, chosen_N2, drafted_NV, report_2R5)

    def round_of_two() -> None:
        begun = begin()
        step = Step(begun.positions_N, begun.slots_N, Rows(2, table_RP, begun.before_R))
        hidden_ND = run_step(model, begun.tokens_N, step, layers, Start(begun.x_ND, begun.angles))
        logits_NV = run_head(model, hidden_ND, engine.n_tokens)
        chosen_N2, drafted_NV = run_draft(model, logits_NV, hidden_ND, step, layers[-1], begun.angles)
        end_round(state_R4, chosen_N2, drafted_NV, report_2R5)
        state_R4[:, 2] = held  # else it grows from call to call

    runs = {
        "step": lambda: decode(1),
        "step_of_two": lambda: decode(2),
        "layers": lambda: run_step(model, *inputs[1], layers),
        "layers_of_two": lambda: run_step(model, *inputs[2], layers),
        "head": lambda: run_head(model, hidden_ND[:batch], engine.n_tokens),
        "head_of_two": lambda: run_head(model, hidden_ND, engine.n_tokens),
        "choice_of_two": lambda: most_likely(logits_NV),
        "begin": begin,
        "choice_draft_end": draft,
        "end": lambda: end_round(state_R4, chosen_N2, logits_NV, report_2R5),
        "device_round": round_of_two,
    }
    found = {name: microseconds(run, device) for name, run in runs.items()}
    return {**found, "draft": found["choice_draft_end"] - found["choice_of_two"]}


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
        f"batch {batch}: {rates} tokens/s, {found['gain']:.2f} times; a = {a:.3f} ({len(prompts)} of {n_all}), "
        f"c = {c:.3f}: {found['gain'] / found['gain_by_formula']:.1%} of the formula's {found['gain_by_formula']:.2f}; "
        f"{found['equal']} texts equal\n    "
        + ", ".join(f"{name} {us:.0f} us" for name, us in found["microseconds"].items()),
        flush=True,
    )
    return found


def use_tables(tables: dict[str, Any]) -> None:
    """Compute products by the tiles that were the fastest."""
    pair, one = ({tuple(key): tuple(kind) if kind else None for key, kind in tables[name]} for name in ("PAIR", "ONE"))
    few_rows.PAIR = {**few_rows.PAIR, **pair}
    few_rows.ONE = {key: kind for key, kind in one.items() if kind is not None}
    few_rows.HEAD_ROWS = tables["HEAD_ROWS"]


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
    parser.add_argument("--tiles", type=Path, help="what pair_products.py --json has written: its tables")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.pair is not None:
        few_rows.PAIR = dict.fromkeys(few_rows.PAIR, tuple(args.pair) or None)
    if args.tiles is not None:
        use_tables(json.loads(args.tiles.read_text(encoding="utf-8"))["tables"])
    cases = [measure(args.run, batch, args) for batch in args.batch]
    if args.json:
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {args.threads} threads"
        head = {"device": where, "commit": commit(), "measured_at": now()}
        Path(args.json).write_text(json.dumps({**head, "cases": cases}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
