"""Rows of the embedding in the dtype of the activations, and their gradient, which can add itself to the table's.

Shapes: R tokens, V vocabulary, D d_model.
"""

import torch
from torch import Tensor, nn

from isoflop.numerics.launch import block_kernels, has_kernels, launch, power_of_two


class Embedding(nn.Embedding):
    """A float32 table [V, D]."""

    adds = False
    """Whether a backward pass may add to the table's `grad` by itself (see `isoflop.numerics.step_weights`)."""

    def rows(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of tokens [...] in another dtype, [..., D]."""
        if self.adds and dtype == torch.bfloat16 and has_kernels(self.weight, wide=True):
            return _Rows.apply(self.weight, tokens)  # type: ignore[return-value]
        return self(tokens).to(dtype)


class _Rows(torch.autograd.Function):
    """Only rows that tokens name are touched, where PyTorch fills and adds a whole table."""

    @staticmethod
    def forward(ctx, weight_VD: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, n = weight_VD, weight_VD.shape[1]
        x = weight_VD.new_empty(*tokens.shape, n, dtype=torch.bfloat16)
        settings = {"block": power_of_two(n), "num_warps": 4}
        launch(block_kernels().take_rows, (tokens.numel(),), x, weight_VD, tokens.contiguous(), n, **settings)
        return x

    @staticmethod
    def backward(ctx, d_x: Tensor):  # type: ignore[override]
        (tokens,), weight_VD = ctx.saved_tensors, ctx.weight
        total_VD = torch.zeros_like(weight_VD) if weight_VD.grad is None else weight_VD.grad
        add_rows(total_VD, tokens.flatten(), d_x.reshape(-1, d_x.shape[-1]))
        return total_VD if weight_VD.grad is None else None, None


def add_rows(total_VD: Tensor, tokens_R: Tensor, x_RD: Tensor) -> None:
    """Add each row of x to that of its token, in place; the order of a token's rows is that of the tokens."""
    if not has_kernels(x_RD):
        total_VD.index_add_(0, tokens_R, x_RD.to(total_VD.dtype))
        return
    ids_R, place_R = torch.sort(tokens_R.int(), stable=True)
    n_rows, n = x_RD.shape
    block = min(512, power_of_two(n))
    launch(
        block_kernels().add_rows, (n_rows, -(-n // block)), total_VD, x_RD.contiguous(), ids_R, place_R, n_rows, n,
        together=8, block=block, num_warps=4,
    )  # fmt: skip
