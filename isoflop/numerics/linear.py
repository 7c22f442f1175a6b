"""Linear layers whose weight stays in float32 while the product runs in another number format.

`Linear` keeps `weight` [d_out, d_in] and its name whatever the format, so checkpoints and exports never change with it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """y = x W^T without bias; the float32 master weight is cast to the dtype of x at the call.

    Shapes: x [..., d_in] -> [..., d_out]. Gradients reach the master weight in float32.
    """

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        # The cast belongs to the layer: a bf16 activation asks for a bf16 product with fp32 accumulation.
        return F.linear(x, self.weight.to(x.dtype))
