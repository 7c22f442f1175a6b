"""How often receivers clipped, step by step: the counts of all photonic layers on their way into the metrics."""

import torch
from torch import Tensor, nn

from isoflop.numerics.photonic import PhotonicProduct
from isoflop.training.workload import Terms


class ClippedShare:
    """Terms of a step that only watch: the share of results beyond the receivers' full scale, over all layers.

    `others` are the terms that the model has anyway; they come first.
    """

    def __init__(self, products: list[PhotonicProduct], others: Terms | None = None):
        self._counts, self._others = [product.counts for product in products], others

    def begin(self, step: int) -> None:
        if self._others is not None:
            self._others.begin(step)

    @torch.no_grad()
    def finish(self) -> Tensor:
        clipped, all_results = torch.stack(self._counts).sum(0)
        share = (clipped.double() / all_results.clamp(min=1)).float().unsqueeze(0)
        self._forget()
        return share if self._others is None else torch.cat((self._others.finish(), share))

    def reset(self) -> None:
        self._forget()
        if self._others is not None:
            self._others.reset()

    def figures(self, step: int, values: list[float]) -> dict[str, object]:
        *others, share = values
        found = {} if self._others is None else self._others.figures(step, others)
        return {**found, "clipped_share": share}

    def _forget(self) -> None:
        torch._foreach_zero_(self._counts)


def watch_clipping(model: nn.Module, terms: Terms | None) -> Terms | None:
    """`terms`, and the clipped share beside them where layers run on a core that can clip."""
    products = [module for module in model.modules() if isinstance(module, PhotonicProduct)]
    limited = [product for product in products if product.core.config.is_limited]
    return ClippedShare(limited, terms) if limited else terms
