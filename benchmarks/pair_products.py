"""Products of one and of two tokens on a GPU: our kernels in tiles of several kinds, and cuBLAS.

    python benchmarks/pair_products.py [--d-model 1024 2048] [--json FILE]        under 90 seconds

Microseconds of the four products of a dense layer (norm, residual and gate included) and of a head of 8,192 tokens, in
replays of a graph over so many weights that they do not fit the cache, each kind checked against float64. The last
lines are tables for `numerics/few_rows.py`, PAIR, ONE and HEAD_ROWS (`benchmarks/drafting.py --tiles FILE` takes them
from the file), and what a layer takes with them and with those of now. A kind is (rows of a program, columns at a time,
loads in flight, warps), columns 0 all at once before the wait; None is cuBLAS, and for one token `_tiles`.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from isoflop.numerics import few_rows
from isoflop.numerics.error import relative_error
from isoflop.numerics.few_rows import Norm, Tiles, product
from isoflop.run import commit

Kind = Tiles | None
HELD = ((1, 0, 0, 1), (2, 0, 0, 1), (4, 0, 0, 1), (1, 0, 0, 2), (2, 0, 0, 2), (4, 0, 0, 2), (2, 0, 0, 4), (8, 0, 0, 4))
KINDS: tuple[Kind, ...] = (None, (8, 512, 1, 4), (8, 256, 1, 4), (4, 1024, 1, 4), *HELD)
D_FF = {1024: 2816, 2048: 5504}
N_BYTES = 400e6
"""Of the weights of a replay: the cache has 50 MB."""


def sizes_of(d_model: int) -> dict[str, tuple[int, int]]:
    d_ff = D_FF[d_model]
    sizes = {"qkv": (3 * d_model, d_model), "out": (d_model, d_model), "gate_up": (2 * d_ff, d_model)}
    return sizes | {"down": (d_model, d_ff), "head": (8192, d_model)}


def weights_of(size: tuple[int, int], n: int) -> list[torch.Tensor]:
    return [size[1] ** -0.5 * torch.randn(size, dtype=torch.bfloat16, device="cuda") for _ in range(n)]


def use(kind: Kind, n_tokens: int) -> None:
    """Compute every product of so many tokens by this kind; one token by `_tiles` for None."""
    if n_tokens == 2:
        few_rows.PAIR = dict.fromkeys(few_rows.PAIR, kind)
    else:
        keys = [(width, gated) for d in D_FF for width in (d, D_FF[d]) for gated in (False, True)]
        few_rows.ONE = {} if kind is None else dict.fromkeys(keys, kind)


def call(name: str, n_tokens: int, size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product of this name, of inputs that stay the same."""
    x_ND, plus_NF = (torch.randn(n_tokens, n, dtype=torch.bfloat16, device="cuda") for n in reversed(size))
    if name in ("out", "down"):
        return lambda weight: product(x_ND, weight, plus_NF=plus_NF)
    norm = Norm(torch.rand(size[1], device="cuda") + 0.5, 1e-6)
    return lambda weight: product(x_ND, weight, norm=norm, gated=name == "gate_up")


def error_of(name: str, n_tokens: int, size: tuple[int, int], kind: Kind) -> float:
    """Against float64."""
    use(kind, n_tokens)
    torch.manual_seed(1)
    run = call(name, n_tokens, size)
    torch.manual_seed(1)
    x_ND, plus_NF = (torch.randn(n_tokens, n, dtype=torch.bfloat16, device="cuda") for n in reversed(size))
    wide_ND = x_ND.double()
    if name not in ("out", "down"):
        gain_D = (torch.rand(size[1], device="cuda") + 0.5).double()
        wide_ND = wide_ND * torch.rsqrt(wide_ND.square().mean(-1, keepdim=True) + 1e-6) * gain_D
    weight = weights_of(size, 1)[0]
    exact_NF = wide_ND @ weight.double().T
    if name in ("out", "down"):
        exact_NF += plus_NF
    if name == "gate_up":
        gate_NF, up_NF = exact_NF.chunk(2, -1)
        exact_NF = F.silu(gate_NF) * up_NF
    return relative_error(run(weight), exact_NF)


def microseconds(run: Callable[[], None], n_calls: int, *, n_warm: int = 2, n_replays: int = 10) -> float:
    for _ in range(n_warm):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    best = float("inf")
    for _ in range(n_replays):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 1e6 * best / n_calls


