"""Whole shapes near any size: dense, regular, and equal to known models where the rules are the paper's."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import RecipeError
from isoflop.model.accounting import flops_per_token
from isoflop.scaling.sweep.shapes import depth_rule, init_std_rule, shape, shape_near


@given(st.floats(4.8, 12.0), st.sampled_from([64, 256, 1024, 4096]))
def test_the_nearest_shape_is_near_and_regular(exponent, seq_len):
    smallest = flops_per_token(shape(8, vocab_size=512, seq_len=seq_len))
    target = max(10**exponent, smallest)
    config = shape_near(target, vocab_size=512, seq_len=seq_len)
    factor = 1.2 if config.d_model >= 128 else 1.4  # worst found in steps of 0.0005 in the exponent: 1.149 and 1.343
    assert 1 / factor < flops_per_token(config) / target < factor
    assert config.n_heads * config.d_head == config.d_model
    assert 1 / 1.51 < config.n_layers / depth_rule(config.d_model) < 1.51
    assert 2.6 < config.d_ff / config.d_model < 3.1


@pytest.mark.parametrize("seq_len", [64, 1024])
def test_sizes_are_dense(seq_len):
    low = flops_per_token(shape(8, vocab_size=512, seq_len=seq_len))
    high = 1e12
    targets = [low * 1.02**i for i in range(2000) if low * 1.02**i < high]
    found = {shape_near(target, vocab_size=512, seq_len=seq_len) for target in targets}
    sizes = sorted((flops_per_token(config), config.d_model) for config in found)
    for (small, width), (large, _) in itertools.pairwise(sizes):
        assert large / small < (2.6 if width < 24 else 1.8 if width < 64 else 1.35), (width, small, large)
    assert sum(b[0] / a[0] <= 1.25 for a, b in itertools.pairwise(sizes)) > 0.95 * (len(sizes) - 1)


def test_known_shapes_are_members_of_the_family():
    small = shape_near(9.63e8, vocab_size=102400, seq_len=4096)
    large = shape_near(9.8e9, vocab_size=102400, seq_len=4096)
    assert (small.n_layers, small.d_model, small.d_head, small.d_ff) == (12, 768, 64, 2048)
    assert (large.n_layers, large.d_model, large.d_head, large.d_ff) == (24, 2048, 128, 5632)


def test_initial_weights_follow_the_paper_at_its_width():
    assert init_std_rule(4096) == init_std_rule(8192) == 0.006
    assert init_std_rule(1024) == 0.012
    assert shape_near(1e6, vocab_size=512, seq_len=64, init_std=0.02).init_std == 0.02


@pytest.mark.parametrize(("target", "way_out"), [(1e3, "raise the budget or shorten"), (1e14, "lower the budget")])
def test_a_size_outside_the_family_is_refused_with_the_nearest(target, way_out):
    with pytest.raises(RecipeError, match=rf"flops_per_token = .* has no shape near it .* nearest .* {way_out}") as no:
        shape_near(target, vocab_size=512, seq_len=128)
    named = float(str(no.value).partition(" works")[0].split()[-1])
    shape_near(named * (1.01 if named > target else 0.99), vocab_size=512, seq_len=128)
