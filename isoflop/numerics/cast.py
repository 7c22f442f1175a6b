"""The plain formats: both operands cast to float32 or bfloat16, whatever the activations are."""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.linear import MatmulBackend


class CastProduct(MatmulBackend):
    """One cast, one product with float32 accumulation, one cast back; the backward products run in the same format."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        return F.linear(x.to(self.dtype), weight.to(self.dtype)).to(x.dtype)
