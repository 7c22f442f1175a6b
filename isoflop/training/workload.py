"""What the loop trains: where batches come from, and what their loss is. Nothing more."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Loss(NamedTuple):
    """A loss whose reported value is not all that is minimised."""

    objective: Tensor
    """What gradients are taken of."""
    reported: Tensor
    """What metrics, results and predictions speak of."""


class Workload(Protocol):
    """A batch source that is a pure function of the step, a loss, and a validation.

    Resuming needs no replay because `batch(step)` depends on nothing but its arguments.
    """

    tokens_per_step: int
    """Tokens (or samples) that one optimizer step consumes, over all ranks."""

    def batch(self, step: int) -> list[tuple[Tensor, ...]]:
        """Micro-batches of optimizer step `step`, on the CPU; moving them is the loop's business."""
        ...

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor | Loss:
        """Sum of the loss over one micro-batch, a float32 scalar on the device of the model."""
        ...

    def validate(self, model: nn.Module) -> dict[str, object]:
        """Figures for the metrics file, with at least `loss_nats`."""
        ...


class Terms(Protocol):
    """What surrounds an optimizer step: a schedule set before it, state that follows it after."""

    def begin(self, step: int) -> None:
        """Before step `step` (from 0)."""
        ...

    def finish(self) -> Tensor:
        """After the optimizer; returns figures as a float32 vector of constant length, on the device."""
        ...

    def reset(self) -> None:
        """Forget what was counted since the last `finish`."""
        ...

    def figures(self, step: int, values: list[float]) -> dict[str, object]:
        """What the vector of `finish` adds to the metrics line of finished step `step`."""
        ...


def parts(loss: Tensor | Loss) -> tuple[Tensor, Tensor]:
    """(objective, reported): the same where the workload makes no difference."""
    return (loss.objective, loss.reported) if isinstance(loss, Loss) else (loss, loss)
