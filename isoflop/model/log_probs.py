"""Log-probability of one token per row, with gradient, and the entropy of the row, without a table of logits.

The vocabulary goes by in chunks: the forward pass keeps a running maximum, sum and expectation, the backward pass makes
each chunk again. Products and sums are float32 (float64 where the inputs are): a chunk rounded to bfloat16 would bias
what is added up over the chunks. Preference losses and policy gradients weigh tokens one by one, so the summed loss of
`loss.py`, which takes its gradient on the way forward, is not enough for them.

    log p(t) = l_t - log Z,   d/dl_v = [v = t] - p_v
    H = log Z - sum_v p_v l_v,   d/dl_v = -p_v (l_v - sum_u p_u l_u)

Shapes: R rows (tokens), D d_model, V vocabulary, K columns of a chunk.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from isoflop.numerics.linear import Linear

CHUNK_VOCAB = 8192  # assumption: wide enough for full products, 32 kB of float32 a row


def token_log_probs(
    hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, *, chunk_vocab: int = CHUNK_VOCAB, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log p of each target, entropy of each row) of softmax(hidden @ weight^T / temperature), float32 at least.

    Targets below 0 are ignored: their log-probability is 0 and neither it nor their entropy has a gradient.
    """
    return _TokenLogProbs.apply(hidden_RD, weight_VD, targets_R, chunk_vocab, temperature)  # type: ignore[return-value]


def head_log_probs(
    head: Linear, hidden_RD: Tensor, targets_R: Tensor, *, temperature: float = 1.0, chunk_rows: int = 4096
) -> tuple[Tensor, Tensor]:
    """`token_log_probs` of an output head; one with a number format of its own multiplies rows in chunks instead."""
    if head.numerics is None:
        return token_log_probs(hidden_RD, head.weight, targets_R, temperature=temperature)

    def of_chunk(chunk_RD: Tensor, chunk_targets_R: Tensor, part: int) -> tuple[Tensor, Tensor]:
        log_p_RV = (head(chunk_RD, part=part).float() / temperature).log_softmax(-1)
        counted_R = chunk_targets_R >= 0
        log_p_R = log_p_RV.gather(1, chunk_targets_R.clamp(min=0)[:, None])[:, 0] * counted_R
        return log_p_R, -(log_p_RV.exp() * log_p_RV).sum(-1) * counted_R

    found = []
    for part, start in enumerate(range(0, len(hidden_RD), chunk_rows)):
        rows = slice(start, start + chunk_rows)
        found.append(checkpoint(of_chunk, hidden_RD[rows], targets_R[rows], part, use_reentrant=False))
    log_p, entropy = zip(*found) if found else ((hidden_RD.new_zeros(0),), (hidden_RD.new_zeros(0),))
    return torch.cat(log_p), torch.cat(entropy)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with its float32 accumulator written out where the device can, never rounded in between."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, chunk_vocab: int, temperature: float):
        wide = torch.promote_types(hidden_RD.dtype, torch.float32)
        n_rows, n_vocab = len(hidden_RD), len(weight_VD)
        largest_R = torch.full((n_rows,), -torch.inf, dtype=wide, device=hidden_RD.device)
        sum_R, expected_R, target_R = (torch.zeros_like(largest_R) for _ in range(3))
        rows_R = torch.arange(n_rows, device=hidden_RD.device)
        for start in range(0, n_vocab, chunk_vocab):
            logits_RK = _product(hidden_RD, weight_VD[start : start + chunk_vocab].to(hidden_RD.dtype).T) / temperature
            new_R = torch.maximum(largest_R, logits_RK.amax(-1))
            lower_R = torch.where(largest_R == -torch.inf, 0, largest_R - new_R)
            rescale_R = lower_R.exp()
            below_RK = logits_RK - new_R[:, None]  # from the maximum, so that entropies do not cancel
            share_RK = below_RK.exp()
            expected_R = (expected_R + lower_R * sum_R) * rescale_R + (share_RK * below_RK).sum(-1)
            sum_R = sum_R * rescale_R + share_RK.sum(-1)
            largest_R = new_R
            column_R = targets_R - start
            here_R = (column_R >= 0) & (column_R < logits_RK.shape[1])
            found_R = logits_RK[rows_R, column_R.clamp(0, logits_RK.shape[1] - 1)]
            target_R = torch.where(here_R, found_R, target_R)
        log_z_R = largest_R + sum_R.log()
        expected_R = expected_R / sum_R
        entropy_R = sum_R.log() - expected_R
        counted_R = targets_R >= 0
        ctx.save_for_backward(hidden_RD, weight_VD, targets_R, log_z_R, largest_R + expected_R)
        ctx.chunk_vocab, ctx.temperature = chunk_vocab, temperature
        return torch.where(counted_R, target_R - log_z_R, 0), torch.where(counted_R, entropy_R, 0)

    @staticmethod
    def backward(ctx, d_log_p_R: Tensor, d_entropy_R: Tensor):  # type: ignore[override]
        hidden_RD, weight_VD, targets_R, log_z_R, expected_R = ctx.saved_tensors
        counted_R = (targets_R >= 0).to(log_z_R.dtype)
        d_log_p_R, d_entropy_R = d_log_p_R * counted_R, d_entropy_R * counted_R
        d_hidden_RD = torch.zeros(hidden_RD.shape, dtype=log_z_R.dtype, device=hidden_RD.device)
        d_weight_VD = torch.empty(weight_VD.shape, dtype=log_z_R.dtype, device=weight_VD.device)
        rows_R = torch.arange(len(hidden_RD), device=hidden_RD.device)
        for start in range(0, len(weight_VD), ctx.chunk_vocab):
            columns = slice(start, start + ctx.chunk_vocab)
            weight_KD = weight_VD[columns].to(hidden_RD.dtype)
            logits_RK = _product(hidden_RD, weight_KD.T) / ctx.temperature
            p_RK = (logits_RK - log_z_R[:, None]).exp()
            logits_RK.sub_(expected_R[:, None]).mul_(d_entropy_R[:, None]).add_(d_log_p_R[:, None])
            gradient_RK = p_RK.mul_(logits_RK).neg_()
            column_R = targets_R - start
            here_R = (column_R >= 0) & (column_R < gradient_RK.shape[1])
            place_R = column_R.clamp(0, gradient_RK.shape[1] - 1)
            gradient_RK[rows_R, place_R] += torch.where(here_R, d_log_p_R, 0)
            gradient_RK /= ctx.temperature
            # the operands of the products are as the activations are; what they add up is float32
            narrow_RK = gradient_RK.to(hidden_RD.dtype)
            d_hidden_RD += _product(narrow_RK, weight_KD)
            d_weight_VD[columns] = _product(narrow_RK.T, hidden_RD)
        return d_hidden_RD.to(hidden_RD.dtype), d_weight_VD.to(weight_VD.dtype), None, None, None
