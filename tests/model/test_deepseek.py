"""Latent attention, experts and multi-token prediction equal a plain float64 model, their own decoding, and dense."""

import dataclasses
import math

import float64_model
import pytest
import torch
from torch.nn import functional as F

from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, YarnConfig
from isoflop.model.pages import PAGE
from isoflop.model.transformer import Transformer, rotary_table, yarn_share

LATENT = LatentConfig(d_kv_latent=24, d_nope=8, d_rope=6, d_value=10)
SOFTMAX = ExpertConfig(8, 3, 12, n_shared=2, affinity="softmax", normalise=False, selection_bias=False)
SIGMOID = ExpertConfig(16, 4, 12, routed_scale=2.5, n_groups=4, n_groups_kept=2)
DEVICES = dataclasses.replace(SOFTMAX, n_experts=12, n_groups=6, n_groups_kept=2, group_score="max", routed_scale=4.0)
YARN = YarnConfig(factor=4.0, original_seq_len=8, beta_fast=1.0, beta_slow=0.1)
BASE = ModelConfig(3, 32, 4, 4, 14, 40, 160, 20, init_std=0.08, latent=LATENT)
MOE_MHA = dataclasses.replace(BASE, latent=None, d_head=8, experts=SOFTMAX)
V2_LITE = dataclasses.replace(BASE, experts=SOFTMAX)
V2 = dataclasses.replace(BASE, latent=dataclasses.replace(LATENT, d_q_latent=20), experts=DEVICES)
V3 = dataclasses.replace(V2, experts=SIGMOID, mtp_depth=2)
FAMILIES = {
    "mla": BASE,
    "moe-mha": MOE_MHA,
    "v2-lite": V2_LITE,
    "v2": V2,
    "v3": V3,
    "v3-yarn": dataclasses.replace(V3, yarn=YARN),
    "gqa-yarn": dataclasses.replace(BASE, latent=None, d_head=8, n_kv_heads=2, yarn=YARN),
    "no-shared": dataclasses.replace(MOE_MHA, experts=dataclasses.replace(SOFTMAX, n_shared=0), mtp_depth=1),
}
ALL = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


def build(config, dtype=torch.float32, seed=0):
    """Random weights with norms away from 1 and biases away from 0, so that one left out would show."""
    model = Transformer(config, dtype)
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            if name.endswith("router.weight"):
                tensor.normal_(0.0, 0.4, generator=generator)
            if name.endswith("router.bias"):
                tensor.uniform_(-0.6, 0.2, generator=generator)
    return model


def random_tokens(config, batch=2, length=None, seed=1):
    shape = (batch, length or config.seq_len)
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def relative_error(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def wide_weights(model):
    return {name: tensor.detach().double() for name, tensor in model.state_dict().items()}


@ALL
def test_logits_equal_a_plain_float64_model(config):
    model, tokens_BT = build(config), random_tokens(config)
    weights = wide_weights(model)
    exact = float64_model.hidden(weights, config, tokens_BT) @ weights["head.weight"].T
    with torch.no_grad():
        assert relative_error(model.logits(tokens_BT), exact) < 1e-5


@ALL
def test_losses_and_gradients_equal_a_plain_float64_model(config):
    model, tokens_BT, targets_BT = build(config), random_tokens(config), random_tokens(config, seed=2)
    found = model.losses(tokens_BT, targets_BT, chunk_tokens=7)
    shares = [1.0, 0.3, 0.2][: 1 + config.mtp_depth]
    sum(s * nats for s, nats in zip(shares, [found.nats, *found.mtp_nats], strict=True)).backward()
    weights = {name: tensor.requires_grad_() for name, tensor in wide_weights(model).items()}
    exact = float64_model.losses(weights, config, tokens_BT, targets_BT)
    sum(s * nats for s, nats in zip(shares, exact, strict=True)).backward()
    for ours, theirs in zip([found.nats, *found.mtp_nats], exact, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert model.loss_sum(tokens_BT, targets_BT).item() == pytest.approx(exact[0].item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        error = relative_error(parameter.grad, weights[name].grad)
        assert error < 3e-5, f"{name}: {error}"


@ALL
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [9, 1, 1, 6, 3]], ids=["at once", "token by token", "in pieces"])
def test_cached_and_absorbed_decoding_equals_the_full_forward(config, pieces):
    model, tokens_BT = build(config), random_tokens(config)
    with torch.no_grad():
        whole = model.logits(tokens_BT)
        cache = model.new_cache(len(tokens_BT))
        parts = [model.logits(piece_BT, cache) for piece_BT in tokens_BT.split(pieces, dim=1)]
    assert relative_error(torch.cat(parts, 1), whole) <= 1e-5
    assert cache.length == config.seq_len


def test_decoding_never_makes_keys_of_all_heads_again():
    model, tokens_BT = build(BASE), random_tokens(BASE)
    cache = model.new_cache(2)
    with torch.no_grad():
        model.logits(tokens_BT[:, :12], cache)
        for block in model.blocks:
            block.attention.kv_up.forward = None  # the absorbed form uses its weight, never its product
        model.logits(tokens_BT[:, 12:], cache)
    held = sum(layer.nbytes for layer in cache.layers)
    n_pages = 1 + 2  # one for each sequence, one for nobody
    assert held == n_pages * PAGE * BASE.n_layers * (LATENT.d_kv_latent + LATENT.d_rope) * 4


def dense_as_experts(config, n_experts, n_active, **changes):
    """A dense model and the same as a mixture whose experts are all the dense MLP."""
    experts = ExpertConfig(n_experts, n_active, config.d_ff, n_shared=0, n_dense_layers=0, **changes)
    dense, mixed = build(config), Transformer(dataclasses.replace(config, experts=experts))
    weights = dict(dense.state_dict())
    state = mixed.state_dict()
    for name in state:
        if ".mlp.experts." in name:
            state[name] = weights[name.replace(".experts", "") + ".weight"].expand(n_experts, -1, -1).clone()
        elif ".mlp.router." in name:
            state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(3))
        else:
            state[name] = weights[name]
    mixed.load_state_dict(state)
    return dense, mixed


