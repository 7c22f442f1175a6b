"""How good a reconstruction is: Pearson correlation, SSIM, PSNR, Jaccard; and the losses that train for it.

Scores are per image and in float32 or better. Shapes: B images, Y X pixels; truth in [0, 1].
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def pearson(found: Tensor, truth: Tensor) -> Tensor:
    """Correlation of every image with its truth, 0 where one of them is constant."""
    a_BP, b_BP = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (found, truth))
    return (a_BP * b_BP).sum(1) / (a_BP.norm(dim=1) * b_BP.norm(dim=1)).clamp_min(1e-12)


def ssim(found_BYX: Tensor, truth_BYX: Tensor) -> Tensor:
    """Structural similarity for a range of 1: Gaussian window of sigma 1.5 and 11 pixels, no padding.

    Source: Wang et al. 2004, K1 0.01, K2 0.03.
    """
    offsets = torch.arange(-5, 6, dtype=found_BYX.dtype, device=found_BYX.device)
    window = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    window = window / window.sum()
    kernel = (window[:, None] * window[None, :])[None, None]
    x, y = found_BYX.unsqueeze(1), truth_BYX.unsqueeze(1)
    mx, my, xx, yy, xy = (F.conv2d(v, kernel) for v in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    return (found / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))).mean(dim=(1, 2, 3))


def psnr_db(found_BYX: Tensor, truth_BYX: Tensor) -> Tensor:
    """Peak signal to noise for a range of 1, in dB."""
    error_B = (found_BYX - truth_BYX).square().flatten(1).mean(1).clamp_min(1e-12)
    return -10 * torch.log10(error_B)


def jaccard(found_BYX: Tensor, truth_BYX: Tensor, threshold: float = 0.5) -> Tensor:
    """Overlap over union of the pixels at or above `threshold`; 1 where both are empty."""
    a_BP, b_BP = (x.flatten(1) >= threshold for x in (found_BYX, truth_BYX))
    union_B = (a_BP | b_BP).sum(1)
    return torch.where(union_B > 0, (a_BP & b_BP).sum(1) / union_B.clamp_min(1), 1.0)


def scores(found_BYX: Tensor, truth_BYX: Tensor) -> dict[str, float]:
    """Means over images; `pcc_std` is over images too."""
    found_BYX, truth_BYX = found_BYX.float(), truth_BYX.float()
    clipped_BYX = found_BYX.clamp(0, 1)
    pcc_B = pearson(found_BYX, truth_BYX)
    return {
        "pcc": float(pcc_B.mean()),
        "pcc_std": float(pcc_B.std()) if len(pcc_B) > 1 else 0.0,
        "ssim": float(ssim(clipped_BYX, truth_BYX).mean()),
        "psnr_db": float(psnr_db(clipped_BYX, truth_BYX).mean()),
        "jaccard": float(jaccard(clipped_BYX, truth_BYX).mean()),
    }


LOSSES = ("bce", "mse", "npcc", "tv")


def loss_sum(logits_BYX: Tensor, truth_BYX: Tensor, weights: dict[str, float]) -> Tensor:
    """Sum over images of the weighted losses, each a mean over the pixels of an image.

    bce: cross-entropy; mse; npcc: minus the Pearson correlation; tv: total variation of the reconstruction.
    """
    logits_BYX = logits_BYX.float()
    found_BYX = logits_BYX.sigmoid()
    total = torch.zeros((), device=logits_BYX.device)
    n = len(logits_BYX)
    for name, weight in weights.items():
        if name == "bce":
            part = n * F.binary_cross_entropy_with_logits(logits_BYX, truth_BYX)
        elif name == "mse":
            part = n * F.mse_loss(found_BYX, truth_BYX)
        elif name == "npcc":
            part = -pearson(found_BYX, truth_BYX).sum()
        else:
            steps = found_BYX.diff(dim=1).abs().mean() + found_BYX.diff(dim=2).abs().mean()
            part = n * steps
        total = total + weight * part
    return total


def mean_image_pcc(train_NYX: Tensor, truth_BYX: Tensor) -> float:
    """What answering with the mean of the training images scores: the level of knowing nothing about the frame."""
    if not len(truth_BYX):
        return math.nan
    return float(pearson(train_NYX.mean(0).expand_as(truth_BYX), truth_BYX).mean())
