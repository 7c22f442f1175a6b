"""From a few measured steps to the time of any run: what turns minutes into budgets.

In: samples of (shape, batch, tokens per second) measured on the device at hand. Out: a `SpeedModel`, which answers for
shapes in between. The idea: a step costs a fixed time, a time per layer (kernel launches), a time per FLOP and a time
per parameter (optimizer), each at least zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from isoflop.errors import RecipeError
from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.model.config import ModelConfig

Speed = Callable[[ModelConfig, int], float]
"""(shape, batch_tokens) -> tokens per second of one worker."""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    config: ModelConfig
    batch_tokens: int
    tokens_per_s: float


def _terms(config: ModelConfig, batch_tokens: int) -> list[float]:
    flops = float(flops_per_token(config, "exact")) * batch_tokens
    return [1.0, float(config.n_layers), flops, float(count_parameters(config).n_params_total)]


@dataclass(frozen=True)
class SpeedModel:
    """Seconds of a step = per_step + per_layer * layers + per_flop * exact FLOPs + per_param * parameters."""

    per_step_s: float
    per_layer_s: float
    per_flop_s: float
    per_param_s: float

    @staticmethod
    def fit(samples: Sequence[Sample]) -> "SpeedModel":
        """Non-negative least squares on relative error; one sample gives a plain FLOP rate."""
        if not samples or any(sample.tokens_per_s <= 0 for sample in samples):
            raise RecipeError("speed calibration needs at least one sample with tokens_per_s above 0; measure again")
        rows = np.array([_terms(sample.config, sample.batch_tokens) for sample in samples])
        seconds = np.array([sample.batch_tokens / sample.tokens_per_s for sample in samples])
        used = [2] if len(samples) == 1 else [0, 1, 2, 3]
        scale = rows.max(axis=0)
        found, _ = nnls((rows / scale / seconds[:, None])[:, used], np.ones(len(samples)))
        values = np.zeros(4)
        values[used] = found / scale[used]
        return SpeedModel(*(float(value) for value in values))

    def __call__(self, config: ModelConfig, batch_tokens: int) -> float:
        """Tokens per second."""
        each = (self.per_step_s, self.per_layer_s, self.per_flop_s, self.per_param_s)
        return batch_tokens / sum(cost * term for cost, term in zip(each, _terms(config, batch_tokens)))
