"""config.json of the five families <-> ModelConfig, and the rules that keep the two from meaning different models.

Whatever a format cannot say is refused with the key, the value and a way out; nothing is silently left out. Keys that
change no number (dropout in training, parallelism hints) are ignored on the way in.

Source: released configuration files, and the code that reads them: transformers and the released reference code.
Where those two disagree, or with us, docs/interop.md has a table, and a test each.
"""

import math
from typing import Any

from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, YarnConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
PLAIN_EXPERTS = ("qwen2_moe", "deepseek")
"""Experts under plain attention, as DeepSeekMoE 16B: what transformers has a class for, and the released names."""
FP8_BLOCK = 128
LATENT_NORM_EPS = 1e-6
"""Of the two norms inside latent attention: fixed in the released code and in transformers, not read from configs."""


def derived_format(config: ModelConfig) -> str:
    """The family that a model belongs to."""
    if config.latent is None and config.experts is None:
        return "llama"
    if config.latent is None:
        return "qwen2_moe"
    return "deepseek_v2" if config.experts and config.experts.affinity == "softmax" else "deepseek_v3"


def check_fits(config: ModelConfig, format: str) -> None:
    """Raises RecipeError: the format cannot say this model."""

    def refuse(key: str, value: object, rule: str) -> None:
        raise RecipeError(f"model.{key} = {value}: the format {format} {rule}")

    if format not in ARCHITECTURES:
        raise RecipeError(f"--format {format} must be one of {', '.join(ARCHITECTURES)}")
    latent, experts = config.latent, config.experts
    if format == "llama":
        if latent is not None or experts is not None:
            refuse("latent" if latent else "experts", "set", "is dense with plain attention; leave --format out")
    elif format in PLAIN_EXPERTS:
        if latent is not None or experts is None:
            wrong = ("latent", "set") if latent else ("experts", "unset")
            refuse(*wrong, "has experts and plain attention; leave --format out")
        if config.d_head * config.n_heads != config.d_model:
            refuse("d_head", config.d_head, f"has heads of d_model / n_heads = {config.d_model / config.n_heads:g}")
    elif latent is None:
        refuse("latent", "unset", "has latent attention; leave --format out")
    elif config.norm_eps != LATENT_NORM_EPS:
        refuse("norm_eps", config.norm_eps, f"fixes {LATENT_NORM_EPS} in the latent norms; only that value is exact")
    if format != "deepseek_v3" and config.mtp_depth:
        refuse("mtp_depth", config.mtp_depth, "has no multi-token prediction; --drop-mtp leaves the modules out")
    if format != "deepseek_v3" and config.d_model % config.n_heads:
        refuse("d_model", config.d_model, f"is read by transformers only as a multiple of n_heads = {config.n_heads}")
    if experts is None:
        return
    if not experts.n_shared:
        refuse("experts.n_shared", 0, "always has shared experts; train with at least one to export")
    groups, kept = experts.n_groups, experts.n_groups_kept
    if format != "deepseek_v3":
        if experts.affinity != "softmax":
            better = "no format has sigmoid ones without [model.latent]" if latent is None else "use deepseek_v3"
            refuse("experts.affinity", experts.affinity, f"has softmax affinities; {better}")
        if experts.selection_bias:
            refuse("experts.selection_bias", "true", "has no selection bias, and none has it with softmax")
    if format in PLAIN_EXPERTS:
        if groups > 1:
            refuse("experts.n_groups", groups, "has no groups of experts")
        if experts.routed_scale != 1.0:
            refuse("experts.routed_scale", experts.routed_scale, "has no factor of the routed experts")
    if format == "deepseek_v2":
        if experts.normalise:
            refuse("experts.normalise", "true", "normalises in the released code only, and then without routed_scale")
        if groups > 1 and experts.group_score != "max":
            refuse("experts.group_score", experts.group_score, "scores a group by its best expert: max")
    if format == "deepseek_v3":
        if experts.affinity != "sigmoid":
            refuse("experts.affinity", experts.affinity, "has sigmoid affinities; use deepseek_v2")
        if groups > 1 and experts.group_score != "top_sum":
            refuse("experts.group_score", experts.group_score, "scores a group by its two best experts: top_sum")
        if groups > 1 and experts.n_active != 2 * kept:
            refuse(
                "experts.n_active",
                experts.n_active,
                f"scores a group by its two best experts, so n_active must be twice n_groups_kept = {kept}",
            )
        if experts.n_experts < 2 * groups:
            refuse("experts.n_experts", experts.n_experts, f"needs two experts in each of {groups} groups")


