"""How far a product is from the exact one, in numbers that do not depend on its scale."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.numerics.linear import Linear


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the error over that of the exact values, in float64; 0 where both are 0."""
    exact = exact.double()
    error = (found.double() - exact).square().mean().sqrt().item()
    size = exact.square().mean().sqrt().item()
    return error / size if size else (0.0 if error == 0 else math.inf)


def effective_bits(found: Tensor, exact: Tensor) -> float:
    """(20 log10(rms signal / rms error) - 1.76) / 6.02: the bits of a converter that would err as much."""
    error = relative_error(found, exact)
    return math.inf if error == 0 else (-20 * math.log10(error) - 1.76) / 6.02 if math.isfinite(error) else -math.inf


@torch.no_grad()
def layer_errors(model: nn.Module, run: Callable[[], Any]) -> dict[str, dict[str, Any]]:
    """Relative error and effective bits of every layer with a format of its own, over the calls that `run()` makes.

    Each layer is compared with the float64 product of the very inputs it got, so errors do not add up over layers.
    """
    squares: dict[str, list[float]] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, Linear) and layer.numerics is not None:

            def compare(module: Linear, inputs: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
                exact = inputs[0].double() @ module.weight.double().T
                found = squares.setdefault(name, [0.0, 0.0])
                found[0] += (y.double() - exact).square().sum().item()
                found[1] += exact.square().sum().item()

            handles.append(layer.register_forward_hook(compare))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, (error, size) in squares.items():
        ratio = math.sqrt(error / size) if size else 0.0
        bits = (-20 * math.log10(ratio) - 1.76) / 6.02 if ratio else None
        found[name] = {"relative_error": ratio, "effective_bits": bits}
    return found