@pytest.mark.parametrize(
    ("n_experts", "n_active", "changes"),
    [(1, 1, {}), (1, 1, {"affinity": "softmax", "normalise": False}), (8, 3, {"n_groups": 4, "n_groups_kept": 3})],
    ids=["one-sigmoid", "one-softmax", "equal-experts"],
)
def test_one_expert_and_equal_experts_are_the_dense_model(n_experts, n_active, changes):
    config = dataclasses.replace(BASE, mtp_depth=0)
    dense, mixed = dense_as_experts(config, n_experts, n_active, **changes)
    tokens_BT = random_tokens(config)
    for model in (dense, mixed):
        model.loss_sum(tokens_BT, tokens_BT).backward()
    with torch.no_grad():
        assert relative_error(mixed.logits(tokens_BT), dense.logits(tokens_BT)) < 1e-5
    assert relative_error(mixed.embedding.weight.grad, dense.embedding.weight.grad) < 1e-5
    for ours, theirs in zip(mixed.blocks, dense.blocks, strict=True):
        assert relative_error(ours.mlp.experts.down.grad.sum(0), theirs.mlp.down.weight.grad) < 1e-5


@pytest.mark.parametrize("family", ["v3", "v3-yarn", "no-shared"])
def test_prediction_modules_leave_the_main_model_alone_bit_for_bit(family):
    config = FAMILIES[family]
    with_mtp, tokens_BT = build(config), random_tokens(config)
    without = Transformer(dataclasses.replace(config, mtp_depth=0))
    missing = without.load_state_dict(with_mtp.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.startswith("mtp.") for key in missing.unexpected_keys)
    with torch.no_grad():
        before = with_mtp.logits(tokens_BT)
        assert torch.equal(without.logits(tokens_BT), before)
        with_mtp.drop_mtp()
        assert torch.equal(with_mtp.logits(tokens_BT), before)
    assert with_mtp.config == without.config and with_mtp.state_dict().keys() == without.state_dict().keys()


def test_a_seed_means_the_same_main_weights_with_and_without_prediction_modules():
    with_mtp, without = Transformer(V3), Transformer(dataclasses.replace(V3, mtp_depth=0))
    for model in (with_mtp, without):
        model.initialise(torch.Generator().manual_seed(4))
    assert all(torch.equal(tensor, with_mtp.state_dict()[name]) for name, tensor in without.state_dict().items())


def test_prediction_module_k_sees_nothing_beyond_the_tokens_it_may_see():
    """Position i of depth k reads tokens up to i + k and nothing later."""
    model, tokens_BT = build(V3), random_tokens(V3)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 12:] = (changed_BT[:, 12:] + 1) % V3.vocab_size
    with torch.no_grad():
        before, _ = model.mtp_hidden(model(tokens_BT), tokens_BT)
        after, _ = model.mtp_hidden(model(changed_BT), changed_BT)
    for depth, (a, b) in enumerate(zip(before, after, strict=True), start=1):
        assert a.shape[1] == V3.seq_len - depth
        assert relative_error(a[:, : 12 - depth], b[:, : 12 - depth]) < 1e-6
        assert relative_error(a[:, 12 - depth], b[:, 12 - depth]) > 1e-2


@ALL
def test_a_token_never_sees_its_future(config):
    model, tokens_BT = build(config), random_tokens(config)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 11:] = (changed_BT[:, 11:] + 7) % config.vocab_size
    with torch.no_grad():
        before, after = model.logits(tokens_BT), model.logits(changed_BT)
    assert relative_error(after[:, :11], before[:, :11]) < 1e-6
    assert not torch.allclose(before[:, 11:], after[:, 11:])


@ALL
def test_bfloat16_keeps_float32_parameters_and_stays_near(config):
    narrow, wide = build(config, torch.bfloat16), build(config)
    tokens_BT = random_tokens(config)
    found = narrow.losses(tokens_BT, tokens_BT)
    sum([found.nats, *found.mtp_nats]).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in narrow.parameters())
    assert all(routing.affinity_BTE.dtype == torch.float32 for routing in found.routings)
    assert found.nats.item() == pytest.approx(wide.loss_sum(tokens_BT, tokens_BT).item(), rel=1e-2)


