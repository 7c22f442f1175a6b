"""Elementwise steps of a model as single passes over memory: SwiGLU, norms with residuals, rows of experts, loss.

Each function has a plain form in PyTorch, which is what a CPU, float64 and torch.compile (which joins steps by itself)
run, and what the kernels are tested against. bf16 tensors on a GPU with Triton take the kernels.

Shapes: B batch, T tokens, R rows, D d_model, F d_ff, E experts, A active experts, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.launch import block_kernels, has_kernels, launch, power_of_two, processors, warps_of

# SwiGLU


def swiglu(gate_up: Tensor, weights_R1: Tensor | None = None) -> Tensor:
    """silu(gate) * up of the two halves of the last dimension; times float32 weights of rows [R, 1], if given."""
    if has_kernels(gate_up):
        return _SwiGLU.apply(gate_up, weights_R1)  # type: ignore[return-value]
    gate, up = gate_up.chunk(2, dim=-1)
    if weights_R1 is None:
        return F.silu(gate) * up
    return (F.silu(gate) * up * weights_R1).to(gate_up.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor, weights_R1: Tensor | None) -> Tensor:
        gate_up = gate_up.contiguous()
        n = gate_up.shape[-1] // 2
        out, block = gate_up.new_empty(*gate_up.shape[:-1], n), min(1024, power_of_two(n))
        weights = None if weights_R1 is None else weights_R1.contiguous()
        grid, weighted = (gate_up.numel() // (2 * n), -(-n // block)), weights is not None
        settings = {"weighted": weighted, "block": block, "num_warps": warps_of(block)}
        launch(block_kernels().swiglu, grid, gate_up, weights, out, n, **settings)
        ctx.save_for_backward(gate_up, weights)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):  # type: ignore[override]
        return swiglu_gradients(d_out, *ctx.saved_tensors)


def swiglu_gradients(d_out: Tensor, gate_up: Tensor, weights_R1: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of gate and up, and of the weights of rows if there are any; no autograd."""
    d_out, n, weights = d_out.contiguous(), d_out.shape[-1], weights_R1
    if not has_kernels(gate_up):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (gate_up, weights) if x is not None]
            d_gate_up, *rest = torch.autograd.grad(swiglu(*leaves), leaves, d_out)
        return d_gate_up, rest[0] if rest else None
    d_gate_up, block = torch.empty_like(gate_up), min(1024, power_of_two(n))
    d_weights = None if weights is None else torch.empty_like(weights)
    weighted = weights is not None
    grid = (d_out.numel() // n, 1 if weighted else -(-n // block))
    launch(
        block_kernels().swiglu_backward, grid,
        d_out, gate_up, weights, d_gate_up, d_weights, n,
        weighted=weighted, block=block, num_warps=warps_of(block),
    )  # fmt: skip
    return d_gate_up, d_weights


# A float32 product on bf16 tensor cores


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in float32 (float64 of float64), whatever the activations are: for scores that must not tie."""
    if has_kernels(x) and weight.dtype == torch.float32:
        return _WideProduct.apply(x, weight)  # type: ignore[return-value]
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(wide), weight.to(wide))


def bf16_parts(x: Tensor, n_parts: int) -> list[Tensor]:
    """bf16 tensors that add up to a float32 one: each takes 8 more bits, three all 24."""
    parts = []
    for _ in range(n_parts):
        parts.append(x.to(torch.bfloat16))
        x = x - parts[-1]
    return parts


class _WideProduct(torch.autograd.Function):
    """bf16 activations times float32 weights as one bf16 product with the parts of the weights side by side.

    Exact but for the order of a float32 sum; the gradient of x is rounded to bf16 anyway, so two parts do.
    """

    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        parts = bf16_parts(weight_ED, 3)
        ctx.save_for_backward(x_TD, *parts[:2])
        y_T3E = torch.mm(x_TD, torch.cat(parts).T, out_dtype=torch.float32)  # type: ignore[call-overload]
        return y_T3E.view(len(x_TD), 3, -1).sum(1)

    @staticmethod
    def backward(ctx, d_y_TE: Tensor):  # type: ignore[override]
        x_TD, first_ED, second_ED = ctx.saved_tensors
        parts = bf16_parts(d_y_TE, 3)
        d_x_TD = torch.cat((parts[0], parts[0], parts[1]), 1) @ torch.cat((first_ED, second_ED, first_ED))
        d_weight = torch.mm(torch.cat(parts, 1).T, x_TD, out_dtype=torch.float32)  # type: ignore[call-overload]
        return d_x_TD, d_weight.view(3, d_y_TE.shape[1], -1).sum(0)


# Rows of a token


def summed_rows(rows_RD: Tensor, row_TA: Tensor, plus_TD: Tensor | None = None) -> Tensor:
    """For each token the sum of its rows (and of its row of `plus`), [T, D]; no autograd."""
    if not has_kernels(rows_RD):
        total_TD = rows_RD[row_TA].sum(1)
        return total_TD if plus_TD is None else total_TD + plus_TD
    rows_RD, row_TA, joined = rows_RD.contiguous(), row_TA.contiguous(), plus_TD is not None
    plus_TD = plus_TD.contiguous() if plus_TD is not None else None
    out, n = rows_RD.new_empty(len(row_TA), rows_RD.shape[1]), rows_RD.shape[1]
    settings = {"n_places": row_TA.shape[1], "joined": joined, "block": power_of_two(n), "num_warps": 4}
    launch(block_kernels().sum_rows, (len(row_TA),), rows_RD, row_TA, plus_TD, out, n, **settings)
    return out


def spread_rows(x_TD: Tensor, token_R: Tensor, row_TA: Tensor) -> Tensor:
    """Every token's row at each of its places, [R, D]: x[token], where `row_TA` is the inverse; no autograd."""
    if not has_kernels(x_TD):
        return x_TD[token_R]
    x_TD, row_TA, n = x_TD.contiguous(), row_TA.contiguous(), x_TD.shape[1]
    out = x_TD.new_empty(len(token_R), n)
    settings = {"n_places": row_TA.shape[1], "block": power_of_two(n), "num_warps": 4}
    launch(block_kernels().spread_rows, (len(row_TA),), x_TD, row_TA, out, n, **settings)
    return out


def add_to(total: Tensor, x: Tensor) -> None:
    """total += x in place, a float32 tensor and a bf16 one of the same memory layout: PyTorch's own reads slowly."""
    if not has_kernels(x) or not (total.is_contiguous() and x.is_contiguous()):
        total.add_(x)
        return
    launch(block_kernels().add_to, (-(-total.numel() // 4096),), total, x, total.numel(), block=4096, num_warps=8)


# Norms


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, the mean square in float32. Weights [S, D] are those of S equal parts of the rows."""
    if has_kernels(x_BTD):
        return _Normed.apply(x_BTD, None, weight_D, eps)[1]  # type: ignore[index]
    wide = torch.promote_types(x_BTD.dtype, torch.float32)  # statistics at least in float32
    if weight_D.ndim == 2:
        unit_SRD = F.rms_norm(x_BTD.to(wide), (x_BTD.shape[-1],), None, eps).view(len(weight_D), -1, x_BTD.shape[-1])
        return (unit_SRD * weight_D[:, None]).to(x_BTD.dtype).view_as(x_BTD)
    return F.rms_norm(x_BTD.to(wide), (x_BTD.shape[-1],), weight_D, eps).to(x_BTD.dtype)


def normed(x_BTD: Tensor, update_BTD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream x + update (x itself without an update), and its norm.

    One function, because the gradient of the stream is then one pass too: what comes down the residual plus what comes
    through the norm.
    """
    if has_kernels(x_BTD):
        return _Normed.apply(x_BTD, update_BTD, weight_D, eps)  # type: ignore[return-value]
    total_BTD = x_BTD if update_BTD is None else x_BTD + update_BTD
    return total_BTD, rms_norm(total_BTD, weight_D, eps)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, update: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # the residual of a last norm has no gradient: no zeros for it
        x, joined = x.contiguous(), update is not None
        out, n = torch.empty_like(x), x.shape[-1]
        total = torch.empty_like(x) if joined else x
        scale_R = x.new_empty(x.numel() // n, dtype=torch.float32)
        launch(
            block_kernels().rms_norm, (len(scale_R),),
            x, update.contiguous() if update is not None else None, weight_D, total, out, scale_R,
            len(scale_R) * n // weight_D.numel(), n, eps,
            joined=joined, block=power_of_two(n), num_warps=_warps(n),
        )  # fmt: skip
        ctx.save_for_backward(total, weight_D, scale_R)
        ctx.joined = joined
        return total.view_as(total), out

    @staticmethod
    def backward(ctx, d_total: Tensor | None, d_out: Tensor | None):  # type: ignore[override]
        x, weight_D, scale_R = ctx.saved_tensors
        if d_out is None:
            return d_total, d_total if ctx.joined else None, None, None
        d_out, n, n_parts = d_out.contiguous(), x.shape[-1], weight_D.numel() // x.shape[-1]
        n_rows = len(scale_R) // n_parts
        # More programs where rows are short: each waits for its row's sum.
        most, together, warps = _backward_programs(n)
        most = most * processors(x.device) // n_parts
        d_x, n_programs = torch.empty_like(x), max(1, min(-(-n_rows // together), most))
        parts = x.new_empty(n_parts, n_programs, n, dtype=torch.float32)
        launch(
            block_kernels().rms_norm_backward, (n_programs, n_parts),
            d_out, None if d_total is None else d_total.contiguous(), x, weight_D, scale_R, d_x, parts, n_rows, n,
            joined=d_total is not None, together=together, block=power_of_two(n), num_warps=warps,
        )  # fmt: skip
        d_weight = parts.new_empty(n_parts, n)
        grid, settings = (-(-n // 16), n_parts), {"together": 512, "block": 16, "num_warps": 8}
        launch(block_kernels().sum_parts, grid, parts, d_weight, n_programs, n, **settings)
        return d_x, d_x if ctx.joined else None, d_weight.view_as(weight_D).to(weight_D.dtype), None


def _backward_programs(n: int) -> tuple[int, int, int]:
    """Programs of a processor, rows at a time and warps of a norm's gradient (measured, docs/log.md)."""
    if n <= 1024:
        return (24, 1, 1) if n <= 512 else (8, 1, 4)
    return (2, 2, 8) if n <= 2048 else (4, 1, _warps(n))


def _warps(n: int) -> int:
    """A short row is one warp's: its sums need no shared memory, and more rows are under way at a time."""
    return 1 if n <= 512 else 4 if n <= 2048 else 8 if n <= 4096 else 16


# Cross-entropy

SOFTMAX_BLOCK = 2048
"""Logits of a row that are looked at together, by four (measured, docs/log.md)."""


def loss_and_gradient(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of -log softmax(logits)[target] in float32, and its gradient, written over the logits; no autograd.

    With factors [R] the gradient is that of each row times its factor: a softmax is read once when its sum, known at
    the end, is left out (`scaled_rows` makes up for it in what the gradient is multiplied with). Targets below 0 are
    ignored.
    """
    if not (has_kernels(logits_RV) and logits_RV.is_contiguous()):
        losses_R, gradient_RV = losses_and_gradient(logits_RV, targets_R)
        return losses_R.sum(), gradient_RV, None
    losses_R, factors_R = logits_RV.new_empty(2, len(logits_RV), dtype=torch.float32)
    n, block = logits_RV.shape[1], min(SOFTMAX_BLOCK, power_of_two(-(-logits_RV.shape[1] // 4)))
    settings = {"deep": 4, "block": block, "num_warps": max(1, block // 256)}
    kernel = block_kernels().scaled_cross_entropy
    launch(kernel, (len(logits_RV),), logits_RV, targets_R.contiguous(), losses_R, factors_R, n, **settings)
    return losses_R.sum(), logits_RV, factors_R


def scaled_rows(x_RD: Tensor, y_RD: Tensor, factors_R: Tensor | None, by: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices times factors of their rows, if any, and the number `by` [], neither rounded; no autograd."""
    if not has_kernels(x_RD) or factors_R is None:
        factor = by.view(1) if factors_R is None else (factors_R * by)[:, None]
        x_RD, y_RD = (torch.mul(z, factor, out=torch.empty_like(z)) for z in (x_RD, y_RD))
        return x_RD, y_RD
    x_RD, y_RD, n = x_RD.contiguous(), y_RD.contiguous(), x_RD.shape[1]
    out_x, out_y, block = torch.empty_like(x_RD), torch.empty_like(y_RD), power_of_two(n)
    settings = {"block": block, "num_warps": warps_of(block)}
    launch(block_kernels().scale_rows, (len(x_RD),), x_RD, y_RD, factors_R, by, out_x, out_y, n, **settings)
    return out_x, out_y


def losses_and_gradient(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, and their gradient, written over the logits: for many small rows, which are read twice."""
    if has_kernels(logits_RV) and logits_RV.is_contiguous():
        losses_R = logits_RV.new_empty(len(logits_RV), dtype=torch.float32)
        n, targets_R = logits_RV.shape[1], targets_R.contiguous()
        # Large programs, few at a time, so that rows may still be in the cache when they are read again.
        # Four blocks are looked at together: with a vocabulary of 4,096 four of 1,024, not one beside three empty ones.
        block, kernel = min(4096, power_of_two(-(-n // 4))), block_kernels().cross_entropy
        settings = {"deep": 4, "block": block, "num_warps": max(1, min(8, block // 256))}
        launch(kernel, (len(logits_RV),), logits_RV, targets_R, losses_R, n, **settings)
        return losses_R, logits_RV
    # In float32 the logits themselves become their gradient: no second table.
    wide_RV = logits_RV.float()
    rows_R = torch.arange(len(targets_R), device=targets_R.device)
    target_R = targets_R.clamp(min=0)
    counted_R = (targets_R >= 0).to(wide_RV.dtype)
    log_z_R1 = torch.logsumexp(wide_RV, dim=-1, keepdim=True)
    losses_R = (log_z_R1[:, 0] - wide_RV[rows_R, target_R]) * counted_R
    gradient_RV = wide_RV.sub_(log_z_R1).exp_()
    gradient_RV[rows_R, target_R] -= 1.0
    gradient_RV.mul_(counted_R[:, None])
    return losses_R, gradient_RV.to(logits_RV.dtype)
