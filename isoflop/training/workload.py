"""What the loop trains: where batches come from, what their loss is, and hooks around a step."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from isoflop.training.step_hooks import StepHook


class Loss(NamedTuple):
    """A loss whose reported value is not all that is minimised."""

    objective: Tensor
    """What gradients are taken of."""
    reported: Tensor
    """What metrics, results and predictions speak of."""


class Workload(Protocol):
    """A batch source, a loss, a validation, and the hooks around a step; inherit from it for the defaults.

    Resuming needs no replay because `batch(step)` depends on its arguments alone or, where `prefetch` is off, on
    these and the weights.
    """

    tokens_per_step: int
    """Tokens (or samples) that one optimizer step consumes, over all ranks."""
    prefetch: bool = True
    """Whether a batch may be read while the step before it runs. False where it depends on the weights."""
    hooks: Sequence[StepHook] = ()
    """In the order in which their figures stand in the metrics."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, ...]]:
        """Micro-batches of optimizer step `step` for `rank` of `world`, on the CPU; the loop moves them.

        With `prefetch` off it runs between two steps, in the loop's thread, and leaves the model in training mode.
        """
        ...

    def batches(self, first: int, end: int) -> list[list[tuple[Tensor, ...]]]:
        """`batch` of the steps from `first` up to `end`, by one process: small ones are read faster together."""
        return [self.batch(step) for step in range(first, end)]

    def divisor(self, micro_batches: list[tuple[Tensor, ...]]) -> int | Tensor:
        """What the loss sums of a step are divided by, over all ranks: a number, or a scalar tensor.

        A count of targets is a tensor computed from the micro-batches, so that a captured step sees its own.
        """
        return self.tokens_per_step

    def loss_sum(self, model: nn.Module, micro_batch: tuple[Tensor, ...]) -> Tensor | Loss:
        """Sum of the loss over one micro-batch, a float32 scalar on the device of the model."""
        ...

    def validate(self, model: nn.Module) -> dict[str, object]:
        """Figures for the metrics file and the result, with `loss_nats` where the loss is in nats."""
        ...
