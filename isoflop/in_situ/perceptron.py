"""The networks that are trained in situ: fully connected, products through numerics/, everything else digital."""

import itertools

import torch
from torch import Tensor, nn

from isoflop.numerics.linear import Linear


class Dense(nn.Module):
    """W x + b: the product in the layer's number format, the bias added digitally."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.linear = Linear(d_in, d_out)
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.bias


class Perceptron(nn.Module):
    """Layers of the given widths; rectified between them (light is positive), or with tanh, whose output is signed."""

    def __init__(self, widths: tuple[int, ...], *, signed: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(Dense(a, b) for a, b in itertools.pairwise(widths))
        self.widths, self.signed = widths, signed

    def initialise(self, generator: torch.Generator) -> None:
        """Weights from N(0, 2 / d_in) (He et al. 2015, arXiv 1502.01852), with tanh N(0, 1 / d_in); biases 0."""
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, Dense)
                variance = (1.0 if self.signed else 2.0) / layer.linear.weight.shape[1]
                layer.linear.weight.normal_(0.0, variance**0.5, generator=generator)
                layer.bias.zero_()

    def forward(self, x: Tensor, until: int | None = None) -> Tensor:
        """Output of the last layer, or what layer `until` (from 1) gives to the next."""
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number == len(self.layers):
                return x
            x = x.tanh() if self.signed else x.relu()
            if number == until:
                return x
        return x