def measure(d_model: int, n_tokens: int, kinds: tuple[Kind, ...]) -> dict[str, dict[Kind, float]]:
    """Microseconds of each product by each kind that is exact."""
    found: dict[str, dict[Kind, float]] = {}
    for name, size in sizes_of(d_model).items():
        weights = weights_of(size, round(N_BYTES / (2 * size[0] * size[1])))
        found[name] = {}
        for kind in kinds:
            error = error_of(name, n_tokens, size, kind)
            run = call(name, n_tokens, size)
            found[name][kind] = microseconds(lambda run=run, weights=weights: [run(w) for w in weights], len(weights))  # type: ignore[arg-type,return-value]
            if error > 5e-3:
                print(f"WRONG: {name} of {d_model}, {n_tokens} tokens, {kind}: error {error:.1e}", flush=True)
                del found[name][kind]
    for kind in kinds:
        each = ", ".join(f"{name} {took[kind]:.1f}" for name, took in found.items() if kind in took)
        print(f"d_model {d_model}, {n_tokens} tokens, {kind}: {each} us", flush=True)
    return found


def layer(d_model: int, n_tokens: int) -> float:
    """Microseconds of a layer's four products in their order."""
    sizes = {name: size for name, size in sizes_of(d_model).items() if name != "head"}
    runs = {name: call(name, n_tokens, size) for name, size in sizes.items()}
    layers = [{name: weights_of(size, 1)[0] for name, size in sizes.items()} for _ in range(24)]
    return microseconds(lambda: [run(one[name]) for one in layers for name, run in runs.items()], 24)  # type: ignore[arg-type,return-value]


def table_of(found: dict[int, dict[str, dict[Kind, float]]], *, spare: float = 1.0) -> dict[tuple[int, bool], Kind]:
    """For each number of columns the fastest kind, where it takes less than `spare` of the first one's time."""
    table: dict[tuple[int, bool], Kind] = {}
    for d_model, of_names in found.items():
        for names, key in (
            (("qkv", "out"), (d_model, False)),
            (("gate_up",), (d_model, True)),
            (("down",), (D_FF[d_model], False)),
        ):
            kinds = [kind for kind in of_names[names[0]] if all(kind in of_names[name] for name in names)]
            took = {kind: sum(of_names[name][kind] for name in names) for kind in kinds}
            best = min(kinds, key=lambda kind: took[kind])
            if spare == 1 or took[best] < spare * took[None]:
                table[key] = best
    return table


def compile_kind(job: tuple[int, int, Kind]) -> None:
    """In a process of its own: what it compiles is found on the disk by the others."""
    d_model, n_tokens, kind = job
    with torch.inference_mode():
        for name, size in sizes_of(d_model).items():
            error_of(name, n_tokens, size, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, nargs="+", default=[1024, 2048], choices=[*D_FF])
    parser.add_argument("--workers", type=int, default=8, help="processes that compile first")
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    now, kinds = (few_rows.PAIR, few_rows.ONE), {1: (None, *HELD[:6]), 2: KINDS}
    jobs = [(d, n, kind) for d in args.d_model for n in (2, 1) for kind in kinds[n]]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        list(pool.map(compile_kind, jobs))
    with torch.inference_mode():
        found = {n: {d: measure(d, n, kinds[n]) for d in args.d_model} for n in (1, 2)}
        pair, one = table_of(found[2]), table_of(found[1], spare=0.97)
        last = {D_FF[d]: most for d, most in ((1024, 3072), (2048, 2**31))}
        pair = {(last.get(width, width), gated): kind for (width, gated), kind in pair.items()}
        lines: dict[str, Any] = {}
        for d in args.d_model:
            for label, tables in (("now", now), ("new", (now[0] | pair, one))):
                few_rows.PAIR, few_rows.ONE = tables[0], tables[1]  # type: ignore[assignment]
                lines[f"{d} {label}"] = [layer(d, n) for n in (1, 2)]
                print(f"layer of {d}, tables of {label}: one token %.1f us, two %.1f us" % (*lines[f"{d} {label}"],))
        for n, of_d in found.items():
            for d, names in of_d.items():
                key = pair.get((d, False)) if n == 2 else one.get((d, False))
                print(f"head of 8,192 x {d} with its norm, {n} tokens: ours {names['head'][key]:.1f} us", end="")
                print(f", cuBLAS {names['head'][None]:.1f} us" if n == 2 else "")
    print("PAIR |= {" + ", ".join(f"{key}: {kind}" for key, kind in pair.items()) + "}")
    print("ONE = {" + ", ".join(f"{key}: {kind}" for key, kind in one.items()) + "}")
    heads = found[2][min(args.d_model)]["head"]
    head_rows = 8192 if heads.get(pair[min(args.d_model), False], float("inf")) < heads[None] else 0
    print("HEAD_ROWS =", head_rows)
    if args.json:
        rows = [
            {"tokens": n, "d_model": d, "product": name, "kind": kind, "microseconds": took}
            for n, of_d in found.items()
            for d, names in of_d.items()
            for name, of_kinds in names.items()
            for kind, took in of_kinds.items()
        ]
        tables = {"PAIR": [*pair.items()], "ONE": [*one.items()], "HEAD_ROWS": head_rows}
        head = {"device": torch.cuda.get_device_name(), "commit": commit(), "layers": lines, "tables": tables}
        Path(args.json).write_text(json.dumps({**head, "found": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
