"""What the loop trains: where batches come from, what their loss is, and what surrounds a step. Nothing more."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Loss(NamedTuple):
    """A loss whose reported value is not all that is minimised."""

    objective: Tensor
    """What gradients are taken of."""
    reported: Tensor
    """What metrics, results and predictions speak of."""


class StepHook(Protocol):
    """Something done around optimizer steps: a weight set before, state that follows after, figures for the metrics.

    A hook that inherits from this class writes only the methods it needs.
    """

    n_figures: int = 0
    """Length of the vector that `finish` returns."""

    def begin(self, step: int) -> None:
        """Before step `step` (from 0)."""

    def micro_batch(self, index: int) -> None:
        """Before the forward pass of a micro-batch of the step (from 0)."""

    def validating(self, step: int) -> None:
        """Before a validation after `step` finished steps."""

    def finish(self) -> Tensor | None:
        """After the optimizer; returns `n_figures` figures as a float32 vector on the device, None for none."""

    def reset(self) -> None:
        """Forget what was counted since the last `finish`."""

    def figures(self, step: int, values: list[float]) -> dict[str, object]:
        """What the vector of `finish` adds to the metrics line of finished step `step`."""
        return {}


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
        """Micro-batches of optimizer step `step` for `rank` of `world`, on the CPU; the loop moves them."""
        ...

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


def parts(loss: Tensor | Loss) -> tuple[Tensor, Tensor]:
    """(objective, reported): the same where the workload makes no difference."""
    return (loss.objective, loss.reported) if isinstance(loss, Loss) else (loss, loss)
