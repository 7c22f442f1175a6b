"""How often receivers clipped, step by step: the counts of all photonic layers on their way into the metrics."""

import torch
from torch import Tensor, nn

from isoflop.numerics.photonic import PhotonicProduct
from isoflop.training.step_hooks import StepHook


class ClippedShare(StepHook):
    """The share of results beyond the receivers' full scale, over all layers of a step; it only watches."""

    n_figures = 1

    def __init__(self, products: list[PhotonicProduct]):
        self._counts = [product.counts for product in products]

    @torch.no_grad()
    def finish(self) -> Tensor:
        clipped, all_results = torch.stack(self._counts).sum(0)
        share = (clipped.double() / all_results.clamp(min=1)).float().unsqueeze(0)
        self.reset()
        return share

    def reset(self) -> None:
        torch._foreach_zero_(self._counts)

    def figures(self, step: int, values: list[float]) -> dict[str, object]:
        return {"clipped_share": values[0]}


def watch_clipping(model: nn.Module) -> list[StepHook]:
    """The clipped share as a hook, where layers run on a core that can clip; else none."""
    products = [module for module in model.modules() if isinstance(module, PhotonicProduct)]
    limited = [product for product in products if product.core.config.is_limited]
    return [ClippedShare(limited)] if limited else []
