"""Ridge regression from frames to images: the floor that every network is compared with.

One eigendecomposition gives the solution for every penalty, and the leave-one-out prediction of every training pair in
closed form. The penalty is the one whose leave-one-out images correlate best; the predictions are what a refining
network must be trained on, because those of the fit itself have seen their answers.
Shapes: N pairs, P frame pixels, Q image pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.imaging.score import pearson

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-2, 11))
"""Tried in units of the frames' variance (assumption: wide enough that the best is inside)."""


class Ridge(NamedTuple):
    """images = frames @ weight.T + bias."""

    weight: Tensor
    """[Q, P]."""
    bias: Tensor
    """[Q]."""
    penalty: float
    left_out: Tensor
    """Prediction [N, Q] of every training pair by the fit to all others."""

    def __call__(self, frames_NP: Tensor) -> Tensor:
        return frames_NP @ self.weight.T + self.bias


def fit_ridge(frames_NP: Tensor, images_NQ: Tensor, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """Fit in double precision; minutes for 4,000 pairs of 4,096 pixels on one core, seconds for 256 pixels."""
    n, p = frames_NP.shape
    mean_P, mean_Q = frames_NP.double().mean(0), images_NQ.double().mean(0)
    x_NP, y_NQ = frames_NP.double() - mean_P, images_NQ.double() - mean_Q
    scale = float(x_NP.std()) or 1.0
    x_NP = x_NP / scale
    if p < n:
        power, axes_PP = torch.linalg.eigh(x_NP.T @ x_NP)
        basis_NK = x_NP @ axes_PP / power.clamp_min(1e-12).sqrt()
    else:
        power, basis_NK = torch.linalg.eigh(x_NP @ x_NP.T)
    keep = power > 1e-10 * power.max()
    power, basis_NK = power[keep], basis_NK[:, keep]
    seen_KQ = basis_NK.T @ y_NQ
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in penalties:
        shrink_K = power / (power + penalty)
        leverage_N = (basis_NK.square() * shrink_K).sum(1) + 1 / n  # the mean is fitted too
        fitted_NQ = basis_NK @ (shrink_K[:, None] * seen_KQ)
        left_out_NQ = y_NQ - (y_NQ - fitted_NQ) / (1 - leverage_N).clamp_min(1e-6)[:, None] + mean_Q
        quality = float(pearson(left_out_NQ, images_NQ.double()).mean())
        if best is None or quality > best[0]:
            best = (quality, penalty, shrink_K, left_out_NQ)
    assert best is not None
    _, penalty, shrink_K, left_out_NQ = best
    # weight = X^T U diag(shrink / power) U^T Y, in the units of the frames
    weight_PQ = x_NP.T @ (basis_NK @ ((shrink_K / power)[:, None] * seen_KQ)) / scale
    bias_Q = mean_Q - mean_P @ weight_PQ
    return Ridge(weight_PQ.T.float().contiguous(), bias_Q.float(), penalty, left_out_NQ.float())
