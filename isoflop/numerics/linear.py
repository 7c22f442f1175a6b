"""Linear layers whose weight stays in float32 while the product runs in another number format.

`Linear` keeps `weight` [d_out, d_in] and its name whatever the format, so checkpoints and exports never change with it.
A format is a `MatmulBackend` put into the layer by `isoflop.numerics.assign`; without one the product runs in the
dtype of the activations.
"""

from typing import NamedTuple

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

    def hold(self, weight: Tensor, adds: bool) -> bool:
        """Keep what can be made of the weight once for all micro-batches of a step, until `release`; whether it can.

        `adds`: the products may add the weight's gradient to what is there by themselves (see `Held`).
        """
        return False

    def release(self) -> None:
        """Forget what is held: the weight is about to change."""

    def capturable(self, weight: Tensor) -> bool:
        """Whether products with this weight [..., d_out, d_in] can be replayed from a CUDA graph."""
        return not self.noisy and weight.ndim == 2  # experts are looped over, asking for their rows

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        raise NotImplementedError


class Held(NamedTuple):
    """What a layer keeps of a weight for the micro-batches of one step (see `isoflop.numerics.step_weights`)."""

    weight: Tensor
    """In the dtype of the activations."""
    adds: bool
    """Products add their gradients to `grad` of the master weight by themselves, in float32, and hand none on."""


class Linear(nn.Module):
    """y = x W^T without bias; the float32 master weight is cast to the dtype of x, at the call or once a step.

    Shapes: x [..., d_in] -> [..., d_out]. Gradients reach the master weight in float32.
    """

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.numerics: MatmulBackend | None = None
        self.held: tuple[Held, ...] = ()

    def forward(self, x: Tensor, part: int = 0) -> Tensor:
        if self.numerics is not None:
            return self.numerics(x, self.weight, part)
        if not torch.compiler.is_compiling() and self.held:
            return _HeldLinear.apply(x, self.weight, *self.held[0])  # type: ignore[return-value]
        # The cast belongs to the layer: a bf16 activation asks for a bf16 product with fp32 accumulation.
        return F.linear(x, self.weight.to(x.dtype))


class _HeldLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, held: Tensor, adds: bool) -> Tensor:
        ctx.save_for_backward(x, held)
        ctx.weight, ctx.adds = weight, adds
        return F.linear(x, held)

    @staticmethod
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x, held = ctx.saved_tensors
        d_y_MN, x_MK = d_y.reshape(-1, d_y.shape[-1]), x.reshape(-1, x.shape[-1])
        d_x = d_y @ held if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(ctx.weight, d_y_MN, x_MK, ctx.adds) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, None, None


def weight_gradient(weight: Tensor, d_y_MN: Tensor, x_MK: Tensor, adds: bool) -> Tensor | None:
    """d_y^T x in float32, the tensor cores' accumulator written out; None where the product has added it to `grad`."""
    if adds and weight.grad is not None:
        torch.addmm(weight.grad, d_y_MN.T, x_MK, out_dtype=torch.float32, out=weight.grad)  # type: ignore[call-overload]
        return None
    return torch.mm(d_y_MN.T, x_MK, out_dtype=torch.float32)  # type: ignore[call-overload]
