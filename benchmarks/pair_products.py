"""Products of two tokens on a GPU: read together by our kernel in tiles of several kinds, or by cuBLAS.

    python benchmarks/pair_products.py --d-model 2048 --d-ff 5632 [--json FILE]

Microseconds of the four products of a dense layer (norm, residual and gate included) in replays of a graph over layers
whose weights together do not fit the cache; beside them one token. The last line is the best kind, as
`numerics.few_rows.PAIR` and `benchmarks/drafting.py --pair` take it; an empty one is cuBLAS.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from isoflop.numerics import few_rows
from isoflop.numerics.few_rows import Norm, product

KINDS = (None, (8, 512, 1, 8), (8, 512, 1, 4), (4, 1024, 1, 4), (4, 1024, 1, 8), (4, 512, 1, 4), (8, 1024, 1, 8))
Kind = tuple[int, int, int, int] | None


def layers_of(d_model: int, d_ff: int, n_layers: int) -> list[dict[str, torch.Tensor]]:
    sizes = {"qkv": (3 * d_model, d_model), "out": (d_model, d_model)}
    sizes |= {"gate_up": (2 * d_ff, d_model), "down": (d_model, d_ff)}
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    return [{name: 0.02 * torch.randn(size, **options) for name, size in sizes.items()} for _ in range(n_layers)]


def microseconds(run: Callable[[], None], n_layers: int) -> float:
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 1e6 * best / n_layers


def measure(layers: list[dict[str, torch.Tensor]], n_tokens: int, kind: Kind) -> dict[str, float]:
    few_rows.PAIR = kind
    d_model, d_ff = layers[0]["down"].shape
    norm = Norm(torch.ones(d_model, device="cuda"), 1e-6)
    x_ND, update_ND = (torch.randn(n_tokens, d_model, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    inner_NF = torch.randn(n_tokens, d_ff, dtype=torch.bfloat16, device="cuda")

    def all_layers(name: str) -> None:
        for layer in layers:
            if name in ("qkv", "gate_up"):
                product(x_ND, layer[name], norm=norm, update_ND=update_ND, gated=name == "gate_up")
            else:
                product(x_ND if name == "out" else inner_NF, layer[name])

    return {name: microseconds(lambda name=name: all_layers(name), len(layers)) for name in layers[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--d-ff", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    layers, found = layers_of(args.d_model, args.d_ff, args.layers), []
    with torch.inference_mode():
        for n_tokens, kind in ((1, None), *[(2, kind) for kind in KINDS]):
            took = measure(layers, n_tokens, kind)
            found.append({"tokens": n_tokens, "kind": kind, "microseconds": took, "sum": sum(took.values())})
            each = ", ".join(f"{name} {us:.1f}" for name, us in took.items())
            print(f"{n_tokens} tokens, {kind}: {found[-1]['sum']:.1f} us a layer: {each}", flush=True)
    best = min(found[1:], key=lambda one: one["sum"])
    if args.json:
        head = {"device": torch.cuda.get_device_name(), "d_model": args.d_model, "d_ff": args.d_ff}
        Path(args.json).write_text(json.dumps({**head, "found": found}, indent=1), encoding="utf-8")
    print(*(best["kind"] or ()))


if __name__ == "__main__":
    main()
