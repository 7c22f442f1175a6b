"""Clustering by core products finds what exact products find; centring is what makes it work."""

import pytest
import torch

from isoflop.in_situ.cluster import autoencoded, components, digital, kmeans, on_core
from isoflop.in_situ.images import Images
from isoflop.in_situ.scores import matched_accuracy
from isoflop.in_situ.train import TrainOptions
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule


def core(bits, **changes):
    fields = {**dict.fromkeys(("input_bits", "weight_bits", "adc_bits"), bits), **changes}
    return NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection("lin2024", fields))


def blobs(spread=0.16, n=300, d=60, k=4, seed=0):
    """k groups on a common background, as images are; the smaller `spread`, the more they have in common."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.5 + spread * (torch.rand(k, d, generator=generator) - 0.5)
    y = torch.arange(n) % k
    return (centres[y] + 0.05 * torch.randn(n, d, generator=generator)).clamp(0, 1), y


def best_of(x, y, **options):
    return max(matched_accuracy(kmeans(x, 4, seed=seed, **options)[0], y) for seed in range(3))


def test_groups_are_found_digitally_and_on_a_six_bit_core_if_centres_are_centred():
    x, y = blobs()
    assert best_of(x, y) > 0.97
    centred = best_of(x, y, multiply=on_core(core(6)))
    as_they_are = best_of(x, y, multiply=on_core(core(6)), centred=False)
    assert centred > 0.95 and centred > as_they_are + 0.1


def test_exact_products_make_centring_a_matter_of_rounding():
    x, _ = blobs()
    assert torch.equal(kmeans(x.double(), 4, seed=1)[0], kmeans(x.double(), 4, seed=1, centred=False)[0])


@pytest.mark.parametrize("multiply", [digital, on_core(core(8))], ids=["digital", "core"])
def test_components_are_those_of_the_covariance(multiply):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    spread = torch.tensor([3.0, 2.0, 1.4, *[0.15] * 27])
    x = torch.randn(2000, 30, generator=generator) * spread @ basis.T
    w, mean = components(x, 3, seed=0, multiply=multiply, n_epochs=20, batch=50)
    centred = x - mean
    exact = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    assert torch.allclose(w @ w.T, torch.eye(3), atol=0.1)
    assert ((w * exact).sum(1).abs() > 0.97).all()  # Sanger's rule orders them, up to the sign


def test_codes_of_an_autoencoder_separate_groups():
    x, y = blobs(0.8)
    images = Images(x, y, 8, 4)
    codes = autoencoded(
        images, core(6), TrainOptions(n_epochs=15, batch=20, learning_rate=0.01), d_inner=16, d_latent=6
    )
    assert codes.shape == (300, 6) and (codes < 0).any() and (codes > 0).any()
    assert best_of(codes, y) > 0.9