def test_every_weight_of_a_mixture_starts_normal_with_the_stated_width():
    config = dataclasses.replace(V3, d_model=64, init_std=0.006)
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(3))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        else:
            n, scaled = parameter.numel(), parameter.detach() / config.init_std
            assert scaled.std().item() == pytest.approx(1, abs=5 / (2 * n) ** 0.5), name
    assert all((router.bias == 0).all() for router in model.routers())


def test_names_and_shapes_are_those_that_checkpoints_promise():
    config = dataclasses.replace(V3, mtp_depth=1)
    shapes = {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    e, z, d, h = SIGMOID, config.latent, config.d_model, config.n_heads
    wanted = {
        "blocks.2.attention.q_down.weight": (z.d_q_latent, d),
        "blocks.2.attention.q_norm.weight": (z.d_q_latent,),
        "blocks.2.attention.q_up.weight": (h * config.d_head, z.d_q_latent),
        "blocks.2.attention.kv_down.weight": (z.d_kv_latent + z.d_rope, d),
        "blocks.2.attention.kv_norm.weight": (z.d_kv_latent,),
        "blocks.2.attention.kv_up.weight": (h * (z.d_nope + z.d_value), z.d_kv_latent),
        "blocks.2.attention.out.weight": (d, h * z.d_value),
        "blocks.0.mlp.gate_up.weight": (2 * config.d_ff, d),
        "blocks.2.mlp.router.weight": (e.n_experts, d),
        "blocks.2.mlp.router.bias": (e.n_experts,),
        "blocks.2.mlp.experts.gate_up": (e.n_experts, 2 * e.d_expert, d),
        "blocks.2.mlp.experts.down": (e.n_experts, d, e.d_expert),
        "blocks.2.mlp.shared.gate_up.weight": (2 * e.n_shared * e.d_expert, d),
        "blocks.2.mlp.shared.down.weight": (d, e.n_shared * e.d_expert),
        "mtp.0.embedding_norm.weight": (d,),
        "mtp.0.hidden_norm.weight": (d,),
        "mtp.0.project.weight": (d, 2 * d),
        "mtp.0.block.mlp.experts.down": (e.n_experts, d, e.d_expert),
        "mtp.0.norm.weight": (d,),
    }
    assert wanted.items() <= shapes.items()
    assert not [name for name in shapes if name.startswith("mtp.0.") and ("head" in name or "embedding.w" in name)]
    assert "blocks.1.attention.q.weight" in Transformer(V2_LITE).state_dict()
    assert not [name for name in Transformer(V2_LITE).state_dict() if "router.bias" in name]


def test_yarn_with_the_published_constants_keeps_pairs_up_to_10_and_slows_those_from_23():
    yarn = YarnConfig(factor=40.0, original_seq_len=4096)
    share = yarn_share(64, 10000.0, yarn)
    assert (share[:11] == 0).all() and (share[23:] == 1).all()
    assert torch.equal(share[11:23], torch.arange(1, 13) / 13)
    cos, _ = rotary_table(2, 64, 10000.0, yarn)
    plain, _ = rotary_table(2, 64, 10000.0)
    assert torch.equal(cos[1, :11], plain[1, :11])
    slowest = 10000 ** (-62 / 64) / 40
    assert math.acos(cos[1, 31].item()) == pytest.approx(slowest, rel=2e-2, abs=3e-4)


@pytest.mark.parametrize(("mscale", "squared"), [(1.0, 1.87385), (0.707, 1.58963), (0.0, 1.0)])
def test_yarn_multiplies_the_softmax_scale_as_published(mscale, squared):
    yarn = YarnConfig(factor=40.0, original_seq_len=4096, mscale=mscale)
    latent = LatentConfig(512, 128, 64, 128, 1536)
    config = ModelConfig(1, 64, 2, 2, 192, 64, 64, 163840, latent=latent, yarn=yarn)
    assert config.softmax_scale() * math.sqrt(192) == pytest.approx(squared, rel=1e-5)


def test_values_may_be_wider_or_narrower_than_keys():
    for width in (4, 30):
        config = dataclasses.replace(BASE, latent=dataclasses.replace(LATENT, d_value=width))
        model, tokens_BT = build(config), random_tokens(config)
        weights = wide_weights(model)
        exact = float64_model.hidden(weights, config, tokens_BT)
        with torch.no_grad():
            assert relative_error(model(tokens_BT), exact) < 1e-5


def test_the_loss_is_cross_entropy_of_the_logits():
    model, tokens_BT, targets_BT = build(V3), random_tokens(V3), random_tokens(V3, seed=2)
    with torch.no_grad():
        logits = model.logits(tokens_BT).flatten(0, 1)
        exact = F.cross_entropy(logits, targets_BT.flatten(), reduction="sum").item()
        assert model.losses(tokens_BT, targets_BT).nats.item() == pytest.approx(exact, rel=1e-5)
