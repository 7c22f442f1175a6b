"""The model equals other people's code, its own decoding, and a float64 reference; recipes build without memory."""

import tomllib

import pytest
import torch
from places import ROOT
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from isoflop.model.accounting import count_parameters
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree

RECIPES = sorted((ROOT / "recipes" / "pretrain").glob("*.toml"))
MHA = ModelConfig(2, 48, 4, 4, 12, 128, 160, 40, init_std=0.05)
GQA = ModelConfig(3, 64, 4, 2, 16, 176, 160, 40, init_std=0.05)
NARROW_HEADS = ModelConfig(2, 48, 2, 1, 16, 100, 160, 40, init_std=0.05)  # n_heads * d_head below d_model
CONFIGS = pytest.mark.parametrize("config", [MHA, GQA, NARROW_HEADS], ids=["mha", "gqa", "narrow"])


def build(config, dtype=torch.float32, seed=0):
    model = Transformer(config, dtype)
    model.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # norms away from 1, so that a norm left out would show
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(seed))
    return model


def random_tokens(config, batch=3, length=None, seed=1):
    shape = (batch, length or config.seq_len)
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def relative_error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def llama(model):
    """The same weights in transformers' Llama."""
    c = model.config
    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            head_dim=c.d_head,
            max_position_embeddings=c.seq_len,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    queries, keys = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    state = {"model.embed_tokens.weight": model.embedding.weight, "lm_head.weight": model.head.weight}
    state["model.norm.weight"] = model.norm.weight
    for index, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.split([queries, keys, keys])
        gate, up = block.mlp.gate_up.weight.chunk(2)
        named = {
            "input_layernorm": block.attention_norm.weight,
            "post_attention_layernorm": block.mlp_norm.weight,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.attention.out.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp.down.weight,
        }
        state.update({f"model.layers.{index}.{name}.weight": weight for name, weight in named.items()})
    other.load_state_dict({name: weight.detach().clone() for name, weight in state.items()}, strict=True)
    return other.eval()


@CONFIGS
def test_logits_equal_transformers_llama(config):
    model, tokens_BT = build(config), random_tokens(config)
    with torch.no_grad():
        ours, theirs = model.logits(tokens_BT), llama(model)(tokens_BT).logits
    assert relative_error(ours, theirs) <= 1e-5


def reference_loss(weights, config, tokens_BT, targets_BT):
    """The model written once more in the dtype of `weights`, with explicit attention: a reference for gradients."""

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight

    def turn(x_BHTC):
        half = config.d_head // 2
        position = torch.arange(x_BHTC.shape[2], dtype=x_BHTC.dtype)
        angle = torch.outer(position, config.rope_base ** (-torch.arange(half, dtype=x_BHTC.dtype) / half))
        pairs = torch.complex(x_BHTC[..., :half], x_BHTC[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag), -1)

    batch, n = tokens_BT.shape
    heads, groups, width = config.n_heads, config.n_kv_heads, config.d_head
    x = weights["embedding.weight"][tokens_BT]
    for index in range(config.n_layers):
        of = {key.removeprefix(f"blocks.{index}."): value for key, value in weights.items()}
        joint = norm(x, of["attention_norm.weight"]) @ of["attention.qkv.weight"].T
        joint_BHTC = joint.view(batch, n, heads + 2 * groups, width).transpose(1, 2)
        q, k, v = joint_BHTC.split([heads, groups, groups], dim=1)
        k, v = turn(k).repeat_interleave(heads // groups, 1), v.repeat_interleave(heads // groups, 1)
        scores = turn(q) @ k.transpose(2, 3) / width**0.5
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, heads * width)
        x = x + mixed @ of["attention.out.weight"].T
        gate, up = (norm(x, of["mlp_norm.weight"]) @ of["mlp.gate_up.weight"].T).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ of["mlp.down.weight"].T
    logits = norm(x, weights["norm.weight"]) @ weights["head.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction="sum")


@CONFIGS
def test_loss_and_gradients_equal_a_float64_reference(config):
    model, tokens_BT, targets_BT = build(config), random_tokens(config), random_tokens(config, seed=2)
    loss = model.loss_sum(tokens_BT, targets_BT, chunk_tokens=50)
    loss.backward()
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    exact = reference_loss(weights, config, tokens_BT, targets_BT)
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        error = relative_error(parameter.grad.double(), weights[name].grad)
        assert error < 2e-5, f"{name}: {error}"


@CONFIGS
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [17, 1, 1, 13, 8]], ids=["at once", "token by token", "in pieces"])
def test_cached_decoding_equals_the_full_forward(config, pieces):
    model, tokens_BT = build(config), random_tokens(config)
    with torch.no_grad():
        whole = model.logits(tokens_BT)
        cache = model.new_cache(len(tokens_BT))
        parts = [model.logits(piece_BT, cache) for piece_BT in tokens_BT.split(pieces, dim=1)]
    assert relative_error(torch.cat(parts, 1), whole) <= 1e-5
    assert cache.length == config.seq_len


def test_a_token_never_sees_its_future():
    model, tokens_BT = build(GQA), random_tokens(GQA)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 20:] = random_tokens(GQA, seed=9)[:, 20:]
    with torch.no_grad():
        before, after = model.logits(tokens_BT), model.logits(changed_BT)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_bfloat16_keeps_float32_parameters_and_stays_near():
    config, tokens_BT = GQA, random_tokens(GQA)
    narrow, wide = build(config, torch.bfloat16), build(config)
    loss = narrow.loss_sum(tokens_BT, tokens_BT)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in narrow.parameters())
    assert loss.item() == pytest.approx(wide.loss_sum(tokens_BT, tokens_BT).item(), rel=2e-3)


@pytest.mark.parametrize("init_std", [0.006, 0.05])
def test_every_weight_starts_normal_with_the_stated_width(init_std):
    config = ModelConfig(2, 128, 4, 4, 32, 352, 512, 16, init_std=init_std)
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(3))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        else:
            n, scaled = parameter.numel(), parameter.detach() / init_std
            assert scaled.std().item() == pytest.approx(1, abs=5 / (2 * n) ** 0.5), name
            assert abs(scaled.mean().item()) < 5 / n**0.5, name
            assert scaled.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5), name


def test_a_seed_means_the_same_weights():
    same, again, other = build(GQA, seed=5), build(GQA, seed=5), build(GQA, seed=6)
    assert torch.equal(same.head.weight, again.head.weight)
    assert not torch.equal(same.head.weight, other.head.weight)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_pretrain_recipes_build_on_the_meta_device(path):
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    config = from_tree(tree["model"], ModelConfig, "model.")
    with torch.device("meta"):
        model = Transformer(config, torch.bfloat16)
        logits = model.logits(torch.zeros(1, 8, dtype=torch.long))
    assert logits.shape == (1, 8, config.vocab_size)
    count = count_parameters(config)
    assert sum(t.numel() for t in model.state_dict().values()) == count.n_params_total + count.n_params_mtp
    assert tree["train"]["batch_tokens"] % config.seq_len == 0


def test_the_published_recipes_are_among_them():
    dense, mixtures = {"deepseek-7b", "deepseek-67b"}, {"moe_16b", "v2_lite", "v2", "v3"}
    assert dense | {f"deepseek_{name}" for name in mixtures} <= {path.stem for path in RECIPES}
