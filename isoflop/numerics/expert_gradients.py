"""Gradients of the weights of experts, which their product writes in float32 or adds to `grad`, on Hopper.

PyTorch's grouped product rounds to bf16 and leaves adding to a second pass over memory.
Shapes: P rows, E experts, N out, K in.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from isoflop.numerics.launch import has_kernels, launch

TILES = {torch.bfloat16: (128, 256, 64, 8, 4), torch.float8_e4m3fn: (128, 256, 128, 8, 4)}
"""Outputs, inputs, rows, warps, stages (measured, docs/log.md 2026-11-30)."""


def takes_rows(x_PK: Tensor, weight_ENK: Tensor) -> bool:
    """Whether the product is `expert_gradient`'s: in bf16 on Hopper, with rows of whole 32 bytes."""
    return (
        has_kernels(x_PK)
        and torch.cuda.get_device_capability(x_PK.device)[0] == 9
        and not any(width % 16 for width in weight_ENK.shape[1:])
    )


def expert_gradient(
    weight_ENK: Tensor, d: Tensor, x: Tensor, ends_E: Tensor, adds: bool,
    scales: tuple[Tensor, Tensor] | None = None, tiles: tuple[int, ...] | None = None,
) -> Tensor | None:  # fmt: skip
    """d^T x in float32 for the rows of each expert, of rows [P, N] and [P, K] in bf16; with scales [E, N] and [E, K] of
    codes [N, P] and [K, P], whose `ends` are multiples of 16. None where `adds` and it was added to `grad`."""
    grad, (n_experts, n_out, n_in) = weight_ENK.grad if adds else None, weight_ENK.shape
    if not has_kernels(weight_ENK, wide=True):
        assert scales is not None
        counts = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()
        parts = zip(*(codes.float().split(counts, 1) for codes in (d, x)), *scales, strict=True)
        found = torch.stack([(a * by[:, None]) @ (b * other[:, None]).T for a, b, by, other in parts])
        if grad is None:
            return found
        grad += found
        return None
    d, x = d.contiguous(), x.contiguous()
    total = weight_ENK.new_empty(weight_ENK.shape) if grad is None else grad
    assert total.is_contiguous() and total.dtype == torch.float32
    of_out, of_in, of_rows, num_warps, num_stages = tiles or TILES[d.dtype]
    launch(
        _kernels().expert_gradients, (-(-n_out // of_out) * -(-n_in // of_in), n_experts), total, d, x, ends_E,
        *(scales or (None, None)), n_out, n_in, d.shape[1], first=grad is None, coded=scales is not None,
        of_out=of_out, of_in=of_in, of_rows=of_rows, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return total if grad is None else None


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("isoflop.numerics.kernels.expert_gradients")
