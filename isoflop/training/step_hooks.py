"""What is done around optimizer steps beside training: the hooks of a workload.

Further ones: `pretrain/terms.py` (terms of the loss, loads of experts, the biases that follow them), `saturation.py`.
"""

import logging
from typing import Protocol

from torch import Tensor, nn

from isoflop.numerics.assign import take_off
from isoflop.numerics.noise import VALIDATION, NoiseKey

log = logging.getLogger(__name__)


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


class NoiseHook(StepHook):
    """Tells number formats with noise where the run is, so that each micro-batch and each validation draws its own."""

    def __init__(self, noise_key: NoiseKey):
        self._key, self._step = noise_key, 0
        self._set: tuple[int, int] | None = None

    def begin(self, step: int) -> None:
        self._step = step
        self.micro_batch(0)

    def micro_batch(self, index: int) -> None:
        if self._set != (self._step, index):  # said by `begin` for the first one, outside a step that is captured
            self._key.set(self._step, index)
            self._set = (self._step, index)

    def validating(self, step: int) -> None:
        self._key.set(step, VALIDATION)
        self._set = None


class PlainFrom(StepHook):
    """Takes all number formats off once `first` steps are finished: training and validation go on without them."""

    def __init__(self, model: nn.Module, first: int):
        self._model, self._first = model, first
        self._taken_off = False

    def begin(self, step: int) -> None:
        if step >= self._first and not self._taken_off:
            take_off(self._model)
            log.info("numerics  off from step %d on: all products in the dtype of the activations", self._first)
            self._taken_off = True

    def validating(self, step: int) -> None:
        self.begin(step)
