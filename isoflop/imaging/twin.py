"""A twin of the medium, learned from the measured pairs alone, that predicts the frames of objects never shown.

Every camera pixel sees |t . a|^2 with an unknown complex row t. Thousands of pairs (a, I) determine each row up to what
no intensity can tell (phase, conjugation): alternate between the phases of t . a and the least-squares row for them.
Pixels are independent problems that share their objects, so one product serves all; a few pixels end in a wrong
minimum and start again elsewhere. Directions that the objects hardly span are left out: they can't be learned, and
harm what can. A network can then be trained on distorted objects without another measurement.
Shapes: N pairs, P camera pixels, Q object pixels, K kept directions.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.optics.field import correlation, intensity

log = logging.getLogger(__name__)


class Twin(NamedTuple):
    """Rows [P, Q] and how well they explain what was measured."""

    rows: Tensor
    residual: float
    """Relative error of the amplitudes it was fitted to, mean over pixels."""
    held_out: float
    """Correlation of predicted with measured frames, mean frame subtracted, on pairs it was not fitted to."""

    def frames(self, images_NQ: Tensor) -> Tensor:
        """Predicted frames [N, P] of any images."""
        return intensity(images_NQ.to(self.rows.dtype) @ self.rows.T)


def fit_twin(
    images_NQ: Tensor,
    frames_NP: Tensor,
    *,
    seed: int,
    n_iterations: int = 300,
    n_restarts: int = 4,
    least_share: float = 5e-3,
    n_held_out: int = 100,
    on_progress: Callable[[str, float, float], None] | None = None,
) -> Twin:
    """Rows that explain the frames; `least_share` is the smallest kept singular value over the largest.

    The last `n_held_out` pairs only judge.
    """
    fit, judge = slice(0, len(images_NQ) - n_held_out), slice(len(images_NQ) - n_held_out, None)
    u_NK, s_K, v_KQ = torch.linalg.svd(images_NQ[fit], full_matrices=False)
    keep = s_K > least_share * s_K[0]
    n = len(u_NK)
    basis_NK = u_NK[:, keep] * n**0.5
    back_QK = v_KQ[keep].T / s_K[keep] * n**0.5
    if basis_NK.shape[1] * 2 > n:
        log.warning(
            "%d pairs are few for the %d directions of the objects: the twin may not be unique", n, basis_NK.shape[1]
        )
    amplitude_NP = frames_NP[fit].clamp_min(0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    steps_done, steps_total = 0, n_iterations * (n_restarts + 2)

    def report() -> None:
        if on_progress is not None:
            on_progress("twin of the medium", min(steps_done, steps_total), steps_total)

    def start(n_pixels: int) -> Tensor:
        return torch.randn(basis_NK.shape[1], 2 * n_pixels, generator=generator) * 0.3 / basis_NK.shape[1] ** 0.5

    def solve(amplitude_NP: Tensor, rows_K2P: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal steps_done
        n_pixels = amplitude_NP.shape[1]
        before = rows_K2P
        for step in range(n_iterations):
            ahead = rows_K2P + 0.8 * min(step, 30) / 30 * (rows_K2P - before)  # momentum: assumption, halves the steps
            before = rows_K2P
            real_NP, imaginary_NP = (basis_NK @ ahead).split(n_pixels, dim=1)
            wanted_NP = amplitude_NP / torch.hypot(real_NP, imaginary_NP).clamp_min(1e-9)
            rows_K2P = basis_NK.T @ torch.cat((real_NP * wanted_NP, imaginary_NP * wanted_NP), 1) / n
            steps_done += 1
            if step % 20 == 0:
                report()
        real_NP, imaginary_NP = (basis_NK @ rows_K2P).split(n_pixels, dim=1)
        error_P = (torch.hypot(real_NP, imaginary_NP) - amplitude_NP).norm(dim=0)
        return rows_K2P, error_P / amplitude_NP.norm(dim=0).clamp_min(1e-9)

    n_pixels = amplitude_NP.shape[1]
    rows_K2P, error_P = solve(amplitude_NP, start(n_pixels))
    for _ in range(n_restarts):
        bad = (error_P > 2 * error_P.quantile(0.25)).nonzero().flatten()
        if not len(bad):
            break
        again_K2B, error_B = solve(amplitude_NP[:, bad], start(len(bad)))
        better = (error_B < error_P[bad]).nonzero().flatten()
        columns = bad[better]
        error_P[columns] = error_B[better]
        rows_K2P[:, columns] = again_K2B[:, better]
        rows_K2P[:, n_pixels + columns] = again_K2B[:, len(bad) + better]
    rows_K2P, error_P = solve(amplitude_NP, rows_K2P)
    steps_done = steps_total
    report()
    real_QP, imaginary_QP = (back_QK @ rows_K2P).split(n_pixels, dim=1)
    rows_PQ = torch.complex(real_QP, imaginary_QP).T.contiguous()
    mean_P = frames_NP.mean(0)
    made = Twin(rows_PQ, float(error_P.mean()), float("nan"))
    held_out = correlation(made.frames(images_NQ[judge]) - mean_P, frames_NP[judge] - mean_P).mean()
    return made._replace(held_out=float(held_out))
