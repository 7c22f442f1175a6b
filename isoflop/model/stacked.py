"""Several models of one shape computed as one: every product takes all members at once, each with weights of its own.

Members go on being models: their parameters become views of the stacked ones, so what reads or writes one of them
(checkpoint, optimizer, validation) needs to know nothing of the stack. Attention, rotary embedding and SwiGLU are
those of any model, on a batch that holds the members' rows one after the other.

Shapes: S members, B sequences of a member, T tokens, D d_model, V vocabulary, K in, N out, R rows of a member.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.model.loss import chunked_cross_entropy
from isoflop.model.transformer import RMSNorm, Transformer
from isoflop.numerics.joined import normed, rms_norm
from isoflop.numerics.launch import has_kernels, processors
from isoflop.numerics.linear import Linear

TILE = 128
"""Rows and columns of a product's result that one processor computes at a time (assumption)."""
FEWEST_ROWS = 512
"""Summed within one part; fewer do not pay for the further sum (assumption)."""


def stackable(model: nn.Module) -> bool:
    """Whether models of this shape can be stacked: dense ones, their products in the dtype of the activations."""
    if not isinstance(model, Transformer) or model.config.experts is not None or model.config.mtp_depth:
        return False
    return all(module.numerics is None for module in model.modules() if isinstance(module, Linear))


class StackedTransformer(Transformer):
    """The members' rows [S B, T] in, one loss for each member out."""

    def __init__(self, members: Sequence[Transformer]):
        """Takes the members' parameters over: they are views of this module's from here on, and so are gradients."""
        first = members[0]
        with torch.device("meta"):
            super().__init__(first.config, first.dtype, first.document_start)
        self.n_members = len(members)
        self.cos, self.sin = first.get_buffer("cos"), first.get_buffer("sin")
        kinds: dict[type, type[_Stacked]] = {Linear: _Linear, RMSNorm: _Norm, nn.Embedding: _Embedding}
        for name, module in list(self.named_modules()):
            if type(module) in kinds:
                own = [member.get_submodule(name) for member in members]
                self.set_submodule(name, kinds[type(module)](own))
        self.train()

    def _nll(self, hidden_BTD: Tensor, targets_BT: Tensor, chunk_tokens: int | None, depth: int = 0) -> Tensor:
        """Sum over the targets of each member, [S]."""
        weights, n = self.head.weight.unbind(0), self.n_members  # one gradient for all, not one table for each
        parts = zip(hidden_BTD.view(n, -1, hidden_BTD.shape[-1]).unbind(0), weights, targets_BT.reshape(n, -1))
        chunk_tokens = chunk_tokens or (8192 if hidden_BTD.is_cuda else 4096)
        return torch.stack([chunked_cross_entropy(h, w, t, chunk_tokens=chunk_tokens) for h, w, t in parts])


class _Stacked(nn.Module):
    """A layer of every member; `weight` [S, ...] has gradients of its own from the start."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        with torch.no_grad():
            self.weight = nn.Parameter(torch.stack([member.weight.detach() for member in members]))  # type: ignore
            self.weight.grad = torch.zeros_like(self.weight)
            for index, member in enumerate(members):
                member.weight.data = self.weight.data[index]  # type: ignore[union-attr]
                member.weight.grad = self.weight.grad[index]  # type: ignore[union-attr]


class _Linear(_Stacked):
    numerics = None
    held: tuple = ()

    def forward(self, x: Tensor, part: int = 0) -> Tensor:
        x_SRK = x.reshape(len(self.weight), -1, x.shape[-1])
        if has_kernels(x):
            y_SRN: Tensor = _Product.apply(x_SRK, self.weight)  # type: ignore[assignment]
        else:
            y_SRN = torch.bmm(x_SRK, self.weight.to(x.dtype).transpose(1, 2))
        return y_SRN.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """bf16 products whose gradient of the weights is float32, as those of a layer that stands alone."""

    @staticmethod
    def forward(ctx, x_SRK: Tensor, weight_SNK: Tensor) -> Tensor:
        cast_SNK = weight_SNK.to(x_SRK.dtype)
        ctx.save_for_backward(x_SRK, cast_SNK)
        return torch.bmm(x_SRK, cast_SNK.transpose(1, 2))

    @staticmethod
    def backward(ctx, d_y_SRN: Tensor):  # type: ignore[override]
        x_SRK, cast_SNK = ctx.saved_tensors
        return torch.bmm(d_y_SRN, cast_SNK), weight_gradient(d_y_SRN, x_SRK, _row_parts(d_y_SRN, x_SRK))


def weight_gradient(d_y_SRN: Tensor, x_SRK: Tensor, n_parts: int) -> Tensor:
    """d_y^T x of each member, [S, N, K], its rows summed in so many parts; in float32 of bf16 operands."""
    parts = [tensor.reshape(len(tensor) * n_parts, -1, tensor.shape[-1]) for tensor in (d_y_SRN, x_SRK)]
    wide: dict[str, Any] = {"out_dtype": torch.float32} if x_SRK.dtype == torch.bfloat16 else {}
    sums = torch.bmm(parts[0].transpose(1, 2), parts[1], **wide)
    return sums if n_parts == 1 else sums.unflatten(0, (-1, n_parts)).sum(1)


def _row_parts(d_y_SRN: Tensor, x_SRK: Tensor) -> int:
    """How many parts keep all processors busy: small weights are a few tiles, each a sum over all rows."""
    n_tiles = math.prod((len(x_SRK), -(-d_y_SRN.shape[-1] // TILE), -(-x_SRK.shape[-1] // TILE)))
    n_rows, wanted, n_parts = x_SRK.shape[1], 2 * processors(x_SRK.device), 1
    while 2 * n_parts * n_tiles <= wanted and n_rows % (2 * n_parts) == 0 and n_rows >= 2 * n_parts * FEWEST_ROWS:
        n_parts *= 2
    return n_parts


class _Norm(_Stacked):
    def __init__(self, members: Sequence[RMSNorm]):
        super().__init__(members)
        self.eps = members[0].eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD, self.weight, self.eps)

    def joined(self, x_BTD: Tensor, update_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return normed(x_BTD, update_BTD, self.weight, self.eps)


class _Embedding(_Stacked):
    def forward(self, tokens_BT: Tensor) -> Tensor:
        n, n_rows = self.weight.shape[:2]
        first_S11 = torch.arange(0, n * n_rows, n_rows, device=tokens_BT.device)[:, None, None]
        at_BT = (tokens_BT.reshape(n, -1, tokens_BT.shape[-1]) + first_S11).flatten(0, 1)
        return F.embedding(at_BT, self.weight.flatten(0, 1))
