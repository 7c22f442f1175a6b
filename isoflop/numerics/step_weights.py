"""What is done once a step instead of once a micro-batch: weights cast or quantised, gradients added by the products.

    with step_weights(model, torch.bfloat16):
        for micro_batch in micro_batches:
            loss(model, micro_batch).backward()

Inside, layers compute with copies of their weights, so weights must not change; outside nothing is left of them, and
`grad` holds what it would hold anyway, in float32. The first micro-batch writes the gradient, the others add to it
within the product (one pass over memory instead of three). It concerns plain bf16 layers on an NVIDIA GPU and formats
that hold weights; for all others it does nothing, and nothing on a CPU. With several processes products hand their
gradients on as usual, since reducing them hooks into that.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from isoflop.numerics.linear import Held, Linear


@contextlib.contextmanager
def step_weights(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """For the micro-batches of one step; `dtype` of the activations, None where there is no saying."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and _plain(layer.weight)]
    formats = [layer.numerics for layer in layers if layer.numerics and layer.numerics.hold(layer.weight, alone)]
    cast = [layer for layer in layers if layer.numerics is None] if dtype == torch.bfloat16 else []
    for layer, copy in zip(cast, cast_all([layer.weight for layer in cast], torch.bfloat16), strict=True):
        layer.held = Held(copy, alone)
    try:
        yield
    finally:
        for layer in cast:
            layer.held = None
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


def _plain(weight: Tensor) -> bool:
    """A float32 parameter whole on one GPU: not a shard, whose gathering has rules of its own."""
    return type(weight) is nn.Parameter and weight.is_cuda and weight.dtype == torch.float32
