"""Counting from sizes equals counting the real modules, PyTorch's FLOP counter and the published numbers."""

import dataclasses
import os
import subprocess
import sys
import tomllib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop.errors import RecipeError
from isoflop.model import accounting
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.pages import PAGE
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree

DEEPSEEK_7B = ModelConfig(30, 4096, 32, 32, 128, 11008, 102400, 4096)
DEEPSEEK_67B = ModelConfig(95, 8192, 64, 8, 128, 22016, 102400, 4096)
SMALL_GQA = ModelConfig(3, 64, 4, 2, 16, 176, 512, 128)
HEADS_WIDER_THAN_MODEL = ModelConfig(2, 48, 4, 1, 16, 100, 300, 32)
RECIPES = ROOT / "recipes" / "pretrain"

SOFTMAX = ExpertConfig(8, 2, 48, n_shared=2, affinity="softmax", normalise=False, selection_bias=False)
SIGMOID = ExpertConfig(16, 4, 32, n_groups=4, n_groups_kept=2, n_dense_layers=2)
# Heads of 16 channels for keys and for values: only then has the CPU an attention kernel that keeps no scores.
SMALL_MLA = ModelConfig(3, 64, 4, 4, 16, 176, 512, 128, latent=LatentConfig(24, 8, 8, 16, d_q_latent=40))
SMALL_V2 = dataclasses.replace(SMALL_MLA, latent=LatentConfig(24, 8, 8, 16), experts=SOFTMAX)
SMALL_V3 = dataclasses.replace(SMALL_MLA, experts=SIGMOID, mtp_depth=2)
SMALL_MOE = dataclasses.replace(SMALL_GQA, experts=SIGMOID)
MIXTURES = {"mla": SMALL_MLA, "v2": SMALL_V2, "v3": SMALL_V3, "moe-gqa": SMALL_MOE}


def published(name: str) -> ModelConfig:
    tree = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    return from_tree(tree["model"], ModelConfig, "model.")


@pytest.mark.parametrize(
    ("config", "total", "non_embedding"),
    [(DEEPSEEK_7B, 6_910_365_696, 6_071_504_896), (DEEPSEEK_67B, 67_425_001_472, 65_747_279_872)],
)
def test_parameters_of_the_published_models_are_exact(config, total, non_embedding):
    count = accounting.count_parameters(config)
    assert (count.n_params_total, count.n_params_non_embedding) == (total, non_embedding)


@pytest.mark.parametrize("config", [DEEPSEEK_7B, DEEPSEEK_67B, SMALL_GQA, HEADS_WIDER_THAN_MODEL])
def test_counted_parameters_equal_the_modules_on_the_meta_device(config):
    with torch.device("meta"):
        model = Transformer(config)
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    tables = sizes["embedding.weight"] + sizes["head.weight"]
    norms = sum(size for name, size in sizes.items() if name.endswith("norm.weight"))
    count = accounting.count_parameters(config)
    assert count.n_params_total == sum(sizes.values())
    assert count.n_params_non_embedding == sum(sizes.values()) - tables
    assert count.n_params_matmul == sum(sizes.values()) - tables - norms


@pytest.mark.parametrize(
    ("name", "total", "active", "stated_active", "kv_values"),
    [
        ("deepseek_moe_16b", 16_375_728_128, 2_828_650_496, 2.8e9, 28 * 2 * 2048),
        ("deepseek_v2_lite", 15_706_484_224, 2_661_150_208, None, 27 * 576),
        ("deepseek_v2", 235_741_434_880, 21_375_800_320, 21e9, 60 * 576),
        ("deepseek_v3", 671_026_419_200, 37_552_297_472, 37e9, 61 * 576),
    ],
)
def test_parameters_of_the_published_mixtures_are_exact(name, total, active, stated_active, kv_values):
    config = published(name)
    count = accounting.count_parameters(config)
    assert (count.n_params_total, count.n_params_active) == (total, active)
    if stated_active is None:  # V2-Lite's 2.4B and V3's 36.7B leave the input embedding out
        assert active - count.n_params_embedding == pytest.approx(2.4e9, rel=0.03)
    else:
        assert active == pytest.approx(stated_active, rel=0.025)
    assert accounting.kv_bytes_per_token(config) == 2 * kv_values
    with torch.device("meta"):
        model = Transformer(config)
    state = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    assert sum(size for name, size in state.items() if not name.startswith("mtp.")) == total
    assert sum(size for name, size in state.items() if name.startswith("mtp.")) == count.n_params_mtp


