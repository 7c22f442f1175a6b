"""What the loop trains: where batches come from, and what their loss is. Nothing more."""

from typing import Protocol

from torch import Tensor, nn


class Workload(Protocol):
    """A batch source that is a pure function of the step, a loss, and a validation.

    Resuming needs no replay because `batch(step)` depends on nothing but its arguments.
    """

    tokens_per_step: int
    """Tokens (or samples) that one optimizer step consumes, over all ranks."""

    def batch(self, step: int) -> list[tuple[Tensor, ...]]:
        """Micro-batches of optimizer step `step`, on the CPU; moving them is the loop's business."""
        ...

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor:
        """Sum of the loss over one micro-batch, a float32 scalar on the device of the model."""
        ...

    def validate(self, model: nn.Module) -> dict[str, object]:
        """Figures for the metrics file, with at least `loss_nats`."""
        ...
