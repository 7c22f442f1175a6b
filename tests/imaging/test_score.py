"""Scores against independent computations, and losses that prefer the truth."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from isoflop.imaging.score import jaccard, loss_sum, mean_image_pcc, pearson, psnr_db, scores, ssim


def images(n: int = 4, size: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_correlation_agrees_with_numpy_and_a_constant_image_scores_zero():
    a, b = images(seed=1), images(seed=2)
    expected = [np.corrcoef(x.numpy().ravel(), y.numpy().ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    assert pearson(a, b).numpy() == pytest.approx(expected, abs=1e-12)
    assert pearson(3 * a + 2, a).numpy() == pytest.approx(1.0)
    assert pearson(torch.ones(1, 5, 5), images(1, 5)).item() == 0.0


def test_structural_similarity_agrees_with_scipy_filters():
    a = images(2)
    b = (a + 0.2 * images(2, seed=3)).clamp(0, 1)
    for found, x, y in zip(ssim(a, b), a.numpy(), b.numpy(), strict=True):
        mean = lambda v: gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5]
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
        expected = (top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))).mean()
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_known_values_of_psnr_and_overlap():
    truth = torch.zeros(1, 4, 4)
    truth[0, :2] = 1.0
    half = truth.clone()
    half[0, 1] = 0.0
    assert jaccard(half, truth).item() == pytest.approx(0.5)
    assert jaccard(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)).item() == 1.0
    assert psnr_db(truth + 0.1, truth).item() == pytest.approx(20.0, abs=1e-4)
    assert scores(images(), images())["pcc"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["bce", "mse", "npcc"])
def test_every_loss_prefers_the_truth_and_sums_over_images(name):
    truth = (images(6).float() > 0.5).float()
    good, bad = (6 * (truth - 0.5)).requires_grad_(), torch.zeros_like(truth)
    assert loss_sum(good, truth, {name: 1.0}) < loss_sum(bad, truth, {name: 1.0})
    parts = loss_sum(good[:2], truth[:2], {name: 1.0}) + loss_sum(good[2:], truth[2:], {name: 1.0})
    assert torch.allclose(parts, loss_sum(good, truth, {name: 1.0}), rtol=1e-5)
    loss_sum(good, truth, {name: 1.0}).backward()
    assert good.grad is not None and bool(good.grad.isfinite().all())


def test_total_variation_prefers_smooth_images():
    smooth, rough = torch.zeros(2, 8, 8), 5 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert loss_sum(smooth, smooth, {"tv": 1.0}) == 0 < loss_sum(rough, smooth, {"tv": 1.0})


def test_the_level_of_the_mean_image_is_what_answering_with_it_scores():
    train, test = images(50, seed=4), images(5, seed=5)
    expected = float(pearson(train.mean(0).expand(5, -1, -1), test).mean())
    assert mean_image_pcc(train, test) == pytest.approx(expected)
    assert math.isnan(mean_image_pcc(train, test[:0]))