def to_config(config: ModelConfig, format: str, *, bos: int | None, eos: int | None, dtype: str) -> dict[str, Any]:
    """The content of config.json for a model that `check_fits`."""
    latent, experts = config.latent, config.experts
    tree: dict[str, Any] = {
        "architectures": [ARCHITECTURES[format]],
        "model_type": format,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_len,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _rope_scaling(config),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }
    if format == "llama":
        return {**tree, "head_dim": config.d_head, "mlp_bias": False}
    if experts is not None and format in PLAIN_EXPERTS:
        return tree | _plain_experts_tree(experts, format)
    assert latent is not None
    tree |= {
        "q_lora_rank": latent.d_q_latent or None,
        "kv_lora_rank": latent.d_kv_latent,
        "qk_nope_head_dim": latent.d_nope,
        "qk_rope_head_dim": latent.d_rope,
        "v_head_dim": latent.d_value,
        "first_k_dense_replace": experts.n_dense_layers if experts else config.n_layers + config.mtp_depth,
        "moe_layer_freq": 1,
    }
    if format == "deepseek_v3":
        tree |= {"num_nextn_predict_layers": config.mtp_depth, "rope_interleave": True}
    experts = experts or ExpertConfig(n_experts=2, n_active=1, d_expert=config.d_ff)  # named by no layer
    grouped = experts.n_groups > 1
    v3 = format == "deepseek_v3"
    return tree | {
        "n_routed_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_active,
        "moe_intermediate_size": experts.d_expert,
        "n_shared_experts": experts.n_shared,
        "n_group": experts.n_groups,
        "topk_group": experts.n_groups_kept,
        "topk_method": "noaux_tc" if v3 else "group_limited_greedy" if grouped else "greedy",
        "scoring_func": "sigmoid" if v3 else "softmax",
        "norm_topk_prob": experts.normalise if v3 else False,
        "routed_scaling_factor": experts.routed_scale,
    }


def _plain_experts_tree(experts: ExpertConfig, format: str) -> dict[str, Any]:
    tree = {
        "num_experts_per_tok": experts.n_active,
        "moe_intermediate_size": experts.d_expert,
        "norm_topk_prob": experts.normalise,
    }
    if format == "deepseek":
        return tree | {
            "n_routed_experts": experts.n_experts,
            "n_shared_experts": experts.n_shared,
            "first_k_dense_replace": experts.n_dense_layers,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
        }
    return tree | {
        "num_experts": experts.n_experts,
        "shared_expert_intermediate_size": experts.n_shared * experts.d_expert,
        "mlp_only_layers": list(range(experts.n_dense_layers)),
        "decoder_sparse_step": 1,
        "qkv_bias": True,
        "use_sliding_window": False,
    }


