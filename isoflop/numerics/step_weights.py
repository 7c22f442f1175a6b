"""What is done once a step instead of once a micro-batch: weights cast or quantised, gradients added by the products.

    with step_weights(model, torch.bfloat16):
        for micro_batch in micro_batches:
            loss(model, micro_batch).backward()

Inside, layers compute with copies of their weights, so weights must not change; outside nothing is left of them, and
`grad` holds what it would hold anyway, in float32. The first micro-batch writes the gradient, the others add to it
within the product (one pass over memory instead of three), as the embedding's rows do. It concerns plain bf16 layers
on an NVIDIA GPU that run eagerly, and formats that hold weights; for all others it does nothing, and nothing on a
CPU. With several processes products hand their gradients on as usual, since reducing them hooks into that.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.numerics.embedding import Embedding
from isoflop.numerics.fp8_whole import Fp8WholeProduct
from isoflop.numerics.linear import Held, Linear


@contextlib.contextmanager
def step_weights(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """For the micro-batches of one step; `dtype` of the activations, None where there is no saying."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    compiled = {id(part) for module in model.modules() if module._compiled_call_impl for part in module.modules()}
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "held") and id(m) not in compiled and _plain(m)]
    formats = []
    for layer in layers:
        if isinstance(layer, Linear):
            if layer.numerics is not None and layer.numerics.hold(layer.weight, alone):
                formats.append(layer.numerics)
        elif isinstance(layer.numerics, Fp8WholeProduct) and layer.numerics.hold_experts(
            tuple(layer.parameters(recurse=False)), alone
        ):
            formats.append(layer.numerics)
    cast = [layer for layer in layers if layer.numerics is None] if dtype == torch.bfloat16 else []
    copies = iter(cast_all([weight for layer in cast for weight in layer.parameters(recurse=False)], torch.bfloat16))
    for layer in cast:
        layer.held = tuple(Held(next(copies), alone) for _ in layer.parameters(recurse=False))
    embeddings = [m for m in model.modules() if isinstance(m, Embedding) and alone and _plain(m)]
    for embedding in embeddings:
        embedding.adds = True
    try:
        yield
    finally:
        for embedding in embeddings:
            embedding.adds = False
        for layer in cast:
            layer.held = ()
        for format in formats:
            format.release()


def cast_all(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in another dtype, in as few launches as the device allows."""
    if not tensors:
        return []
    copies = [torch.empty_like(tensor, dtype=dtype, requires_grad=False) for tensor in tensors]
    with torch.no_grad():
        torch._foreach_copy_(copies, [tensor.detach() for tensor in tensors])
    return copies


def _plain(layer: nn.Module) -> bool:
    """Float32 parameters whole on one GPU: no shards, whose gathering has rules of its own."""
    weights = layer.parameters(recurse=False)
    return all(type(w) is nn.Parameter and w.is_cuda and w.dtype == torch.float32 for w in weights)
