"""One layer forward and backward on a simulated photonic core: how much slower than torch.nn.Linear, and than a peer.

    python benchmarks/photonic_layer.py                              three shapes on this CPU, float32
    python benchmarks/photonic_layer.py --device cuda                three shapes in bfloat16
    pip install --no-deps --target peers aihwkit-lightning==2.1.0    then add: --peers peers

All candidates are timed in turn, round by round, in one process; the median counts. "core" is preset lin2024
with every noise term (analytic fidelity); "core as peer" has the peer's physics alone: 8 bits in, weights and out, one
output noise. On a GPU layers are timed three ways: eager, compiled (as training compiles its blocks) and replayed from
a CUDA graph (as training replays steps of small models), which takes the host out of it; the peer asks the device for
the size of its steps, so it can't be captured, but is also timed with its Triton kernels. Each way is compared with
nn.Linear timed the same way. Before timing, results are compared with the exact product.
"""

import argparse
import functools
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.numerics.assign import assign
from isoflop.numerics.error import relative_error
from isoflop.numerics.linear import Linear
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule
from isoflop.recipe import write_json
from isoflop.run import commit, processor

SHAPES = {  # rows, in, out
    "cpu": [(1024, 1024, 1024), (1024, 256, 1024), (256, 2048, 512)],
    "cuda": [(8192, 4096, 4096), (8192, 1024, 4096), (2048, 8192, 1024)],
}
LIMITS = {("cpu", (1024, 1024, 1024)): 2.5, ("cuda", (8192, 4096, 4096)): 1.5}
"""Times nn.Linear that the core may take."""
Candidate = tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]
PEER = "aihwkit-lightning"
OUT_NOISE = 0.04
"""Of the peer, in units of its input and weight range: its example configurations' value."""


def core_layer(preset: str, n_in: int, n_out: int, device: torch.device) -> nn.Module:
    layer = Linear(n_in, n_out).to(device)
    nn.init.normal_(layer.weight, 0.0, n_in**-0.5)
    assign(layer_of := nn.ModuleDict({"layer": layer}), section(preset), NoiseKey(0))
    return layer_of["layer"]


def section(preset: str) -> NumericsSection:
    """lin2024, or a core without light: what the peer computes."""
    if preset == "lin2024":
        return NumericsSection((Rule("*", "photonic"),))
    core = {"encoding": "linear", "noise": ["output"], "output_noise": OUT_NOISE, "leak_s": float("inf")}
    return NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection("lin2024", core))


def peer_layer(n_in: int, n_out: int, device: torch.device) -> nn.Module:
    """aihwkit-lightning: 8 bits in and out, weights discretised per channel, output noise, dynamic input range."""
    nn_module: Any = importlib.import_module("aihwkit_lightning.nn")
    configs: Any = importlib.import_module("aihwkit_lightning.simulator.configs")
    config = configs.TorchInferenceRPUConfig()
    config.forward.inp_res = config.forward.out_res = config.modifier.res = 2**8 - 2
    config.forward.out_noise, config.forward.out_noise_per_channel = OUT_NOISE, True
    config.forward.out_bound = 12.0
    config.pre_post.input_range.enable = config.pre_post.input_range.dynamic = True
    config.modifier.quantization_type = configs.WeightQuantizationType.DISCRETIZE_PER_CHANNEL
    config.mapping.max_input_size = 0
    layer = nn_module.AnalogLinear(n_in, n_out, bias=False, rpu_config=config).to(device)
    nn.init.normal_(layer.weight, 0.0, n_in**-0.5)
    return layer


def once(layer: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor, d_y: Tensor) -> None:
    torch.autograd.grad(layer(x), [x, *parameters], d_y, allow_unused=True)


def replayed(candidate: Candidate, x: Tensor, d_y: Tensor) -> Callable[[], None]:
    """The same forward and backward pass from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once(*candidate, x, d_y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once(*candidate, x, d_y)
    return graph.replay


def timed(runs: dict[str, Callable[[], None]], cuda: bool, rounds: int) -> dict[str, float]:
    """Median milliseconds of each, one after the other in every round."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(10 if cuda else 1):
                run()
            if cuda:
                torch.cuda.synchronize()
            if number >= 2:
                took[name].append((time.perf_counter() - began) * 1e3 / (10 if cuda else 1))
    return {name: statistics.median(values) for name, values in took.items()}