def from_config(tree: dict[str, Any]) -> tuple[str, ModelConfig]:
    """Family and sizes of a config.json.

    Raises:
        CheckpointError: an architecture, a key or a value that our model does not have.
    """
    read = _Reader(tree)
    rope = read.rope()
    named = tree.get("architectures") or []
    by_name = {name: format for format, name in ARCHITECTURES.items()}
    if not isinstance(named, list) or len(named) != 1 or named[0] not in by_name:
        raise CheckpointError(
            f"config.json: architectures = {named!r} is none that can be imported; those are {', '.join(by_name)}"
        )
    format = by_name[named[0]]
    read.only("hidden_act", "silu", default="silu")
    read.only("attention_bias", False, default=False)
    read.only("mlp_bias", False, default=False)
    read.only("quantization_config.quant_method", "fp8", default="fp8")
    n_heads, d_model = read.count("num_attention_heads"), read.count("hidden_size")
    sizes: dict[str, Any] = {
        "n_layers": read.count("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": read.count("num_key_value_heads", default=n_heads),
        "d_ff": read.count("intermediate_size"),
        "vocab_size": read.count("vocab_size"),
        "seq_len": read.count("max_position_embeddings"),
        "norm_eps": read.number("rms_norm_eps", default=1e-6),
        "rope_base": float(rope.get("rope_theta") or read.number("rope_theta", default=10000.0)),
        "init_std": read.number("initializer_range", default=0.02) or 0.02,
    }
    plain = format == "llama" or format in PLAIN_EXPERTS
    if plain:
        sizes["d_head"] = read.count("head_dim", default=d_model // n_heads)
        if format in PLAIN_EXPERTS:
            sizes["experts"] = _plain_experts(read, format)
    else:
        sizes |= _latent(read, sizes, format)
    sizes["yarn"] = _yarn(rope, plain=plain)
    try:
        config = ModelConfig(**sizes)
        check_fits(config, format)
    except RecipeError as error:
        raise CheckpointError(f"config.json describes a model that isoflop does not have: {error}") from error
    return format, config


class _Reader:
    """Typed access to config.json or a table of it, each refusal with key, value and rule."""

    def __init__(self, tree: dict[str, Any], prefix: str = ""):
        self.tree, self._prefix = tree, prefix

    def rope(self) -> "_Reader":
        rope = self.tree.get("rope_parameters") or self.tree.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise CheckpointError(f"config.json: rope_scaling = {rope!r} must be a table or null")
        return _Reader(rope, "rope_scaling.")

    def get(self, key: str, default: Any = None) -> Any:
        value: Any = self.tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise CheckpointError(f"config.json: {key} = {value!r} must be a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckpointError(f"config.json: {self._prefix}{key} = {value!r} must be a number")
        return float(value)

    def only(self, key: str, wanted: object, default: object) -> None:
        if (value := self.get(key, default)) != wanted:
            raise CheckpointError(f"config.json: {key} = {value!r}; only {wanted!r} can be imported")


def _plain_experts(read: _Reader, format: str) -> ExpertConfig:
    d_expert = read.count("moe_intermediate_size")
    if format == "deepseek":
        read.only("moe_layer_freq", 1, default=1)
        read.only("scoring_func", "softmax", default="softmax")
        n_experts, n_shared = read.count("n_routed_experts"), read.count("n_shared_experts", default=0, least=0)
        dense = read.count("first_k_dense_replace", default=0, least=0)
    else:
        for key, wanted in (("qkv_bias", True), ("use_sliding_window", False), ("decoder_sparse_step", 1)):
            read.only(key, wanted, default=wanted)
        n_experts, shared = read.count("num_experts"), read.count("shared_expert_intermediate_size", least=0)
        if shared % d_expert:
            raise CheckpointError(
                f"config.json: shared_expert_intermediate_size = {shared} must be a multiple of moe_intermediate_size "
                f"= {d_expert}: shared experts here have the width of the routed ones"
            )
        listed = read.get("mlp_only_layers", [])
        n_shared, dense = shared // d_expert, len(listed) if isinstance(listed, list) else 0
        read.only("mlp_only_layers", list(range(dense)), default=[])
    return ExpertConfig(
        n_experts=n_experts,
        n_active=read.count("num_experts_per_tok"),
        d_expert=d_expert,
        n_shared=n_shared,
        n_dense_layers=dense,
        affinity="softmax",
        normalise=bool(read.get("norm_topk_prob", False)),
        selection_bias=False,
        group_score="max",
    )


def _latent(read: _Reader, sizes: dict[str, Any], format: str) -> dict[str, Any]:
    v3 = format == "deepseek_v3"
    read.only("moe_layer_freq", 1, default=1)
    if v3:
        read.only("rope_interleave", True, default=True)
    latent = LatentConfig(
        d_kv_latent=read.count("kv_lora_rank"),
        d_nope=read.count("qk_nope_head_dim"),
        d_rope=read.count("qk_rope_head_dim"),
        d_value=read.count("v_head_dim"),
        d_q_latent=read.count("q_lora_rank", default=0, least=0),
    )
    dense = read.count("first_k_dense_replace", default=0, least=0)
    experts = _experts(read, dense, v3) if dense < sizes["n_layers"] else None
    depth = read.count("num_nextn_predict_layers", default=0, least=0) if v3 else 0
    d_head = latent.d_nope + latent.d_rope
    return {"latent": latent, "experts": experts, "mtp_depth": depth, "d_head": d_head, "n_kv_heads": sizes["n_heads"]}


def _experts(read: _Reader, dense: int, v3: bool) -> ExpertConfig:
    groups = read.count("n_group", default=1)
    if v3:
        read.only("scoring_func", "sigmoid", default="sigmoid")
        read.only("topk_method", "noaux_tc", default="noaux_tc")
    else:
        read.only("scoring_func", "softmax", default="softmax")
        method = read.get("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy"):
            raise CheckpointError(
                f"config.json: topk_method = {method!r}; a DeepseekV2ForCausalLM has greedy or group_limited_greedy"
            )
        groups = groups if method == "group_limited_greedy" else 1
    return ExpertConfig(
        n_experts=read.count("n_routed_experts"),
        n_active=read.count("num_experts_per_tok"),
        d_expert=read.count("moe_intermediate_size"),
        n_shared=read.count("n_shared_experts", default=0, least=0),
        n_dense_layers=dense,
        affinity="sigmoid" if v3 else "softmax",
        normalise=bool(read.get("norm_topk_prob", v3)),
        routed_scale=read.number("routed_scaling_factor", default=2.5 if v3 else 1.0),
        selection_bias=v3,
        n_groups=groups,
        n_groups_kept=read.count("topk_group", default=1) if groups > 1 else 1,
        group_score="top_sum" if v3 else "max",
    )


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    yarn = config.yarn
    if yarn is None:
        return None
    tree: dict[str, Any] = {
        "type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_seq_len,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
    }
    if config.latent is not None and yarn.mscale:
        return {**tree, "mscale_all_dim": yarn.mscale}
    # cos and sin carry the factor of plain attention, whose channels are all rotary; without a latent that is the same
    # as a factor on the softmax scale. For latent attention without one the factor must be said to be 1.
    return {**tree, "mscale_all_dim": 0.0, "attention_factor": _temperature(yarn.factor, yarn.mscale)}


def _temperature(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(rope: _Reader, plain: bool) -> YarnConfig | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None

    if kind != "yarn" or rope.tree.get("truncate", True) is not True:
        raise CheckpointError(f"config.json: rope_scaling = {rope.tree!r}; only yarn with whole bounds can be imported")
    factor, original = rope.number("factor"), rope.number("original_max_position_embeddings")
    mscale, everywhere = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    # what cos and sin are multiplied by, as transformers reads it
    if rope.get("attention_factor") is not None:
        on_channels = rope.number("attention_factor")
    elif mscale and everywhere:
        on_channels = _temperature(factor, mscale) / _temperature(factor, everywhere)
    else:
        on_channels = _temperature(factor, 1.0)
    if plain:  # the factor on cos and sin is our factor on the softmax scale; mscale_all_dim means nothing there
        if factor > 1 and not math.isclose(_temperature(factor, mscale), on_channels, rel_tol=1e-9):
            mscale = (on_channels - 1.0) / (0.1 * math.log(factor))
    else:
        if not math.isclose(on_channels, 1.0, rel_tol=1e-9):
            raise CheckpointError(
                f"config.json: rope_scaling has mscale = {mscale}, mscale_all_dim = {everywhere}: that scales the "
                f"rotary channels by {on_channels:.6g}; only models whose two values are equal can be imported"
            )
        mscale = everywhere
    return YarnConfig(
        factor=factor,
        original_seq_len=int(original),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=mscale,
    )