def test_v3_counts_are_those_of_the_weight_notes():
    count = accounting.count_parameters(published("deepseek_v3"))
    assert count.n_params_active - count.n_params_embedding == pytest.approx(36.63e9, rel=1e-3)
    assert count.n_params_mtp == pytest.approx(11.61e9, rel=1e-3)
    with_tables = count.n_params_mtp + count.n_params_embedding + count.n_params_head
    assert count.n_params_total + with_tables == pytest.approx(685e9, rel=1e-3)  # the released checkpoint


@pytest.mark.parametrize("config", MIXTURES.values(), ids=MIXTURES)
def test_counts_of_small_mixtures_equal_their_modules(config):
    state = {name: tensor.numel() for name, tensor in Transformer(config).state_dict().items()}
    main = {name: size for name, size in state.items() if not name.startswith("mtp.")}
    norms = sum(size for name, size in main.items() if name.endswith("norm.weight"))
    biases = sum(size for name, size in main.items() if name.endswith("router.bias"))
    count, experts = accounting.count_parameters(config), config.experts
    assert count.n_params_total == sum(main.values())
    assert count.n_params_mtp == sum(state.values()) - sum(main.values())
    assert count.n_params_norm == norms
    tables = main["embedding.weight"] + main["head.weight"]
    assert count.n_params_matmul == sum(main.values()) - norms - biases - tables
    routed = sum(size for name, size in main.items() if ".mlp.experts." in name)
    idle = routed * (experts.n_experts - experts.n_active) // experts.n_experts if experts else 0
    assert count.n_params_active == count.n_params_total - idle
    assert count.n_params_matmul_active == count.n_params_matmul - idle


def test_one_expert_of_the_dense_width_costs_the_dense_model_and_its_router():
    experts = ExpertConfig(1, 1, SMALL_GQA.d_ff, n_shared=0, n_dense_layers=0, selection_bias=False)
    one = dataclasses.replace(SMALL_GQA, experts=experts)
    router = SMALL_GQA.n_layers * SMALL_GQA.d_model
    for convention in ("M", "exact", "causal"):
        difference = accounting.flops_per_token(one, convention) - accounting.flops_per_token(SMALL_GQA, convention)
        assert difference == 6 * router
    assert accounting.count_parameters(one).n_params_total - router == (
        accounting.count_parameters(SMALL_GQA).n_params_total
    )


