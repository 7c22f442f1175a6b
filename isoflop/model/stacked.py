"""Several models of one shape computed as one: every product takes all members at once, each with weights of its own.

Members go on being models: their parameters become views of the stacked ones, so what reads or writes one of them
(checkpoint, optimizer, validation) needs to know nothing of the stack. Attention, rotary embedding and SwiGLU are
those of any model, on a batch that holds the members' rows one after the other.

Shapes: S members, B sequences of a member, T tokens, D d_model, V vocabulary, K in, N out, R rows of a member.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.model.transformer import RMSNorm, Transformer
from isoflop.numerics.embedding import Embedding
from isoflop.numerics.joined import losses_and_gradient, normed, rms_norm
from isoflop.numerics.launch import has_kernels, processors
from isoflop.numerics.linear import Linear
from isoflop.numerics.step_weights import cast_all

TILE = 128
"""Rows and columns of a product's result that one processor computes at a time (assumption)."""
FEWEST_ROWS = 512
"""Summed within one part; fewer do not pay for the further sum (assumption)."""
LOGITS = 1 << 28
"""Of all members that live at one time on a GPU: half a gibibyte in bf16 (assumption)."""


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
        kinds: dict[type, type[_Stacked]] = {Linear: _Linear, RMSNorm: _Norm, Embedding: _Embedding}
        for name, module in list(self.named_modules()):
            if type(module) in kinds:
                own = [member.get_submodule(name) for member in members]
                self.set_submodule(name, kinds[type(module)](own))
        self.train()

    def _nll(self, hidden_BTD: Tensor, targets_BT: Tensor, chunk_tokens: int | None, depth: int = 0) -> Tensor:
        """Sum over the targets of each member, [S]."""
        n, (vocab_size, d_model) = self.n_members, self.head.weight.shape[1:]
        chunk_tokens = chunk_tokens or (max(1, LOGITS // (n * vocab_size)) if hidden_BTD.is_cuda else 4096)
        hidden_SRD, targets_SR = hidden_BTD.view(n, -1, d_model), targets_BT.reshape(n, -1)
        head: Any = self.head
        return _CrossEntropy.apply(hidden_SRD, head.weight, head.cast(self.dtype), targets_SR, chunk_tokens)  # type: ignore

    @contextlib.contextmanager
    def cast_weights(self) -> Iterator[None]:
        """Weights of products in the dtype of the activations, made at once and kept for a step's micro-batches."""
        layers: list[Any] = [module for module in self.modules() if isinstance(module, _Linear)]
        if self.dtype != torch.float32:
            for layer, copy in zip(layers, cast_all([layer.weight for layer in layers], self.dtype), strict=True):
                layer.copy = copy
        try:
            yield
        finally:
            for layer in layers:
                layer.copy = None


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
    copy: Tensor | None = None

    def cast(self, dtype: torch.dtype) -> Tensor:
        """The weight without autograd, in another dtype."""
        return self.weight.detach().to(dtype) if self.copy is None else self.copy

    def forward(self, x: Tensor, part: int = 0) -> Tensor:
        x_SRK = x.reshape(len(self.weight), -1, x.shape[-1])
        if has_kernels(x):
            y_SRN: Tensor = _Product.apply(x_SRK, self.weight, self.cast(x.dtype))  # type: ignore[assignment]
        else:
            y_SRN = torch.bmm(x_SRK, self.weight.to(x.dtype).transpose(1, 2))
        return y_SRN.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """bf16 products whose gradient of the weights is float32, as those of a layer that stands alone."""

    @staticmethod
    def forward(ctx, x_SRK: Tensor, weight_SNK: Tensor, cast_SNK: Tensor) -> Tensor:
        ctx.save_for_backward(x_SRK, cast_SNK)
        return torch.bmm(x_SRK, cast_SNK.transpose(1, 2))

    @staticmethod
    def backward(ctx, d_y_SRN: Tensor):  # type: ignore[override]
        x_SRK, cast_SNK = ctx.saved_tensors
        return torch.bmm(d_y_SRN, cast_SNK), weight_gradient(d_y_SRN, x_SRK, _row_parts(d_y_SRN, x_SRK)), None


class _CrossEntropy(torch.autograd.Function):
    """`isoflop.model.loss` for all members at once: the sums [S] of their rows."""

    @staticmethod
    def forward(
        ctx, hidden_SRD: Tensor, weight_SVD: Tensor, cast_SVD: Tensor, targets_SR: Tensor, chunk_tokens: int
    ) -> Tensor:
        total_S, d_hidden_SRD, d_weight_SVD = hidden_SRD.new_zeros(len(hidden_SRD), dtype=torch.float32), [], None
        for part_SRD, targets in zip(hidden_SRD.split(chunk_tokens, 1), targets_SR.split(chunk_tokens, 1), strict=True):
            logits_SRV = torch.bmm(part_SRD, cast_SVD.transpose(1, 2))
            losses, d_logits_RV = losses_and_gradient(logits_SRV.flatten(0, 1), targets.flatten())
            total_S += losses.view(targets.shape).sum(1)
            d_logits_SRV = d_logits_RV.view(logits_SRV.shape)
            d_hidden_SRD.append(torch.bmm(d_logits_SRV, cast_SVD))
            d_weight = weight_gradient(d_logits_SRV, part_SRD, _row_parts(d_logits_SRV, part_SRD))
            d_weight_SVD = d_weight if d_weight_SVD is None else d_weight_SVD + d_weight
        ctx.save_for_backward(torch.cat(d_hidden_SRD, 1) if len(d_hidden_SRD) > 1 else d_hidden_SRD[0], d_weight_SVD)
        return total_S

    @staticmethod
    def backward(ctx, d_total_S: Tensor):  # type: ignore[override]
        d_hidden_SRD, d_weight_SVD = ctx.saved_tensors
        d_total_S11 = d_total_S[:, None, None]
        return d_hidden_SRD * d_total_S11.to(d_hidden_SRD.dtype), d_weight_SVD * d_total_S11, None, None, None


def weight_gradient(d_y_SRN: Tensor, x_SRK: Tensor, n_parts: int) -> Tensor:
    """d_y^T x of each member, [S, N, K], its rows summed in so many parts; in float32 of bf16 operands."""
    parts = [tensor.reshape(len(tensor) * n_parts, -1, tensor.shape[-1]) for tensor in (d_y_SRN, x_SRK)]
    wide: dict[str, Any] = {"out_dtype": torch.float32} if x_SRK.dtype == torch.bfloat16 else {}
    sums = torch.bmm(parts[0].transpose(1, 2), parts[1], **wide)
    return sums if n_parts == 1 else sums.unflatten(0, (-1, n_parts)).sum(1)


def _row_parts(d_y_SRN: Tensor, x_SRK: Tensor) -> int:
    """How many parts keep all processors busy: small weights are a few tiles, each a sum over all rows."""
    if not x_SRK.is_cuda:
        return 1
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
    def rows(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        n, n_rows = self.weight.shape[:2]
        first_S11 = torch.arange(0, n * n_rows, n_rows, device=tokens_BT.device)[:, None, None]
        at_BT = (tokens_BT.reshape(n, -1, tokens_BT.shape[-1]) + first_S11).flatten(0, 1)
        return F.embedding(at_BT, self.weight.flatten(0, 1)).to(dtype)
