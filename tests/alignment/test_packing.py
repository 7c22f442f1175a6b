"""Packed rows are worth exactly their samples one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment_samples import make_samples
from hypothesis import given
from hypothesis import strategies as st
from interop_models import FAMILIES, build

from isoflop.alignment.packing import IGNORED, best_fit, n_positions, order_of, pack
from isoflop.errors import DataError
from isoflop.tokens.chat import Row

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS)
def test_best_fit_places_every_sample_once_and_wastes_less_than_half(lengths):
    rows = best_fit(lengths, 40)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    filled = [sum(lengths[sample] for sample in row) for row in rows]
    assert max(filled) <= 40
    assert len(rows) <= np.ceil(11 / 9 * sum(lengths) / 40 + 2)  # within the known bound of best-fit decreasing
    assert best_fit(lengths, 40) == rows


def test_a_known_packing():
    assert best_fit([5, 7, 3, 5, 10, 2], 10) == [[4], [1, 2], [0, 3], [5]]


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    first = order_of(100, seed=1, epoch=0)
    assert (first == order_of(100, seed=1, epoch=0)).all() and sorted(first) == list(range(100))
    assert (first != order_of(100, seed=1, epoch=1)).any() and (first != order_of(100, seed=2, epoch=0)).any()


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match="a sample of 11 tokens is longer than a row of 10"):
        best_fit([3, 11], 10)


@given(LENGTHS)
def test_rows_hold_every_target_once_beside_the_token_before_it(lengths):
    samples = make_samples(lengths)
    for packed in (True, False):
        tokens, targets, numbers = (part.numpy() for part in pack(samples, seq_len=48, packed=packed))
        assert (tokens[numbers == IGNORED] == 0).all() and (targets[numbers == IGNORED] == IGNORED).all()
        for index, (ids, is_target) in enumerate(samples):
            here = numbers == index
            assert (tokens[here] == ids[:-1]).all()
            assert (targets[here] == np.where(is_target[1:], ids[1:], IGNORED)).all()
        assert sum(n_positions(sample) for sample in samples) == (numbers != IGNORED).sum()


def log_probs(model, packed):
    hidden = model(packed.tokens_BT, documents_BT=packed.samples_BT)
    return model.head(hidden).float().log_softmax(-1).gather(-1, packed.targets_BT.clamp(min=0)[..., None])[..., 0]


@pytest.mark.parametrize("name", ["mha", "gqa", "v3_dense"])
def test_packed_samples_do_not_see_each_other(name):
    model = build(FAMILIES[name])
    samples = make_samples([20, 30, 25, 15], seed=1)
    before = pack(samples, seq_len=96)
    changed = make_samples([20, 30, 25, 15], seed=2)
    after = pack([samples[0], changed[1], *samples[2:]], seq_len=96)
    assert torch.equal(before.samples_BT, after.samples_BT) and len(before.tokens_BT) == 1
    with torch.no_grad():
        others = before.samples_BT != 1
        assert torch.equal(log_probs(model, before)[others], log_probs(model, after)[others])  # bit for bit
        assert not torch.equal(log_probs(model, before)[~others], log_probs(model, after)[~others])


@pytest.mark.parametrize("name", ["mha", "gqa", "v3_dense", "dense_yarn"])
def test_packed_samples_equal_samples_alone(name):
    model = build(FAMILIES[name])
    samples = make_samples([20, 30, 25, 15, 60, 3], seed=1)
    packed = pack(samples, seq_len=96)
    with torch.no_grad():
        together = log_probs(model, packed)
        for index, sample in enumerate(samples):
            alone = pack([sample], seq_len=96, packed=False)
            torch.testing.assert_close(
                together[packed.samples_BT == index], log_probs(model, alone)[0], atol=1e-5, rtol=1e-5
            )


def test_multi_token_targets_stay_inside_their_sample():
    model = build(replace(FAMILIES["v3_dense"], mtp_depth=2))
    ids = [np.arange(1, 12, dtype=np.int32), np.arange(20, 30, dtype=np.int32)]
    samples = [Row(item, np.arange(len(item)) >= 1) for item in ids]  # everything is a target
    packed = pack(samples, seq_len=96)
    with torch.no_grad():
        together = model.losses(packed.tokens_BT, packed.targets_BT, documents_BT=packed.samples_BT)
        alone = [
            model.losses(item.tokens_BT, item.targets_BT, documents_BT=item.samples_BT)
            for item in (pack([sample], seq_len=96, packed=False) for sample in samples)
        ]
        for depth in range(2):
            expected = sum(item.mtp_nats[depth] for item in alone)
            torch.testing.assert_close(together.mtp_nats[depth], expected, rtol=1e-5, atol=1e-4)
