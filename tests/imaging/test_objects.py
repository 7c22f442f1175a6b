"""Objects: what is drawn, what is read, and what is refused."""

import math

import numpy as np
import pytest
import torch

from isoflop.errors import DataError, RecipeError
from isoflop.glyphs import distorted
from isoflop.imaging.distort import mildly, wildly
from isoflop.imaging.objects import ObjectsSection, load_objects

DRAWN = ObjectsSection(n_train=60, n_test=20, n_unseen=26)


def test_glyphs_are_images_of_strokes_and_their_seed_fixes_them():
    first, again = load_objects(DRAWN, 28), load_objects(DRAWN, 28)
    for images, repeated, n in zip(first, again, (60, 20, 26), strict=True):
        assert images.shape == (n, 28, 28) and torch.equal(images, repeated)
        assert images.min() >= 0 and images.max() <= 1
        assert 0.03 < images.mean() < 0.4
        assert images.flatten(1).amax(1).min() > 0.5  # nothing empty
    border = first.train[:, [0, -1]].mean()
    assert border < 0.02  # in the middle of the field


def test_glyphs_come_natively_large():
    images = load_objects(DRAWN, 112).train
    assert images.shape == (60, 112, 112)
    assert (images > 0.9).float().mean() > 0.05  # sharp, not an enlarged thumbnail


def test_files_are_read_split_and_pooled(tmp_path):
    generator = np.random.default_rng(0)
    digits, letters = tmp_path / "digits.npz", tmp_path / "letters.npz"
    np.savez(
        digits, train_x=generator.integers(0, 256, (40, 28, 28), dtype=np.uint8), test_x=np.zeros((9, 28, 28), "u1")
    )
    bits = np.zeros((6, 112, 112), np.uint8)
    bits[:, 40:44, 20:90] = 1
    np.savez(
        letters,
        bits=np.packbits(bits.reshape(6, -1), axis=1),
        alphabet=np.array([0, 1, 1, 0, 1, 1], np.uint8),
        alphabet_names=np.array(["Greek", "Latin"]),
    )
    section = ObjectsSection("file", str(digits), str(letters), n_train=40, n_test=9)
    found = load_objects(section, 28)
    assert [len(images) for images in found] == [40, 9, 4]
    assert found.unseen[0, 10].max() == 1.0 and found.unseen[0, 8].max() == 0.0
    assert load_objects(section, 14).train.shape == (40, 14, 14)

    with pytest.raises(DataError, match=r"objects\.n_train = 50 but .* has 40 rows of train_x"):
        load_objects(ObjectsSection("file", str(digits), n_train=50, n_test=9), 28)
    with pytest.raises(DataError, match=r"objects\.alphabet = 'Elvish' is not in .*; it has Greek, Latin"):
        load_objects(ObjectsSection("file", str(digits), str(letters), "Elvish", 40, 9), 28)
    with pytest.raises(DataError, match="has no array bits"):
        load_objects(ObjectsSection("file", str(digits), str(digits), n_train=40, n_test=9), 28)


def test_bad_sections_and_files_are_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match=r"objects\.n_train = 3 must be at least 16"):
        load_objects(ObjectsSection(n_train=3), 28)
    with pytest.raises(RecipeError, match=r'objects\.digits = "" must name an \.npz file'):
        load_objects(ObjectsSection("file"), 28)
    with pytest.raises(DataError, match=r"objects\.digits = 'nowhere\.npz' is not a file"):
        load_objects(ObjectsSection("file", "nowhere.npz"), 28)
    wide, bright = tmp_path / "wide.npz", tmp_path / "bright.npz"
    np.savez(wide, train_x=np.zeros((20, 28, 20), "u1"), test_x=np.zeros((20, 28, 20), "u1"))
    np.savez(bright, train_x=np.full((20, 8, 8), 7.0), test_x=np.zeros((20, 8, 8)))
    with pytest.raises(DataError, match=r"shape \(16, 28, 20\), it must be \(N, side, side\)"):
        load_objects(ObjectsSection("file", str(wide), n_train=16, n_test=2), 28)
    with pytest.raises(DataError, match="values 7 to 7, they must be uint8 or in 0 to 1"):
        load_objects(ObjectsSection("file", str(bright), n_train=16, n_test=2), 28)


def test_files_that_are_no_npz_or_hold_something_else_are_refused(tmp_path):
    def read(digits, letters="", **arrays):
        if arrays:
            np.savez(tmp_path / letters if letters else digits, **arrays)
        names = [str(tmp_path / name) if name else "" for name in (digits.name, letters)]
        load_objects(ObjectsSection("file", *names, n_train=16, n_test=2), 28)

    digits = tmp_path / "digits.npz"
    for content in (b"", b"a text", b"PK\x03\x04 and no more"):
        digits.write_bytes(content)
        with pytest.raises(DataError, match=r"digits\.npz' is not a whole \.npz file .* give one with train_x, test_x"):
            read(digits)
    np.save(tmp_path / "one.npy", np.zeros((20, 8, 8)))
    with pytest.raises(DataError, match="is a single array"):
        read(tmp_path / "one.npy")
    with pytest.raises(DataError, match="holds <U1, no brightness"):
        read(digits, train_x=np.full((20, 8, 8), "x"), test_x=np.zeros((20, 8, 8)))
    with pytest.raises(DataError, match="has 1 rows of train_x"):
        read(digits, train_x=np.float32(1), test_x=np.zeros((20, 8, 8)))
    np.savez(digits, train_x=np.zeros((20, 8, 8), "u1"), test_x=np.zeros((20, 8, 8), "u1"))
    one = {"alphabet": np.zeros(6, "u1"), "alphabet_names": np.array(["Latin"])}
    for bits in (np.zeros((6, 99), "u1"), np.zeros((5, 1568), "u1"), np.zeros((6, 1568))):
        with pytest.raises(DataError, match="must be uint8, 1568 of them for each of the 6 letters"):
            read(digits, "letters.npz", bits=bits, **one)


def test_no_distortion_is_the_identity_and_a_half_turn_turns():
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = distorted(image, torch.Generator().manual_seed(1), turn_rad=0.0, scale=0.0, shift=0.0, bend=0.0)
    assert torch.allclose(still, image, atol=1e-5)
    generator = torch.Generator().manual_seed(2)
    turned = distorted(image, generator, turn_rad=math.pi, scale=0.0, shift=0.0, bend=0.0)
    assert not torch.allclose(turned, image, atol=0.1)
    assert turned[:, 4:12, 4:12].std() > 0.1


def test_mild_distortions_keep_the_object_and_wild_ones_do_not():
    from isoflop.imaging.score import pearson

    images = load_objects(DRAWN, 28).train
    mild = mildly(images, torch.Generator().manual_seed(0))
    wild = wildly(images, images.flip(0), torch.Generator().manual_seed(0))
    assert pearson(mild, images).mean() > pearson(wild, images).mean() + 0.15
    assert wild.shape == images.shape and wild.max() <= 1
