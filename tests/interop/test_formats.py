"""config.json: there and back without loss, as released, and refused where it means a model that we don't have."""

import copy
from dataclasses import replace

import pytest
from interop_models import FAMILIES, V3

from isoflop.errors import CheckpointError, RecipeError
from isoflop.interop.formats import ARCHITECTURES, check_fits, derived_format, from_config, to_config
from isoflop.model.config import ModelConfig, YarnConfig

RELEASED_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""Keys and values as released (facts of the file)."""


def written(name: str, **changes):
    config = FAMILIES[name]
    tree = to_config(config, derived_format(config), bos=0, eos=1, dtype="float32")
    for key, value in changes.items():
        if value is None:
            tree.pop(key, None)
        else:
            tree[key] = value
    return tree


def comparable(config: ModelConfig) -> ModelConfig:
    """Without what names nothing: the width of the dense layers where there are none stays, init_std is ours."""
    if config.experts and config.experts.n_groups == 1:
        score = "top_sum" if config.experts.affinity == "sigmoid" else "max"  # of a single group: nothing
        return replace(config, experts=replace(config.experts, group_score=score))
    return config


@pytest.mark.parametrize("name", ["moe", "moe_gqa_yarn"])
def test_the_released_names_of_experts_under_plain_attention_come_back(name):
    tree = to_config(FAMILIES[name], "deepseek", bos=0, eos=1, dtype="float32")
    assert tree["architectures"] == ["DeepseekForCausalLM"] and tree["model_type"] == "deepseek"
    assert from_config(tree) == ("deepseek", comparable(FAMILIES[name]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_comes_back_as_it_was(name):
    tree = written(name)
    format, found = from_config(tree)
    assert format == derived_format(FAMILIES[name]) and tree["architectures"] == [ARCHITECTURES[format]]
    assert found == comparable(FAMILIES[name])


def test_the_released_v3_config_is_our_v3():
    format, found = from_config(RELEASED_V3)
    assert format == "deepseek_v3"
    assert found == replace(V3, yarn=YarnConfig(40.0, 4096), init_std=0.02)


def test_our_v3_config_says_what_the_released_one_says():
    config = replace(V3, yarn=YarnConfig(40.0, 4096), init_std=0.02)
    found = to_config(config, "deepseek_v3", bos=0, eos=1, dtype="bfloat16")
    expected = {k: v for k, v in RELEASED_V3.items() if k not in ("quantization_config", "ep_size")}
    assert {key: found[key] for key in expected} == expected


def test_newer_files_that_write_rope_parameters_are_read():
    tree = written("dense_yarn")
    newer = {**tree, "rope_parameters": {**tree.pop("rope_scaling"), "rope_type": "yarn", "rope_theta": 7000.0}}
    newer["rope_parameters"].pop("type")
    newer.pop("rope_theta")
    _, found = from_config(newer)
    assert found == replace(FAMILIES["dense_yarn"], rope_base=7000.0)


def test_a_temperature_that_only_attention_factor_states_is_kept():
    tree = written("dense_yarn")
    tree["rope_scaling"] = {k: v for k, v in tree["rope_scaling"].items() if "mscale" not in k}
    _, found = from_config(tree)
    assert found.softmax_scale() == pytest.approx(FAMILIES["dense_yarn"].softmax_scale(), rel=1e-12)
    del tree["rope_scaling"]["attention_factor"]  # transformers then takes 0.1 ln(factor) + 1
    assert from_config(tree)[1].yarn.mscale == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("mha", {"architectures": ["MistralForCausalLM"]}, "architectures = .*MistralForCausalLM.* LlamaForCausalLM"),
        ("mha", {"architectures": None}, "architectures = "),
        ("mha", {"hidden_act": "gelu"}, "hidden_act = 'gelu'; only 'silu'"),
        ("mha", {"attention_bias": True}, "attention_bias = True"),
        ("mha", {"mlp_bias": True}, "mlp_bias = True"),
        ("mha", {"hidden_size": "48"}, "hidden_size = '48' must be a whole number"),
        ("mha", {"vocab_size": None}, "vocab_size = None must be a whole number"),
        *[
            ("mha", {"max_position_embeddings": value}, f"max_position_embeddings = {value!r} must be a whole number")
            for value in (0, -1, 4096.5, "4096")
        ],
        ("mha", {"max_position_embeddings": 10**12}, "config.json .*seq_len = 1000000000000 must be .*100,000,000"),
        ("mha", {"num_key_value_heads": 3}, "n_kv_heads = 3 must divide"),
        ("mha", {"rms_norm_eps": "small"}, "rms_norm_eps = 'small' must be a number"),
        ("mha", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "only yarn with whole bounds"),
        ("mha", {"rope_scaling": [1]}, "rope_scaling = .* must be a table"),
        ("v3", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor = None must be a number"),
        ("v3", {"moe_layer_freq": 2}, "moe_layer_freq = 2; only 1"),
        ("v3", {"scoring_func": "softmax"}, "scoring_func = 'softmax'; only 'sigmoid'"),
        ("v3", {"topk_method": "greedy"}, "topk_method = 'greedy'; only 'noaux_tc'"),
        ("v3", {"rope_interleave": False}, "rope_interleave = False"),
        ("v3", {"num_experts_per_tok": 6}, "n_active = 6: .* twice n_groups_kept = 2"),
        ("v3", {"n_group": 3}, "n_groups = 3 must divide"),
        ("v3", {"rms_norm_eps": 1e-5}, "norm_eps = 1e-05: .* fixes 1e-06 in the latent norms"),
        ("v2", {"norm_topk_prob": True}, "normalise = true"),
        ("v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc'"),
        ("v2", {"n_shared_experts": None}, "n_shared = 0: .* always has shared experts"),
        ("moe", {"qkv_bias": False}, "qkv_bias = False; only True"),
        ("moe", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]; only \[0\]"),
        ("moe", {"shared_expert_intermediate_size": 30}, "shared_expert_intermediate_size = 30 must be a multiple"),
        ("moe", {"head_dim": 20}, "d_head = 20: .* heads of d_model / n_heads = 12"),
    ],
)
def test_what_would_be_another_model_is_refused(name, changes, message):
    with pytest.raises(CheckpointError, match=message):
        from_config(written(name, **changes))


@pytest.mark.parametrize("change", [{"mscale": 0.5}, {"mscale_all_dim": 0.0}, {"attention_factor": 1.2}])
def test_scaled_rotary_channels_of_latent_attention_are_refused(change):
    tree = copy.deepcopy(written("v3"))
    tree["rope_scaling"].update(change)
    with pytest.raises(CheckpointError, match=r"scales the rotary channels by"):
        from_config(tree)


def experts(name, **changes):
    config = FAMILIES[name]
    return replace(config, experts=replace(config.experts, **changes))


@pytest.mark.parametrize(
    "config, format, message",
    [
        (FAMILIES["mha"], "deepseek_v3", "model.latent = unset: the format deepseek_v3"),
        (FAMILIES["v3"], "llama", "model.latent = set: the format llama"),
        (FAMILIES["v3"], "gguf", "--format gguf must be one of llama"),
        (FAMILIES["v3"], "deepseek_v2", "mtp_depth = 1: .*--drop-mtp"),
        (replace(FAMILIES["mha"], mtp_depth=1), "llama", "mtp_depth = 1: .*--drop-mtp"),
        (replace(FAMILIES["v3"], mtp_depth=0), "deepseek_v2", "affinity = sigmoid"),
        (FAMILIES["v2"], "deepseek_v3", "affinity = softmax"),
        (experts("v2", selection_bias=True), "deepseek_v2", "selection_bias = true"),
        (experts("v2", normalise=True), "deepseek_v2", "normalise = true"),
        (experts("v2", group_score="top_sum", n_active=2), "deepseek_v2", "group_score = top_sum"),
        (experts("v3", group_score="max"), "deepseek_v3", "group_score = max"),
        (experts("v3", n_active=2), "deepseek_v3", "n_active = 2: .* twice n_groups_kept = 2"),
        (experts("v3", n_shared=0), "deepseek_v3", "n_shared = 0"),
        (replace(FAMILIES["v3"], norm_eps=1e-5), "deepseek_v3", "norm_eps = 1e-05"),
        (FAMILIES["v2"], "qwen2_moe", "latent = set: .* plain attention"),
        (FAMILIES["mha"], "deepseek", "experts = unset: .* has experts"),
        (experts("moe", affinity="sigmoid"), "qwen2_moe", "affinity = sigmoid: .* no format has sigmoid ones"),
        (experts("moe", routed_scale=2.0), "deepseek", "routed_scale = 2.0"),
        (experts("moe", n_groups=2, n_groups_kept=1), "qwen2_moe", "n_groups = 2"),
        (replace(FAMILIES["wide_heads"], d_model=50), "llama", "d_model = 50: .* multiple of n_heads = 3"),
    ],
)
def test_what_a_format_cannot_say_is_refused(config, format, message):
    with pytest.raises(RecipeError, match=message):
        check_fits(config, format)
