"""One optimizer step: forward and backward of every micro-batch, clipping, AdamW, hooks. It stands here once.

The loop takes it step by step, cuda_graph.py captures it, whole or in parts. A `Layout` says which part of the batch
this process sees and how gradients come about; more processes or pipeline stages are another layout, not another loop.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoflop.model.transformer import Transformer
from isoflop.numerics.step_weights import step_weights
from isoflop.training.workload import Loss, Workload


def forward_backward(workload: Workload, model: nn.Module, micro_batches: list[tuple[Tensor, ...]]) -> Tensor:
    """Add the gradients of all micro-batches to the parameters'; returns the reported loss, divided, on the device."""
    device = next(model.parameters()).device
    divisor = workload.divisor(micro_batches)
    total = torch.zeros((), device=device)
    with held_weights(model):
        for index, micro_batch in enumerate(micro_batches):
            for hook in workload.hooks:
                hook.micro_batch(index)
            on_device = tuple(tensor.to(device, non_blocking=True) for tensor in micro_batch)
            add_gradients(workload, model, on_device, divisor, total)
    return total


def add_gradients(
    workload: Workload, model: nn.Module, on_device: tuple[Tensor, ...], divisor: int | Tensor, total: Tensor
) -> None:
    """Forward and backward of one micro-batch; its share of the reported loss is added to `total`."""
    loss = workload.loss_sum(model, on_device)
    objective, reported = loss if isinstance(loss, Loss) else (loss, loss)
    (objective / divisor).backward()  # gradients add up in float32, as the parameters are
    total += reported.detach() / divisor


def held_weights(model: nn.Module) -> AbstractContextManager[None]:
    """What is made of the weights once for all micro-batches of a step."""
    return step_weights(model, model.dtype if isinstance(model, Transformer) else None)


@dataclass(frozen=True)
class Layout:
    """How a step is spread over processes; the default is one process."""

    rank: int = 0
    """Which rows of a batch this process reads, of `world`."""
    world: int = 1
    forward_backward: Callable[[Workload, nn.Module, list[tuple[Tensor, ...]]], Tensor] = forward_backward
    """The part of a step between zeroed gradients and clipping."""


ONE_PROCESS = Layout()


def take_step(
    workload: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[tuple[Tensor, ...]],
    *,
    clip_norm: float,
    layout: Layout = ONE_PROCESS,
) -> Tensor:
    """From zeroed gradients to moved weights; returns [loss, gradient norm, figures of the hooks] on the device."""
    loss = layout.forward_backward(workload, model, micro_batches)
    return move_weights(workload, model, optimizer, loss, clip_norm)


def move_weights(
    workload: Workload, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float
) -> Tensor:
    """The part of a step after its gradients; returns what `take_step` does."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    figures = [found for hook in workload.hooks if (found := hook.finish()) is not None]
    return torch.cat((torch.stack((loss, norm.float())), *figures))
