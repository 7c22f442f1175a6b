"""Sizes that make no model are refused by name."""

import pytest

from isoflop.errors import RecipeError
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, YarnConfig, swiglu_width

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


LATENT = {"d_kv_latent": 8, "d_nope": 4, "d_rope": 4, "d_value": 4}
EXPERTS = {"n_experts": 8, "n_active": 4, "d_expert": 8}
YARN = {"factor": 4.0, "original_seq_len": 4}


def with_parts(latent=None, experts=None, yarn=None, **sizes):
    return ModelConfig(
        **{**SIZES, "n_kv_heads": 4, **sizes},
        latent=None if latent is None else LatentConfig(**{**LATENT, **latent}),
        experts=None if experts is None else ExpertConfig(**{**EXPERTS, **experts}),
        yarn=None if yarn is None else YarnConfig(**{**YARN, **yarn}),
    )


def test_the_parts_alone_and_together_make_models():
    made = with_parts(latent={}, experts={}, yarn={}, mtp_depth=1)
    assert (made.d_rotary, made.d_value, made.n_expert_layers) == (4, 4, 1)
    assert made.experts_of(0) is None and made.experts_of(1) == made.experts
    assert with_parts().d_rotary == with_parts().d_value == 8
    assert with_parts(latent={"d_nope": 5}, d_head=9).d_rotary == 4


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"latent": {"d_rope": 3}, "d_head": 7}, ["model.latent.d_rope = 3", "even"]),
        ({"latent": {"d_value": 0}}, ["model.latent.d_value = 0", "at least 1"]),
        ({"latent": {"d_q_latent": -1}}, ["model.latent.d_q_latent = -1", "at least 0"]),
        ({"latent": {}, "d_head": 12}, ["model.d_head = 12", "d_nope + model.latent.d_rope = 8"]),
        ({"latent": {}, "n_kv_heads": 2}, ["model.n_kv_heads = 2", "n_heads = 4", "d_kv_latent"]),
        ({"experts": {"n_active": 9}}, ["model.experts.n_active = 9", "n_experts = 8"]),
        ({"experts": {"d_expert": 0}}, ["model.experts.d_expert = 0", "at least 1"]),
        ({"experts": {"n_shared": -1}}, ["model.experts.n_shared = -1", "at least 0"]),
        ({"experts": {"n_dense_layers": 2}}, ["model.experts.n_dense_layers = 2", "n_layers = 2", "leave"]),
        ({"experts": {"n_groups": 3}}, ["model.experts.n_groups = 3", "divide", "n_experts = 8"]),
        ({"experts": {"n_groups": 2, "n_groups_kept": 4}}, ["n_groups_kept = 4", "n_groups = 2"]),
        ({"experts": {"n_groups": 4, "n_groups_kept": 1}}, ["n_groups_kept = 1", "hold 2 experts", "n_active = 4"]),
        (
            {"experts": {"n_groups": 4, "n_groups_kept": 3}},
            ["n_active = 4", "n_groups_kept = 3", 'group_score = "max"'],
        ),
        ({"experts": {"routed_scale": 0.0}}, ["model.experts.routed_scale = 0.0", "above 0"]),
        ({"yarn": {"factor": 1.0}}, ["model.yarn.factor = 1.0", "above 1"]),
        ({"yarn": {"original_seq_len": 16}}, ["model.yarn.original_seq_len = 16", "model.seq_len = 16", "leave"]),
        ({"yarn": {"beta_fast": 0.5}}, ["model.yarn.beta_slow = 1.0", "beta_fast = 0.5", "1 and 32"]),
        ({"yarn": {"mscale": -1.0}}, ["model.yarn.mscale = -1.0", "0"]),
        ({"mtp_depth": -1}, ["model.mtp_depth = -1", "at least 0"]),
        ({"mtp_depth": 16}, ["model.mtp_depth = 16", "model.seq_len = 16"]),
    ],
)
def test_impossible_parts_name_key_value_and_rule(parts, words):
    with pytest.raises(RecipeError) as caught:
        with_parts(**parts)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("d_model", "d_ff"), [(4096, 11008), (8192, 22016)])
def test_swiglu_width_gives_the_released_widths(d_model, d_ff):
    assert swiglu_width(d_model) == d_ff
