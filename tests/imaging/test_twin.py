"""A twin learned from intensities alone predicts frames of objects it never saw."""

import torch

from isoflop.imaging.twin import fit_twin
from isoflop.optics.field import correlation
from isoflop.optics.medium import MediumSection
from isoflop.optics.scattering import build_medium


def measured(n: int, seed: int = 0, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(n, size, size, generator=torch.Generator().manual_seed(seed))
    medium = build_medium(MediumSection(object_px=size, frame_px=6, seed=3))
    return images.flatten(1), medium.intensity(images).flatten(1)


def test_a_twin_predicts_frames_that_were_never_measured():
    twin = fit_twin(*measured(1200), seed=0, n_iterations=150)
    assert twin.residual < 0.01 and twin.held_out > 0.999
    images, frames = measured(50, seed=9)
    sparse = (images > 0.8).float()  # another kind of object
    medium = build_medium(MediumSection(object_px=8, frame_px=6, seed=3))
    truth = medium.intensity(sparse.view(-1, 8, 8)).flatten(1)
    assert correlation(twin.frames(sparse), truth).min() > 0.99
    assert correlation(twin.frames(images), frames).min() > 0.999


def test_shuffled_pairs_give_a_twin_that_says_it_knows_nothing():
    images, frames = measured(700)
    twin = fit_twin(images, frames.roll(13, 0), seed=0, n_iterations=60)
    assert twin.residual > 0.2 and abs(twin.held_out) < 0.2


def test_directions_that_no_object_has_are_left_out():
    images, _ = measured(1200)
    images = images.clone()
    images[:, :8] = 0.0  # a row of pixels that is always dark
    medium = build_medium(MediumSection(object_px=8, frame_px=6, seed=3))
    frames = medium.intensity(images.view(-1, 8, 8)).flatten(1)
    twin = fit_twin(images, frames, seed=1, n_iterations=150)
    assert twin.rows[:, :8].abs().max() < 1e-3 and twin.held_out > 0.999


def test_too_few_pairs_are_said(caplog):
    with caplog.at_level("WARNING"):
        fit_twin(*measured(90), seed=0, n_iterations=3, n_restarts=0, n_held_out=10)
    assert "80 pairs are few for the 64 directions" in caplog.text
