"""Linear layers whose weight stays in float32 while the product runs in another number format.

`Linear` keeps `weight` [d_out, d_in] and its name whatever the format, so checkpoints and exports never change with it.
A format is a `MatmulBackend` put into the layer by `isoflop.numerics.assign`; without one the product runs in the
dtype of the activations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MatmulBackend(nn.Module):
    """How a layer multiplies: y = x W^T in some number format, with the backward products of that format.

    Has no parameters and nothing in the state dict: what is trained and saved is the same in every format.

    Shapes: x [..., d_in], weight [d_out, d_in] float32 -> [..., d_out] in the dtype of x; the gradient of the weight is
    float32. `part` tells calls of one layer within one forward pass apart (chunks of a head, experts), so that they
    draw different noise.
    """

    noisy = False
    """Whether results differ from call to call."""

    def capturable(self, weight: Tensor) -> bool:
        """Whether products with this weight [..., d_out, d_in] can be replayed from a CUDA graph."""
        return not self.noisy

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        raise NotImplementedError


class Linear(nn.Module):
    """y = x W^T without bias; the float32 master weight is cast to the dtype of x at the call.

    Shapes: x [..., d_in] -> [..., d_out]. Gradients reach the master weight in float32.
    """

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.numerics: MatmulBackend | None = None

    def forward(self, x: Tensor, part: int = 0) -> Tensor:
        if self.numerics is not None:
            return self.numerics(x, self.weight, part)
        # The cast belongs to the layer: a bf16 activation asks for a bf16 product with fp32 accumulation.
        return F.linear(x, self.weight.to(x.dtype))
