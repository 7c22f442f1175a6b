"""Kernels of the training step on a GPU: time, and the bytes they must move over it, beside the copy of the same run.

    python benchmarks/kernels.py                     shapes of the 1.3B class, 16,384 tokens
    python benchmarks/kernels.py --d-model 768 --d-ff 2048 --heads 12 --tokens 32768
    python benchmarks/kernels.py --experts           64 experts of 640 at d_model 1,280, six of them a token

Each row is the median of many calls on operands larger than the cache. GB/s counts each operand read once and each
result written once.
"""

import argparse
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model import dispatch
from isoflop.model.config import ExpertConfig
from isoflop.model.dispatch import arrange, takes_rows
from isoflop.model.experts import Experts
from isoflop.numerics import fp8_experts, joined
from isoflop.numerics import heads as heads_of
from isoflop.numerics.error import relative_error
from isoflop.numerics.expert_gradients import expert_gradient
from isoflop.numerics.fp8_scaled import ScaledFormat, _Swiglu
from isoflop.numerics.fp8_whole import Fp8WholeProduct
from isoflop.numerics.linear import Held
from isoflop.run import commit

TILES = {
    "bf16": [
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 4),
        (128, 256, 32, 8, 6),
        (128, 128, 64, 4, 3),
        (256, 128, 64, 8, 3),
    ],
    "fp8": [(128, 256, 128, 8, 4)],
}
"""Of gradients of experts' weights, to be timed: outputs, inputs, rows, warps, stages."""


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
    parser.add_argument("--experts", action="store_true", help="grouped products and what surrounds them instead")
    args = parser.parse_args()
    if args.experts:
        return experts(args.tokens)
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
    logits, targets = new(m, args.vocab), torch.randint(args.vocab, (m,), device="cuda")
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


