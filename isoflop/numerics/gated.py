"""The gated MLP as one call: down(silu(gate(x)) * up(x)), in whatever formats its two layers have."""

import torch
from torch import Tensor

from isoflop.numerics.fp8_block import Fp8BlockProduct
from isoflop.numerics.joined import swiglu
from isoflop.numerics.linear import Linear


def gated_product(x: Tensor, gate_up: Linear, down: Linear) -> Tensor:
    """What `down(swiglu(gate_up(x)))` says; in training, two layers in one FP8 block format quantise in between."""
    first, last = gate_up.numerics, down.numerics
    if torch.is_grad_enabled() and isinstance(first, Fp8BlockProduct) and isinstance(last, Fp8BlockProduct):
        y = first.gated(x, gate_up.weight, last, down.weight)
        if y is not None:
            return y
    return down(swiglu(gate_up(x)))
