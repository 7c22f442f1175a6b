"""What a step would take if nothing but its products and attention ran: the same library calls, back to back.

Called by train_step.py --bound. Operands are random, every layer has buffers of its own size (not of its own, which a
cache of 60 MB would not notice), the calls come in the order of a training step and last as long as one, so that the
card is at the clocks that a real step has.
"""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig

CHUNK = 4096
"""Rows of the head at a time, as in training."""


def bound_tokens_per_s(shape: ModelConfig, micro_batch: int, sequences: int, repeats: int = 2) -> float:
    """Tokens per second of the bare calls of `sequences` sequences; the better of `repeats`, after a warm-up."""
    calls = _Calls(shape, micro_batch)
    calls.run()
    best = 0.0
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(sequences // micro_batch):
            calls.run()
        torch.cuda.synchronize()
        best = max(best, sequences * shape.seq_len / (time.perf_counter() - began))
    return best


class _Calls:
    """Every product and attention call of one micro-batch, forward and backward."""

    def __init__(self, shape: ModelConfig, micro_batch: int):
        self.shape, self.n_rows = shape, micro_batch * shape.seq_len
        new = lambda *sizes: torch.randn(sizes, device="cuda", dtype=torch.bfloat16)
        widths = {size for layer in range(shape.n_layers) for pair in linears(shape, layer) for size in pair}
        self.rows = {width: new(self.n_rows, width) for width in widths}
        pairs = {pair for layer in range(shape.n_layers) for pair in linears(shape, layer)}
        self.weights: dict[tuple[int, int], Tensor] = {pair: new(*pair) for pair in pairs}
        self.gradients = {pair: torch.zeros(pair, device="cuda") for pair in pairs}
        d_value = shape.latent.d_value if shape.latent else shape.d_head
        heads = lambda n, width: new(micro_batch, shape.seq_len, n, width).transpose(1, 2).requires_grad_()
        sizes = ((shape.n_heads, shape.d_head), (shape.n_kv_heads, shape.d_head), (shape.n_kv_heads, d_value))
        self.qkv = [heads(*size) for size in sizes]
        self.d_mixed = new(micro_batch, shape.seq_len, shape.n_heads, d_value).transpose(1, 2)
        self.head, self.hidden = new(shape.vocab_size, shape.d_model), new(CHUNK, shape.d_model)
        self.logits, self.d_head = new(CHUNK, shape.vocab_size), torch.zeros(shape.vocab_size, shape.d_model).cuda()
        if shape.experts is not None:
            experts, n_routed = shape.experts, self.n_rows * shape.experts.n_active
            self.ends = torch.arange(1, experts.n_experts + 1, device="cuda", dtype=torch.int32)
            self.ends = self.ends * (n_routed // experts.n_experts)
            self.ends[-1] = n_routed
            self.routed = {width: new(n_routed, width) for width in (shape.d_model, experts.d_expert)}
            self.routed[2 * experts.d_expert] = new(n_routed, 2 * experts.d_expert)
            sizes = [(2 * experts.d_expert, shape.d_model), (shape.d_model, experts.d_expert)]
            self.experts = [new(experts.n_experts, *size) for size in sizes]

    def run(self) -> None:
        with fastest_kernels(torch.device("cuda")):
            for layer in range(self.shape.n_layers):
                self._layer(layer)
        for _ in range(self.n_rows // CHUNK):
            torch.mm(self.hidden, self.head.T, out=self.logits)
            torch.mm(self.logits, self.head)
            _add_product(self.d_head, self.logits, self.hidden)

    def _layer(self, layer: int) -> None:
        q, k, v = self.qkv
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        torch.autograd.grad(mixed, self.qkv, self.d_mixed)
        for pair in linears(self.shape, layer):
            x, d_y, weight = self.rows[pair[1]], self.rows[pair[0]], self.weights[pair]
            torch.mm(x, weight.T)
            torch.mm(d_y, weight)
            _add_product(self.gradients[pair], d_y, x)
        if self.shape.experts_of(layer) is not None:
            for weight in self.experts:
                x, d_y = self.routed[weight.shape[2]], self.routed[weight.shape[1]]
                F.grouped_mm(x, weight.transpose(1, 2), offs=self.ends)
                F.grouped_mm(d_y, weight, offs=self.ends)
                F.grouped_mm(d_y.T, x, offs=self.ends)


def _add_product(gradient: Tensor, d_y: Tensor, x: Tensor) -> None:
    torch.addmm(gradient, d_y.T, x, out_dtype=torch.float32, out=gradient)  # type: ignore[call-overload]


def linears(shape: ModelConfig, layer: int) -> list[tuple[int, int]]:
    """(out, in) of every linear layer of a block, experts aside."""
    d, experts, latent = shape.d_model, shape.experts_of(layer), shape.latent
    width = shape.d_ff if experts is None else experts.n_shared * experts.d_expert
    mlp = [(2 * width, d), (d, width)] if width else []
    if latent is None:
        return [((shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head, d), (d, shape.n_heads * shape.d_head), *mlp]
    return [
        (shape.n_heads * shape.d_head, d),
        (latent.d_kv_latent + latent.d_rope, d),
        (shape.n_heads * (latent.d_nope + latent.d_value), latent.d_kv_latent),
        (d, shape.n_heads * latent.d_value),
        *mlp,
    ]
