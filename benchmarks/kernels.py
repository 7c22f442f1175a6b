"""Kernels of the training step on a GPU: time, and the bytes they must move over it, beside the copy of the same run.

    python benchmarks/kernels.py                     shapes of the 1.3B class, 16,384 tokens
    python benchmarks/kernels.py --d-model 768 --d-ff 2048 --heads 12 --tokens 32768

Each row is the median of many calls on operands larger than the cache. GB/s counts each operand read once and each
result written once.
"""

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics import heads as heads_of
from isoflop.numerics import joined
from isoflop.numerics.fp8_scaled import ScaledFormat, _Swiglu
from isoflop.run import commit


def microseconds(call, n_calls: int = 8) -> float:
    """Of one call: replays of a CUDA graph of several, so that launches from Python do not count."""
    stream = torch.cuda.current_stream()
    for _ in range(3):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(n_calls):
            call()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(8)]
    for start, end in pairs:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in pairs)[len(pairs) // 2] / n_calls * 1e3


def row(name: str, call, n_bytes: float, flops: float = 0.0) -> None:
    took = microseconds(call)
    rate = f"{flops / took / 1e6:7.0f} TFLOP/s" if flops else f"{n_bytes / took / 1e3:7.0f} GB/s"
    print(f"{name:44} {took:9.1f} us {rate}", flush=True)


def backward_of(result: Tensor | tuple, leaves: list[Tensor], d_results: list[Tensor]):
    results = result if isinstance(result, tuple) else (result,)
    return lambda: torch.autograd.grad(results, leaves, d_results, retain_graph=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--d-ff", type=int, default=5504)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--vocab", type=int, default=102_400)
    args = parser.parse_args()
    m, d, f, h, c = args.tokens, args.d_model, args.d_ff, args.heads, args.d_model // args.heads
    new = lambda *sizes, dtype=torch.bfloat16: torch.randn(sizes, device="cuda").to(dtype)
    leaf = lambda *sizes, dtype=torch.bfloat16: new(*sizes, dtype=dtype).requires_grad_()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, commit {commit()}, {args}")
    big = new(m * f)
    row("copy", lambda: big.clone(), 4.0 * big.numel())

    gate_up, d_inner = leaf(m, 2 * f), new(m, f)
    row("swiglu", lambda: joined.swiglu(gate_up.detach()), 6.0 * m * f)
    row("swiglu backward", backward_of(joined.swiglu(gate_up), [gate_up], [d_inner]), 10.0 * m * f)
    heads, angles = leaf(4, m // 4, 3 * h, c), [torch.rand(m // 4, c // 2, device="cuda") for _ in range(2)]
    turned = lambda: heads_of.turned_heads(heads, h, h, angles[0], angles[1])
    row("turned heads", turned, 8.0 * m * d)
    d_qkv = [new(4, m // 4, h, c).transpose(1, 2) for _ in range(3)]
    row("turned heads backward", backward_of(turned(), [heads], d_qkv), 12.0 * m * d)
    x, update, weight = leaf(m, d), leaf(m, d), leaf(d, dtype=torch.float32)
    normed = lambda: joined.normed(x, update, weight, 1e-6)
    row("norm of stream and update", normed, 8.0 * m * d)
    row("norm backward", backward_of(normed(), [x, update, weight], [new(m, d), new(m, d)]), 8.0 * m * d)
    logits, targets = new(4096, args.vocab), torch.randint(args.vocab, (4096,), device="cuda")
    row("cross-entropy and gradient", lambda: joined.loss_and_gradient(logits, targets), 4.0 * logits.numel())

    for scaling in ("block", "row", "tensor"):
        format = ScaledFormat(scaling)
        for n in (d, f, 2 * f):
            operand = new(m, n)
            n_bytes = 4.0 * m * n
            row(f"quantise both ways, {scaling}, {n}", lambda o=operand, s=format: s.quantise(o, again=True), n_bytes)
        products(format, m, d, f)
    swiglu = _Swiglu(False)
    detached = gate_up.detach()
    row("swiglu quantised", lambda: swiglu.forward(detached), 6.0 * m * f)
    row("swiglu backward quantised", lambda: swiglu.backward(d_inner, detached), 10.0 * m * f)
    for n_out, n_in in ((3 * d, d), (d, d), (2 * f, d), (d, f)):
        a, b, w, grad = new(m, n_in), new(m, n_out), new(n_out, n_in), torch.zeros(n_out, n_in, device="cuda")
        flops = 2.0 * m * n_out * n_in
        row(f"bf16 {n_in} -> {n_out} forward", lambda a=a, w=w: F.linear(a, w), 0, flops)
        row(f"bf16 {n_in} -> {n_out} input gradient", lambda b=b, w=w: b @ w, 0, flops)
        add = lambda a=a, b=b, g=grad: torch.addmm(g, b.T, a, out_dtype=torch.float32, out=g)  # type: ignore[call-overload]
        row(f"bf16 {n_in} -> {n_out} weight gradient, added", add, 0, flops)


def products(format: ScaledFormat, m: int, d: int, f: int) -> None:
    """The three products of each layer of a block."""
    for n_out, n_in in ((3 * d, d), (d, d), (2 * f, d), (d, f)):
        new = lambda *sizes: torch.randn(sizes, device="cuda")
        x, d_y = (format.quantise(new(m, n).bfloat16(), again=True) for n in (n_in, n_out))
        w, flops, name = format.quantise_weight(new(n_out, n_in)), 2.0 * m * n_out * n_in, f"fp8 {n_in} -> {n_out}"
        forward = lambda x=x, w=w: format.product(x[:2], w[:2], of_weight=True, forward=True)
        row(f"{name} forward, {format.scaling}", forward, 0, flops)
        backward = lambda d_y=d_y, w=w: format.product(d_y[:2], w[2:], of_weight=True)
        row(f"{name} input gradient, {format.scaling}", backward, 0, flops)
        of_weight = lambda d_y=d_y, x=x: format.weight_product(d_y[2:], x[2:])
        row(f"{name} weight gradient, {format.scaling}", of_weight, 0, flops)


if __name__ == "__main__":
    with torch.cuda.stream(torch.cuda.Stream()):  # the default one cannot be captured
        main()