def experts(m: int, n_experts: int = 64, n_active: int = 6, d: int = 1280, f: int = 640) -> None:
    """One layer of experts, uneven as routing is: quantising, and each product in bf16 and FP8, with its error."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, commit {commit()}, {m} tokens")
    new = lambda *sizes: torch.randn(sizes, device="cuda").bfloat16()
    scores = torch.rand(m, n_experts, device="cuda") + torch.rand(n_experts, device="cuda")
    chosen = scores.topk(n_active).indices
    at, x, gate_up = arrange(chosen, n_experts), new(m, d), torch.randn(n_experts, 2 * f, d, device="cuda")
    row("sort by expert", lambda: arrange(chosen, n_experts), 8.0 * chosen.numel())
    row("fill up", lambda: fp8_experts.filled_up(at.slot_R, at.ends_E, chosen.shape[1]), 8.0 * chosen.numel())
    rows = fp8_experts.filled_up(at.slot_R, at.ends_E, chosen.shape[1])
    p, group, ends = len(rows.token_P), rows.group, rows.ends_E
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    print(f"rows of an expert: {int(counts.min())} to {int(counts.max())}, of all {p}")
    inner, weights, d_inner = new(p, 2 * f), torch.rand(p, device="cuda"), new(p, f)
    row("bf16 rows to experts", lambda: joined.spread_rows(x, at.token_R, at.row_TA), 2.0 * p * d)
    row("bf16 swiglu", lambda: joined.swiglu(inner, weights[:, None]), 6.0 * p * f)
    row("bf16 swiglu backward", lambda: joined.swiglu_gradients(d_inner, inner, weights[:, None]), 10.0 * p * f)
    for per_row in (True, False):
        of_weight = lambda r=per_row: fp8_experts.quantise_weight(gate_up, r)
        row(f"weights quantised, {'row' if per_row else 'tensor'}", of_weight, 6.0 * gate_up.numel())
        quantised(per_row, rows, n_experts, x, (d_inner, inner, weights))
    w, a, b = (fp8_experts.quantise_weight(gate_up, True), *(
        fp8_experts.quantise(new(p, n), group, n_experts, True) for n in (d, 2 * f)
    ))  # fmt: skip
    for format in ("bf16", "bf16, gradients added in a pass of their own", "row", "tensor"):
        whole_layer(format, x, chosen, n_experts, f)
    w16, a16, b16, flops = gate_up.bfloat16(), new(p, d), new(p, 2 * f), 2.0 * m * n_active * 2 * f * d
    row("bf16 forward", lambda: F.grouped_mm(a16, w16.transpose(1, 2), offs=ends), 0, flops)
    row("bf16 input gradient", lambda: F.grouped_mm(b16, w16, offs=ends), 0, flops)
    meant = lambda codes, scales: codes.double() * scales.double()[..., None]
    last, first = int(ends[0]), w.rows[0]
    exact = {
        "forward": meant(a.rows[:last], a.row_scales[:last]) @ meant(first, w.row_scales[0]).T,
        "input gradient": meant(b.rows[:last], b.row_scales[:last]) @ meant(w.columns[0], w.column_scales[0]).T,
    }
    for fast in (True, False):
        calls = {
            "forward": lambda s=fast: fp8_experts.product(a[:2], w[:2], ends, torch.bfloat16, s)[:last],
            "input gradient": lambda s=fast: fp8_experts.product(b[:2], w[2:], ends, torch.bfloat16, s)[:last],
        }
        for name, call in calls.items():
            sums = "fast" if fast else "exact"
            row(f"fp8 {name}, {sums} sums (error {relative_error(call(), exact[name]):.1e})", call, 0, flops)
    weight = torch.nn.Parameter(gate_up)
    weight.grad = total = torch.zeros_like(weight)
    row("bf16 weight gradient", lambda: F.grouped_mm(b16.T, a16, offs=ends), 0, flops)
    bf16_added = lambda: joined.add_to(total, F.grouped_mm(b16.T, a16, offs=ends))
    row("bf16 weight gradient, then added", bf16_added, 0, flops)
    rows_of = {
        "bf16": (b16, a16, None, b16[:last].double().T @ a16[:last].double()),
        "fp8": (b.columns, a.columns, (b.column_scales, a.column_scales),
            meant(b.columns[:, :last], b.column_scales[0]) @ meant(a.columns[:, :last], a.column_scales[0]).T),
    }  # fmt: skip
    for name, (d_y, of, scales, expected) in rows_of.items():
        for adds in (True, False):
            for tiles in TILES[name]:
                call = functools.partial(expert_gradient, weight, d_y, of, ends, adds, scales, tiles)
                total.zero_()
                found = call()
                error = relative_error((total if found is None else found)[0], expected)
                label = f"{name} weight gradient {'added' if adds else 'written'} by {tiles}"
                row(f"{label} (error {error:.1e})", call, 0, flops)


def quantised(
    per_row: bool, rows: fp8_experts.Rows, n_experts: int, x: Tensor, gated: tuple[Tensor, Tensor, Tensor]
) -> None:
    """What is quantised in a layer of experts; the shares of row codes, row scales, column codes and column scales that
    differ from those of the plain form."""
    (d_inner, inner, weights), group = gated, rows.group
    (p, f), d, quantise = d_inner.shape, x.shape[1], functools.partial(fp8_experts.quantise, per_row=per_row)
    scale = "row" if per_row else "tensor"

    def compared(name: str, n_bytes: float, call, values: Tensor) -> None:
        pairs = zip(call(), fp8_experts._plain(values, group, n_experts, per_row, False), strict=True)
        pairs = ((mine.float(), theirs.float()) for mine, theirs in pairs)
        shares = [((mine - theirs).abs() > 1e-5 * theirs.abs()).float().mean().item() for mine, theirs in pairs]
        row(f"{name}, {scale} ({', '.join(f'{share:.0e}' for share in shares)})", call, n_bytes)

    tokens = fp8_experts._values(x, rows.token_P, None)
    products = fp8_experts._values(inner, None, weights)
    slopes, of_weights = joined.swiglu_gradients(d_inner.float(), inner.float(), weights[:, None])
    assert of_weights is not None
    gradients = functools.partial(
        fp8_experts.quantise_gradients, d_inner, inner, weights, group, n_experts, per_row=per_row
    )
    taken = lambda: quantise(x, group, n_experts, token_P=rows.token_P)
    compared("rows to experts quantised", 2.0 * (len(x) + p) * d, taken, tokens)
    of_swiglu = lambda: quantise(inner, group, n_experts, weights_P=weights)
    compared("swiglu quantised", 6.0 * p * f, of_swiglu, products)
    compared("swiglu backward quantised", 10.0 * p * f, lambda: gradients()[0], slopes)
    print(f"gradient of the rows' weights: error {relative_error(gradients()[1][:, None], of_weights):.0e}", flush=True)


def whole_layer(format: str, x: Tensor, chosen: Tensor, n_experts: int, f: int) -> None:
    """Forward and backward pass of all experts, with weights that are held and gradients that are added."""
    (m, d), n_active = x.shape, chosen.shape[1]
    layer = Experts(d, ExpertConfig(n_experts, n_active, f)).cuda()
    weights, generator = (layer.gate_up, layer.down), torch.Generator("cuda").manual_seed(0)
    for weight in weights:
        torch.nn.init.normal_(weight, 0.0, 0.02, generator=generator)
        weight.grad = torch.zeros_like(weight)
    if format.startswith("bf16"):
        dispatch.takes_rows = (lambda *_: False) if "," in format else takes_rows
        layer.held = tuple(Held(weight.detach().bfloat16(), True) for weight in weights)
    else:
        layer.numerics = Fp8WholeProduct(per_row=format == "row")
        assert layer.numerics.hold_experts(weights, True)
    leaves = [x.detach().requires_grad_(), torch.rand(m, n_active, device="cuda", generator=generator).requires_grad_()]
    d_y = torch.randn(m, d, device="cuda", generator=generator).bfloat16()
    forward = lambda: layer(*leaves, chosen)[0]
    both = lambda: torch.autograd.grad(forward(), leaves, d_y)
    row(f"experts, forward, {format}", forward, 0, 2.0 * m * n_active * 3 * f * d)
    row(f"experts, forward and backward, {format}", both, 0, 6.0 * m * n_active * 3 * f * d)


if __name__ == "__main__":
    with torch.cuda.stream(torch.cuda.Stream()):  # the default one cannot be captured
        main()