TABLE_3 = [  # n, d, N1, N2, M, 6 N1 / M, 6 N2 / M at V = 102400, s = 4096
    (8, 512, 25.2e6, 77.6e6, 352e6, 0.43, 1.32),
    (12, 768, 84.9e6, 164e6, 963e6, 0.53, 1.02),
    (24, 1024, 302e6, 407e6, 3.02e9, 0.60, 0.81),
    (24, 2048, 1.21e9, 1.42e9, 9.66e9, 0.75, 0.88),
    (32, 4096, 6.44e9, 6.86e9, 45.1e9, 0.857, 0.91),  # the paper prints 0.85; exact arithmetic gives 0.857
    (40, 5120, 12.6e9, 13.1e9, 85.6e9, 0.88, 0.92),
    (80, 8192, 64.4e9, 65.3e9, 419e9, 0.92, 0.94),
]


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: f"{row[0]}x{row[1]}")
def test_formulas_reproduce_table_3_of_the_paper(row):
    n, d, n1, n2, m, ratio_1, ratio_2 = row
    config = ModelConfig(n, d, d // 64, d // 64, 64, 8 * d // 3, 102400, 4096)
    flops = accounting.flops_by_convention(config)
    assert flops["6N1"] / 6 == pytest.approx(n1, rel=5e-3)
    assert flops["6N2"] / 6 == pytest.approx(n2, rel=5e-3)
    assert flops["M_formula"] == pytest.approx(m, rel=5e-3)
    assert flops["6N1"] / flops["M_formula"] == pytest.approx(ratio_1, abs=0.005)
    assert flops["6N2"] / flops["M_formula"] == pytest.approx(ratio_2, abs=0.006)


def test_counted_m_of_67b_is_below_the_formula_because_of_gqa():
    assert accounting.flops_per_token(DEEPSEEK_67B, "M") == pytest.approx(4.327e11, rel=2e-4)
    assert accounting.flops_per_token(DEEPSEEK_67B, "M_formula") == pytest.approx(4.973e11, rel=2e-4)
    assert accounting.flops_per_token(DEEPSEEK_7B, "M_formula") == pytest.approx(4.228e10, rel=2e-4)


@given(st.integers(1, 20), st.sampled_from([64, 128, 768]), st.integers(16, 4096))
def test_counted_m_equals_the_formula_where_its_assumptions_hold(n, tenths, seq_len):
    d = 3 * tenths
    config = ModelConfig(n, d, 3, 3, tenths, 8 * d // 3, 1000, seq_len)
    assert accounting.flops_per_token(config, "M") == accounting.flops_per_token(config, "M_formula")


@settings(max_examples=6)
@given(st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.sampled_from([8, 16]), st.integers(9, 33))
def test_exact_flops_equal_pytorchs_counter(n_layers, heads, d_head, seq_len):
    config = ModelConfig(n_layers, 48, *heads, d_head, 80, 96, seq_len)
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    tokens_BT = torch.randint(0, config.vocab_size, (2, seq_len))
    # Flash kernels recompute scores in the backward pass and count it; the plain kernel counts the products once.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss_sum(tokens_BT, tokens_BT).backward()
    assert counter.get_total_flops() == accounting.flops_per_token(config, "exact") * tokens_BT.numel()


@pytest.mark.parametrize("config", MIXTURES.values(), ids=MIXTURES)
def test_exact_flops_of_mixtures_equal_pytorchs_counter(config):
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    tokens_BT = torch.randint(0, config.vocab_size, (2, config.seq_len))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = model.losses(tokens_BT, tokens_BT)
        sum([found.nats, *found.mtp_nats]).backward()
    counted = counter.get_total_flops()
    n_tokens, seq_len = tokens_BT.numel(), config.seq_len
    without = dataclasses.replace(config, mtp_depth=0)
    expected = accounting.flops_per_token(without, "exact") * n_tokens
    for depth in range(1, config.mtp_depth + 1):  # depth k leaves out k positions, the formula does not
        left = seq_len - depth
        one = dataclasses.replace(config, mtp_depth=1)
        module = accounting.flops_per_token(one, "exact", left) - accounting.flops_per_token(without, "exact", left)
        expected += module * 2 * left
    assert counted == expected


def test_absorbed_decoding_costs_what_pytorch_counts():
    config = dataclasses.replace(SMALL_V2, seq_len=40)
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    cache = model.new_cache(1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.logits(torch.zeros(1, 39, dtype=torch.long), cache)
        with FlopCounterMode(display=False) as counter:
            model.logits(torch.zeros(1, 1, dtype=torch.long), cache)
    assert counter.get_total_flops() == accounting.forward_flops_per_token(config, 40)
    assert counter.get_total_flops() == accounting.inspect(config)["decode_flops_per_token"]


def test_m_leaves_prediction_modules_out_and_exact_counts_them():
    without = dataclasses.replace(SMALL_V3, mtp_depth=0)
    for convention in accounting.FLOPS_CONVENTIONS:
        extra = accounting.flops_per_token(SMALL_V3, convention) - accounting.flops_per_token(without, convention)
        assert (extra > 0) == (convention in ("exact", "causal")), convention


def test_conventions_differ_by_what_they_name():
    flops = accounting.flops_by_convention(SMALL_GQA)
    count = accounting.count_parameters(SMALL_GQA)
    head, attention = 6 * 64 * 512, 12 * 3 * 64 * 128
    assert flops["exact"] - flops["M"] == head
    assert flops["exact"] - flops["causal"] == attention // 2
    assert flops["M"] - attention == 6 * count.n_params_matmul
    assert flops["6N_total"] - flops["6N_non_embedding"] == 2 * head
    assert set(flops) == set(accounting.FLOPS_CONVENTIONS)
    assert accounting.flops_per_token(SMALL_GQA, "M", seq_len=64) == flops["M"] - attention // 2


def test_forward_flops_are_a_third_of_a_training_token():
    trained = accounting.flops_per_token(SMALL_GQA, "exact")
    assert 3 * accounting.forward_flops_per_token(SMALL_GQA, SMALL_GQA.seq_len) == trained


def test_kv_bytes_equal_the_cache_that_decoding_allocates():
    model = Transformer(SMALL_GQA, torch.bfloat16)
    held = sum(pages.nbytes for pages in model.new_cache(1, 100).layers)
    assert held == 3 * PAGE * accounting.kv_bytes_per_token(SMALL_GQA, "bf16")
    assert accounting.kv_bytes_per_token(DEEPSEEK_67B) == 2 * 95 * 8 * 128 * 2


def test_kv_bytes_of_latent_attention_equal_the_cache_that_decoding_allocates():
    model = Transformer(SMALL_V3, torch.bfloat16)
    held = sum(pages.nbytes for pages in model.new_cache(1, 100).layers)
    assert held == 3 * PAGE * accounting.kv_bytes_per_token(SMALL_V3, "bf16")
    assert accounting.kv_bytes_per_token(published("deepseek_v3")) == 2 * 61 * 576


@pytest.mark.parametrize("config", [SMALL_GQA, SMALL_V2, SMALL_V3], ids=["gqa", "v2", "v3"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_decode_bytes_of_one_sequence_are_those_of_the_tensors_it_reads(config, precision, dtype):
    model = Transformer(config, dtype)
    model.cast_once()
    state = {name: t for name, t in model.state_dict().items() if not name.startswith(("mtp.", "embedding."))}
    read = sum(tensor.nbytes for tensor in state.values()) + model.embedding.weight[0].nbytes
    if config.experts is not None:  # a token reads its own experts only
        routed = sum(tensor.nbytes for name, tensor in state.items() if ".mlp.experts." in name)
        read -= routed - routed * config.experts.n_active // config.experts.n_experts
    held = sum(pages.nbytes for pages in model.new_cache(1, PAGE).layers) // 2  # the other page is nobody's
    assert accounting.decode_bytes(config, 1, PAGE, precision) == read + held


def test_decode_bytes_of_a_batch_count_the_experts_that_some_token_uses():
    experts = SMALL_V3.experts
    assert experts is not None
    generator = torch.Generator().manual_seed(0)
    hit = [
        len(
            {
                int(e)
                for _ in range(5)
                for e in torch.randperm(experts.n_experts, generator=generator)[: experts.n_active]
            }
        )
        for _ in range(2000)
    ]
    one = SMALL_V3.n_expert_layers * 3 * SMALL_V3.d_model * experts.d_expert * 2
    growth = (
        accounting.decode_bytes(SMALL_V3, 5, 0) - accounting.decode_bytes(SMALL_V3, 1, 0) - 4 * SMALL_V3.d_model * 2
    )
    assert growth / one + experts.n_active == pytest.approx(sum(hit) / len(hit), rel=0.02)
    everyone = accounting.decode_bytes(SMALL_V3, 10_000, 0) - accounting.decode_bytes(SMALL_V3, 9_999, 0)
    assert everyone == SMALL_V3.d_model * 2


def test_decode_bytes_of_the_1_3b_shape_are_those_worked_out_by_hand():
    config, d = published("dense-1.3b"), 2048
    products = 24 * (4 * d * d + 3 * d * 5632) + d * 102_400
    assert accounting.decode_bytes(config, 1, 0) == 2 * products + 4 * (2 * 24 + 1) * d + 2 * d
    assert (
        accounting.decode_bytes(config, 32, 500) - accounting.decode_bytes(config, 31, 500) == 2 * d + 500 * 4 * 24 * d
    )
    with pytest.raises(RecipeError, match="batch = 0 must be at least 1"):
        accounting.decode_bytes(config, 0, 0)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize(
    "config",
    [SMALL_GQA, dataclasses.replace(SMALL_GQA, n_kv_heads=4, n_layers=2), *MIXTURES.values()],
    ids=["gqa", "mha", *MIXTURES],
)
def test_activation_formula_equals_what_autograd_keeps(config, precision, dtype):
    model = Transformer(config, dtype)
    model.initialise(torch.Generator().manual_seed(0))
    tokens_BT = torch.randint(0, config.vocab_size, (4, config.seq_len))
    fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), tokens_BT)}
    kept, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed storage's address would be used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = model.losses(tokens_BT, tokens_BT)
    assert found.nats.isfinite()
    count, width, n = accounting.count_parameters(config), accounting.BYTES[precision], tokens_BT.numel()
    casts = 0 if precision == "fp32" else 2 * (count.n_params_matmul + count.n_params_mtp)
    # Beside the formula: the head's gradient; the CPU's norm keeps the normalised value too (fused kernels do not);
    # the final hidden states are alive during the loss but not kept by autograd.
    norms = sum(p.numel() for name, p in model.named_parameters() if name.endswith("norm.weight"))
    unfused_norms = 4 * norms * n
    heads = 4 * count.n_params_head * (1 + config.mtp_depth)
    ends = (1 + config.mtp_depth) * width * config.d_model
    expected = n * (accounting.activation_bytes_per_token(config, precision, "plain") - ends)
    assert sum(kept.values()) == pytest.approx(expected + casts + heads + unfused_norms, rel=0.01)


DENSE = ModelConfig(24, 2048, 16, 16, 128, 5504, 102_400, 4096)
SMALL_DENSE = ModelConfig(12, 768, 12, 12, 64, 2048, 102_400, 4096)
V3 = ModelConfig(
    *(12, 1280, 10, 10, 192, 5120, 102_400, 4096),
    latent=LatentConfig(512, 128, 64, 128),
    experts=ExpertConfig(64, 6, 640, n_shared=2),
)


@pytest.mark.parametrize(
    ("config", "step", "micro_batch", "measured_gib"),
    [(DENSE, None, 4, 58.18), (DENSE, "fp8", 4, 55.71), (SMALL_DENSE, None, 8, 20.84), (V3, None, 4, 52.80)],
)
def test_memory_is_what_steps_on_a_gpu_took(config, step, micro_batch, measured_gib):
    """Peaks of the allocator in benchmarks/train_step.py on an H200 (docs/speed.md)."""
    forecast = accounting.training_memory(config, step=step, micro_batch=micro_batch).total_bytes / 2**30
    assert forecast == pytest.approx(measured_gib, rel=0.01)


def test_sharding_divides_what_its_stage_names():
    whole = accounting.training_memory(DEEPSEEK_7B, world_size=64, zero_stage=0)
    one, two, three = (accounting.training_memory(DEEPSEEK_7B, world_size=64, zero_stage=s) for s in (1, 2, 3))
    n = accounting.count_parameters(DEEPSEEK_7B).n_params_total
    assert (whole.weights_bytes, whole.gradients_bytes, whole.optimizer_bytes) == (4 * n, 4 * n, 8 * n)
    assert (one.optimizer_bytes, one.gradients_bytes) == (n / 8, 4 * n)
    assert (two.gradients_bytes, two.weights_bytes) == (n / 16, 4 * n)
    assert three.weights_bytes == n / 16
    parts = dataclasses.asdict(three)
    assert parts.pop("total_bytes") == sum(parts.values())


def test_inspect_holds_every_count_as_plain_data():
    found = accounting.inspect(DEEPSEEK_67B, n_tokens=2 * 10**12)
    assert found["n_params_total"] == found["n_params_active"] == 67_425_001_472
    assert found["total_flops"]["M"] == pytest.approx(8.654e23, rel=2e-4)
    assert found["total_flops"]["M_formula"] == pytest.approx(9.946e23, rel=2e-4)
    assert found["kv_bytes_per_token"]["bf16"] == 389_120
    assert found["memory"]["total_bytes"] > 16 * found["n_params_total"]


def test_unknown_precision_stage_and_convention_are_refused_by_name():
    with pytest.raises(RecipeError, match=r"precision = 'fp16' must be one of fp32, bf16"):
        accounting.kv_bytes_per_token(SMALL_GQA, "fp16")
    with pytest.raises(RecipeError, match=r"zero_stage = 4 must be 0"):
        accounting.training_memory(SMALL_GQA, zero_stage=4)
    with pytest.raises(RecipeError, match=r"world_size = 0"):
        accounting.training_memory(SMALL_GQA, world_size=0)
    with pytest.raises(RecipeError, match=r"convention '6N' must be one of M"):
        accounting.flops_per_token(SMALL_GQA, "6N")  # type: ignore[arg-type]


def test_counting_and_planning_do_not_import_torch():
    code = "import sys, isoflop.model.accounting, isoflop.scaling.sweep.ladder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0