def candidates_of(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, with_peer: bool
) -> dict[str, Candidate]:
    _, n_in, n_out = shape
    found: dict[str, Candidate] = {}

    def add(name: str, module: nn.Module) -> None:
        found[name] = module, list(module.parameters())
        if device.type == "cuda":
            found[f"{name}, compiled"] = torch.compile(module, dynamic=False), found[name][1]

    add("nn.Linear", nn.Linear(n_in, n_out, bias=False, device=device, dtype=dtype))
    for name, preset in (("core", "lin2024"), ("core as peer", "peer")):
        add(name, core_layer(preset, n_in, n_out, device))
    if with_peer:
        peer = peer_layer(n_in, n_out, device).to(dtype)
        add(PEER, peer)
        if device.type == "cuda":

            def triton(x: Tensor) -> Tensor:
                os.environ["AIHWKIT_USE_TRITON"] = "1"
                try:
                    return peer(x)
                finally:
                    del os.environ["AIHWKIT_USE_TRITON"]

            try:  # its autotuner does not fit every release of Triton
                triton(torch.zeros(8, n_in, device=device, dtype=dtype))
            except (RuntimeError, TypeError) as error:
                print(f"aihwkit-lightning's Triton kernels fail here, left out: {error}")
            else:
                found[f"{PEER}, Triton"] = triton, list(peer.parameters())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peers", type=Path, help="folder that holds aihwkit_lightning")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peers:
        sys.path.append(str(options.peers))
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, {torch.get_num_threads()} threads"
    )
    print(f"{name}, torch {torch.__version__}, {dtype}, commit {commit()}")
    rows = []
    for shape in SHAPES[options.device]:
        torch.manual_seed(0)
        x = torch.randn(shape[0], shape[1], device=device, dtype=dtype, requires_grad=True)
        d_y = torch.randn(shape[0], shape[2], device=device, dtype=dtype)
        candidates = candidates_of(shape, device, dtype, options.peers is not None)
        graphs: dict[str, Callable[[], None]] = {}
        if device.type == "cuda":  # before anything else has tied the weights to another stream
            for label in ("nn.Linear", "core", "core as peer"):
                graphs[f"{label}, CUDA graph"] = replayed(candidates[label], x.detach().clone().requires_grad_(), d_y)
        errors = {}
        for label, (layer, parameters) in candidates.items():
            exact = x.detach().double() @ parameters[0].detach().double().T
            errors[label] = relative_error(layer(x).detach(), exact)
        runs = {label: functools.partial(once, *candidate, x, d_y) for label, candidate in candidates.items()}
        took = timed(runs | graphs, device.type == "cuda", options.rounds)
        print(f"\n{shape[0]} rows, {shape[1]} -> {shape[2]}")
        for label, ms in took.items():
            way = label.partition(",")[2]
            against = ms / took[f"nn.Linear,{way}" if f"nn.Linear,{way}" in took else "nn.Linear"]
            said = f"error {errors[label]:.1e}" if label in errors else ""
            print(f"  {label:30s} {ms:9.3f} ms  {against:5.2f} x nn.Linear   {said}")
        for way in ("", ", compiled", ", CUDA graph") if device.type == "cuda" else ("",):
            if limit := LIMITS.get((options.device, shape)):
                ratio = took[f"core{way}"] / took[f"nn.Linear{way}"]
                print(f"  core{way} at most {limit} x nn.Linear{way}: {ratio <= limit}")
            if options.peers and f"{PEER}{way}" in took:
                ratio = took[f"core as peer{way}"] / took[f"{PEER}{way}"]
                print(f"  core as peer{way} never slower than the peer{way}: {ratio <= 1.0} ({ratio:.2f} of its time)")
        rows.append({"shape": shape, "ms": took, "relative_error": errors})
    if options.json:
        write_json(options.json, {"device": name, "dtype": str(dtype), "commit": commit(), "rows": rows})


if __name__ == "__main__":
    main()
