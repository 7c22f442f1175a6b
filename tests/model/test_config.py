"""Sizes that make no model are refused by name."""

import pytest

from isoflop.errors import RecipeError
from isoflop.model.config import ModelConfig, swiglu_width

SIZES = {
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": 8,
    "d_ff": 88,
    "vocab_size": 64,
    "seq_len": 16,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_kv_heads": 3}, ["model.n_kv_heads = 3", "must divide", "n_heads = 4", "n_kv_heads = n_heads"]),
        ({"d_head": 7}, ["model.d_head = 7", "even"]),
        ({"n_layers": 0}, ["model.n_layers = 0", "at least 1"]),
        ({"init_std": 0.0}, ["model.init_std = 0.0", "0.006"]),
    ],
)
def test_impossible_sizes_name_key_value_and_rule(change, words):
    with pytest.raises(RecipeError) as caught:
        ModelConfig(**{**SIZES, **change})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("d_model", "d_ff"), [(4096, 11008), (8192, 22016)])
def test_swiglu_width_gives_the_released_widths(d_model, d_ff):
    assert swiglu_width(d_model) == d_ff
