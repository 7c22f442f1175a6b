"""Media: the checks of optics.md B8, each kind of medium, and the errors of bad sections."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from speckle_statistics import contrast, grain_width_px

from isoflop.optics import scattering
from isoflop.optics.field import angular_frequencies, correlation, intensity, wave_number
from isoflop.optics.medium import MediumSection
from isoflop.optics.scattering import Multislice, TransmissionMatrix, build_medium, correlation_length_um

SMALL = MediumSection(object_px=12, frame_px=64)
KINDS = ("tm", "structured", "multislice", "memory", "dynamic", "family")


def section(**changes) -> MediumSection:
    return dataclasses.replace(SMALL, **changes)


def objects(n: int, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, size, size, generator=torch.Generator().manual_seed(seed))


def test_speckle_of_a_matrix_has_contrast_one_and_an_exponential_histogram():
    frames = build_medium(section(frame_px=128)).intensity(objects(8))
    assert contrast(frames).mean() == pytest.approx(1.0, abs=0.01)
    scaled = (frames / frames.mean(dim=(1, 2), keepdim=True)).flatten()[::37].numpy()
    assert stats.kstest(scaled, "expon").pvalue > 0.01


def test_rows_of_a_matrix_are_uncorrelated_and_have_unit_power():
    matrix = build_medium(section(frame_px=32)).matrix()
    gram = matrix @ matrix.conj().T
    assert gram.diagonal().real.mean() == pytest.approx(1.0, abs=0.01)
    off = gram - torch.diag(gram.diagonal())
    assert off.abs().square().mean().sqrt() == pytest.approx(1 / 12, rel=0.03)  # chance level of 144 entries


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_medium_and_another_seed_is_another_medium(kind):
    first, again, other = (
        build_medium(section(kind=kind, seed=seed, frame_px=32)).intensity(objects(2), 3) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert correlation(first, other).abs().max() < 0.7
    assert first.shape == (2, 32, 32) and bool((first >= -1e-7).all())


@pytest.mark.parametrize("kind", KINDS)
def test_more_light_in_gives_more_light_out(kind):
    medium = build_medium(section(kind=kind, frame_px=32))
    bright, dim = medium.intensity(objects(2)), medium.intensity(0.5 * objects(2))
    assert torch.allclose(dim, 0.25 * bright, rtol=1e-3, atol=1e-6)


def test_ballistic_power_follows_beer_lambert_over_the_whole_range():
    for depth in (0.5, 2.0, 4.0, 6.0):
        # The coherent field is what is left after averaging over media; 1/48 of the speckle's power stays.
        fields = []
        for seed in range(48):
            slab = Multislice(section(kind="multislice", seed=seed, optical_depth=depth, anisotropy=0.8, frame_px=32))
            plane = torch.ones(64, 64, dtype=torch.complex64)
            fields.append(slab.through(plane).mean())
        ballistic = float(torch.stack(fields).mean().abs().square())
        assert ballistic == pytest.approx(math.exp(-depth), rel=0.1)


@pytest.mark.parametrize("g", [0.9, 0.95, 0.98])
def test_the_anisotropy_shows_in_the_angular_spectrum(g):
    medium = Multislice(
        section(kind="multislice", frame_px=128, optical_depth=0.02, slices=1, anisotropy=g, pitch_um=0.25)
    )
    field = medium.through(torch.ones(256, 256, dtype=torch.complex64))
    power = intensity(torch.fft.fft2(field)).double()
    power[0, 0] = 0.0  # unscattered
    k = angular_frequencies(256, 0.25)
    sine_squared = ((k[:, None] ** 2 + k[None, :] ** 2) / wave_number(0.633) ** 2).clamp(max=1.0)
    measured = float((power * (1 - sine_squared).sqrt()).sum() / power.sum())
    assert measured == pytest.approx(g, rel=0.03)
    # l_c is a small-angle formula; the next order of 1 - cos for a Gaussian spectrum is (1 - g)^2
    assert 1 - measured == pytest.approx((1 - g) + (1 - g) ** 2, rel=0.1)


def test_a_thin_multislice_slab_keeps_energy_and_a_thick_one_makes_developed_speckle():
    plane = torch.ones(128, 128, dtype=torch.complex64)
    thin = Multislice(section(kind="multislice", anisotropy=0.98, optical_depth=3.0)).through(plane)
    assert intensity(thin).mean() == pytest.approx(1.0, abs=0.01)
    thick = intensity(Multislice(section(kind="multislice")).through(plane))
    assert contrast(thick[None]).item() == pytest.approx(1.0, abs=0.08)
    assert thick.mean() < 0.5  # beyond 90 degrees waves are evanescent: there is no backward light in this model


def test_screens_have_the_variance_and_correlation_they_are_asked_for():
    screen = scattering.gaussian_screen(
        256, variance=0.4, correlation_um=2.0, pitch_um=0.5, generator=scattering.seeded(1)
    ).double()
    assert screen.var() == pytest.approx(0.4, rel=0.1)
    at_length = (screen * screen.roll(4, 0)).mean() / screen.var()
    assert at_length == pytest.approx(math.exp(-1), abs=0.08)
    assert correlation_length_um(0.9, 0.633) == pytest.approx(0.45, abs=0.005)  # the sheet's worked example


def test_inside_the_memory_range_a_moved_object_moves_the_speckle():
    medium = build_medium(section(kind="memory", frame_px=48))
    image = torch.zeros(1, 12, 12)
    image[0, 3:6, 4:7] = 1.0
    moved = medium.intensity(image.roll((2, 3), dims=(1, 2)))
    assert torch.allclose(moved, medium.intensity(image).roll((2, 3), dims=(1, 2)), atol=1e-6)
    through_slab = build_medium(section(frame_px=48))
    assert correlation(
        through_slab.intensity(image.roll((2, 3), dims=(1, 2))), through_slab.intensity(image).roll((2, 3), dims=(1, 2))
    ).item() == pytest.approx(0.0, abs=0.1)


def test_a_dynamic_medium_forgets_at_its_lifetime():
    medium = build_medium(section(kind="dynamic", lifetime=50.0, frame_px=96))
    start = medium.intensity(objects(4))
    for time in (0, 25, 50, 200):
        found = correlation(start, medium.intensity(objects(4), time)).mean().item()
        assert found == pytest.approx(math.exp(-time / 50.0), abs=0.05)  # intensity correlation is rho


def test_members_of_a_family_share_statistics_but_not_patterns():
    family = build_medium(section(kind="family", frame_px=96))
    first, second = family.intensity(objects(4), 0), family.intensity(objects(4), 1)
    assert correlation(first, second).abs().max() < 0.05
    assert contrast(second).mean() == pytest.approx(contrast(first).mean().item(), abs=0.05)


def test_an_aperture_sets_the_grain_size():
    widths = [
        grain_width_px(build_medium(section(frame_px=128, aperture=a)).intensity(objects(2))).mean().item()
        for a in (0.5, 0.25)
    ]
    # Airy grains of a round aperture: half maximum of (2 J1(u)/u)^2 at u = 1.616, so 2.06 / a pixels across
    assert widths == pytest.approx([2 * 1.616 / (math.pi * 0.5), 2 * 1.616 / (math.pi * 0.25)], rel=0.08)


def test_a_second_polarisation_lowers_the_contrast():
    frames = build_medium(section(frame_px=128, polarised=0.5)).intensity(objects(4))
    assert contrast(frames).mean() == pytest.approx(1 / math.sqrt(2), abs=0.02)


def test_a_diffusive_slab_has_open_and_closed_channels_and_the_same_power():
    plain, slab = (build_medium(section(frame_px=24, transmission=t)) for t in (0.0, 0.2))
    tau = torch.linalg.svdvals(slab.matrix()).square()
    tau = tau / tau.max()
    assert tau.mean() == pytest.approx(0.2, rel=0.1)
    assert (tau < 0.1).float().mean() > 0.5 and (tau > 0.9).float().mean() > 0.05  # bimodal
    assert slab.matrix().norm() == pytest.approx(plain.matrix().norm().item(), rel=1e-4)


def test_a_ballistic_share_lets_the_image_through():
    image = torch.zeros(1, 12, 12)
    image[0, 2:9, 5:7] = 1.0
    seen = build_medium(section(frame_px=48, ballistic=0.5)).intensity(image)
    shadow = torch.nn.functional.interpolate(image[None], 48)[0]
    assert correlation(seen, shadow).item() > 0.5
    assert abs(correlation(build_medium(section(frame_px=48)).intensity(image), shadow).item()) < 0.15


def test_a_matrix_too_large_to_store_is_the_same_matrix(monkeypatch):
    stored = build_medium(section(frame_px=40)).intensity(objects(2))
    monkeypatch.setattr(scattering, "STORED_BYTES", 0)
    assert torch.allclose(build_medium(section(frame_px=40)).intensity(objects(2)), stored, atol=1e-6)


def test_phase_objects_differ_from_amplitude_objects_only_in_the_light():
    phase = build_medium(section(light="phase")).intensity(objects(2))
    as_field = build_medium(SMALL).intensity(torch.exp(1j * math.pi * objects(2)))
    assert torch.allclose(phase, as_field, atol=1e-5)


def test_structured_media_have_the_statistics_of_a_matrix():
    frames = build_medium(section(kind="structured", frame_px=128)).intensity(objects(8))
    assert contrast(frames).mean() == pytest.approx(1.0, abs=0.03)
    power = build_medium(SMALL).intensity(objects(8)).mean()
    assert frames.mean() == pytest.approx(float(power), rel=0.05)


BAD = [
    ({"object_px": 0}, r"medium\.object_px = 0 must be in 1 to 512"),
    ({"polarised": 0.2}, r"medium\.polarised = 0\.2 must be in 0\.5 to 1"),
    ({"ballistic": 1.0}, r"medium\.ballistic = 1\.0 must be at least 0 and below 1"),
    ({"anisotropy": 1.0}, r"medium\.anisotropy = 1\.0 must be at least 0\.5 and below 1"),
    ({"kind": "dynamic", "lifetime": 0.0}, r"medium\.lifetime = 0\.0 must be above 0"),
    ({"kind": "memory", "frame_px": 8}, r"medium\.frame_px = 8 must be at least medium\.object_px = 12"),
    ({"kind": "multislice", "pitch_um": 0.5}, r"medium\.pitch_um = 0\.5 must be at most half"),
    ({"kind": "multislice", "slices": 5}, r"use at least 14 slices"),
    ({"transmission": 0.5, "frame_px": 8}, r"medium\.transmission needs frame_px = 8 >= object_px = 12"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_bad_section_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        build_medium(section(**changes))


def test_objects_of_another_size_or_range_are_refused():
    medium = build_medium(SMALL)
    with pytest.raises(ValueError, match=r"\(1, 28, 28\) do not fit medium\.object_px = 12; give \(batch, 12, 12\)"):
        medium.intensity(torch.zeros(1, 28, 28))
    with pytest.raises(ValueError, match=r"object values are 0 to 255, they must be in 0 to 1; divide 8-bit"):
        medium.intensity(torch.linspace(0, 255, 144).view(1, 12, 12))
    with pytest.raises(ValueError, match="must be in 0 to 1"):
        medium.intensity(torch.full((1, 12, 12), float("nan")))


@pytest.mark.filterwarnings("ignore")  # theirs
def test_random_matrices_have_the_statistics_of_deepinv():
    try:
        import deepinv
    except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision was built for another torch
        pytest.skip(f"deepinv is not installed or does not load: {error}")
    theirs = deepinv.physics.RandomPhaseRetrieval(m=1024, img_size=(1, 12, 12), rng=torch.Generator().manual_seed(0))
    images = objects(64)
    their_frames = theirs(images[:, None].to(torch.complex64)).real.reshape(64, 32, 32)
    our_frames = TransmissionMatrix(section(frame_px=32)).intensity(images)
    ours, others = (frames / frames.mean(dim=(1, 2), keepdim=True) for frames in (our_frames, their_frames))
    assert contrast(ours).mean() == pytest.approx(contrast(others).mean().item(), abs=0.05)
    sample = [frames.flatten()[::17].numpy().astype(np.float64) for frames in (ours, others)]
    assert stats.ks_2samp(*sample).pvalue > 0.01
