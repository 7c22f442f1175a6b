"""Statistics of speckle frames: contrast, grain size, share of bright pixels.

Fully developed speckle has P(I) = exp(-I/<I>)/<I> and contrast 1; the sum of M independent patterns has contrast
1/sqrt(M). Measured frames carry an envelope (the blob of light is brighter in the middle), so the local figures are
those of windows, or of the frame divided by its blurred self. Shapes: B frames, Y X pixels.
"""

import torch
from torch import Tensor


def contrast(frames_BYX: Tensor) -> Tensor:
    """Standard deviation over mean of every frame."""
    pixels_BP = frames_BYX.flatten(1).double()
    return pixels_BP.std(dim=1, correction=0) / pixels_BP.mean(1)


def window_contrast(frames_BYX: Tensor, window: int = 32) -> Tensor:
    """Mean contrast of the non-overlapping windows of every frame: what is left when the envelope is flat."""
    height, width = (size // window * window for size in frames_BYX.shape[-2:])
    tiles = frames_BYX[..., :height, :width].unfold(1, window, window).unfold(2, window, window)
    return torch.stack([contrast(frame.reshape(-1, window, window)).mean() for frame in tiles])


def flattened(frames_BYX: Tensor, blur_px: float = 16.0) -> Tensor:
    """Every frame divided by its envelope, a Gaussian blur of itself."""

    def blur(size: int) -> Tensor:
        offsets = torch.arange(size, dtype=torch.float64, device=frames_BYX.device)
        weights = torch.exp(-0.5 * ((offsets[:, None] - offsets[None, :]) / blur_px) ** 2)
        return weights / weights.sum(1, keepdim=True)  # the border has fewer neighbours

    frames = frames_BYX.double()
    envelope = blur(frames.shape[-2]) @ frames @ blur(frames.shape[-1]).T
    return frames / envelope.clamp_min(1e-12)


def autocorrelation(frames_BYX: Tensor) -> Tensor:
    """Normalised circular autocovariance of every frame, 1 at the origin [0, 0]."""
    centred = frames_BYX.double() - frames_BYX.double().mean(dim=(-2, -1), keepdim=True)
    power = torch.fft.fft2(centred).abs().square()
    found = torch.fft.ifft2(power).real
    return found / found[..., :1, :1]


def grain_width_px(frames_BYX: Tensor) -> Tensor:
    """Full width at half maximum of the autocovariance, mean of both axes, in pixels."""
    found = autocorrelation(frames_BYX)
    widths = []
    for profile_BX in (found[:, 0, :], found[:, :, 0]):
        half = profile_BX.shape[1] // 2
        below_BX = profile_BX[:, :half] < 0.5
        first_B = below_BX.int().argmax(dim=1).clamp_min(1)
        after = profile_BX.gather(1, first_B[:, None]).squeeze(1)
        before = profile_BX.gather(1, first_B[:, None] - 1).squeeze(1)
        widths.append(2 * (first_B - 1 + (before - 0.5) / (before - after)))
    return torch.stack(widths).mean(0)


def share_above(frames_BYX: Tensor, times_mean: float = 1.0) -> Tensor:
    """Share of pixels above `times_mean` times the mean of their frame; exponential speckle: exp(-times_mean)."""
    pixels_BP = frames_BYX.flatten(1)
    return (pixels_BP > times_mean * pixels_BP.mean(1, keepdim=True)).double().mean(1)
