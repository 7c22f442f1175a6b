"""Networks trained on the core learn what digital ones do; folds keep writers apart; bad input is said."""

import dataclasses

import numpy as np
import pytest
import torch
from places import SHARED as SHARED_DATA

from isoflop.errors import DataError, RecipeError
from isoflop.in_situ.images import Images, read_digits, read_omniglot
from isoflop.in_situ.perceptron import Perceptron
from isoflop.in_situ.train import Classify, TrainOptions, accuracy, batch_rows, moved, train_network
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule

SHARED = SHARED_DATA / "images"
WIDTHS = (64, 24, 4)


def shapes(n=400, seed=0) -> Images:
    """Four kinds of 8x8 pictures (bars, diagonals) under noise, each by one of five writers."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(4, 8, 8)
    base[0, 2:4], base[1, :, 5:7] = 1.0, 1.0
    base[2], base[3] = torch.eye(8), torch.eye(8).flip(0)
    y = torch.arange(n) % 4
    x = (base[y] * torch.rand(n, 8, 8, generator=generator) + 0.35 * torch.rand(n, 8, 8, generator=generator)).clamp(
        0, 1
    )
    return Images(x.flatten(1), y, 8, 4, torch.arange(n) // 7 % 5)


def core(bits, backward="ste", **changes):
    fields = {**dict.fromkeys(("input_bits", "weight_bits", "adc_bits"), bits), **changes}
    return NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection("lin2024", fields, backward))


@pytest.mark.parametrize("backward", ["ste", "core", "dx_core", "dfa"])
def test_every_backward_way_learns(backward):
    train, test, options = shapes(), shapes(seed=1), TrainOptions(n_epochs=12, batch=20, learning_rate=0.01)
    digital, _ = train_network(Classify(train, test, options), WIDTHS, None)
    found, _ = train_network(Classify(train, test, options), WIDTHS, core(6, backward))
    assert accuracy(digital, test) > 0.95
    assert accuracy(found, test) > accuracy(digital, test) - 0.05


def test_at_three_bits_training_in_situ_recovers_what_moving_loses():
    train, test, options = shapes(), shapes(seed=1), TrainOptions(n_epochs=12, batch=20, learning_rate=0.01)
    digital, _ = train_network(Classify(train, test, options), WIDTHS, None)
    coarse = core(3, weight_scale="tensor")
    lost = accuracy(moved(digital, coarse), test)
    found = accuracy(train_network(Classify(train, test, options), WIDTHS, coarse)[0], test)
    assert lost < 0.975 < 0.985 < found


def test_formats_that_end_before_the_training_are_refused():
    images, ends = shapes(), dataclasses.replace(core(8), until=0.8)
    with pytest.raises(RecipeError, match=r"numerics\.until = 0\.8 must be 1 here.*leave the key out"):
        train_network(Classify(images, images, TrainOptions(n_epochs=1, batch=50)), WIDTHS, ends)
    with pytest.raises(RecipeError, match=r"numerics\.until"):
        moved(Perceptron(WIDTHS), ends)


def test_training_repeats_bit_for_bit_and_leaves_metrics(tmp_path):
    train, options = shapes(), TrainOptions(n_epochs=1, batch=50)
    twice = [
        train_network(Classify(train, train, options), WIDTHS, core(8), run_dir=tmp_path / str(n))[0] for n in (0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(twice[0].parameters(), twice[1].parameters(), strict=True))
    lines = (tmp_path / "0/metrics.jsonl").read_text()
    assert lines == (tmp_path / "1/metrics.jsonl").read_text() and "clipped_share" in lines


def test_every_epoch_sees_each_image_once():
    options = TrainOptions(batch=10, seed=3)
    rows = torch.cat([batch_rows(50, step, options) for step in range(5)])
    assert torch.equal(rows.sort().values, torch.arange(50))
    assert not torch.equal(rows[:10], batch_rows(50, 5, options))


def test_folds_cover_all_images_and_share_no_writer():
    images = shapes()
    pairs = images.folds(5)
    assert sum(len(test) for _, test in pairs) == len(images)
    for train, test in pairs:
        assert len(train) + len(test) == len(images)
        assert set(train.group.tolist()).isdisjoint(test.group.tolist())
    with pytest.raises(DataError, match="6 folds need at least as many writers, these images have 5"):
        images.folds(6)


def test_enlarged_images_repeat_their_pixels():
    small = shapes(8)
    large = small.enlarged(3)
    planes = large.x.view(8, 24, 24)
    assert large.side == 24 and torch.equal(planes[:, 1::3, 1::3].flatten(1), small.x)


def test_bad_archives_and_batches_are_said(tmp_path):
    with pytest.raises(DataError, match="do not exist"):
        read_digits(tmp_path / "none.npz")
    np.savez(tmp_path / "odd.npz", train_x=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(DataError, match="have no train_y, test_x, test_y"):
        read_digits(tmp_path / "odd.npz")
    images = shapes(10)
    with pytest.raises(RecipeError, match="batch = 11 must be 1 to the 10 images"):
        train_network(Classify(images, images, TrainOptions(batch=11)), WIDTHS, None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared images beside the checkout")
def test_real_images_are_read_as_light():
    train, test = read_digits(SHARED / "mnist/mnist-30k.npz")
    assert (len(train), len(test), train.side) == (20_000, 10_000, 28)
    assert float(train.x.mean()) == pytest.approx(0.1316, abs=1e-4) and float(train.x.max()) == 1.0
    characters = read_omniglot(SHARED / "omniglot/omniglot-112.npz")
    assert characters.x.shape == (4840, 12544) and characters.n_classes == 8
    assert len(characters.folds(5)[0][1]) == 4840 // 5


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared images beside the checkout")
def test_digits_trained_in_situ_stay_near_digital_ones():
    """One seed with fewer epochs; recipes/study/in_situ.py has the three seeds of docs/numerics.md."""
    train, test = read_digits(SHARED / "mnist/mnist-30k.npz")
    widths, options = (784, 100, 100, 10), TrainOptions(n_epochs=6)
    settings = {"weight_scale": "tensor", "capacitor_f": 20e-12, "leak_s": float("inf"), "range_std": 4.0}
    digital, _ = train_network(Classify(train, test, options), widths, None)
    base = accuracy(digital, test)
    for bits, gap in ((8, 0.005), (5, 0.012), (4, 0.03)):
        found, _ = train_network(Classify(train, test, options), widths, core(bits, **settings))
        assert accuracy(found, test) > base - gap, bits
    found, _ = train_network(Classify(train, test, options), widths, core(3, **settings))
    assert accuracy(found, test) > max(0.85, accuracy(moved(digital, core(3, **settings)), test) + 0.1)
