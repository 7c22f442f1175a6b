"""Names, shapes and order: every value of ours has exactly one place in theirs, and released files have these names."""

import math
import re
import tomllib
from dataclasses import replace

import pytest
import torch
from interop_models import FAMILIES, V3
from places import ROOT

from isoflop.interop.formats import check_fits, derived_format
from isoflop.interop.layout import Rotary, copies, layout, to_ours, to_theirs
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree

EACH = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


@EACH
def test_the_targets_are_the_tensors_of_the_model(config):
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    targets = [target for target in layout(config, derived_format(config)) if target.name]
    assert {target.name: target.shape for target in targets} == {k: tuple(v.shape) for k, v in state.items()}
    assert len({target.name for target in targets}) == len(targets)


@EACH
def test_pieces_fill_their_target_without_gap_or_overlap(config):
    targets = layout(config, derived_format(config))
    for target in targets:
        row = 0
        for piece in target.pieces:
            assert piece.first_row == row and piece.shape[1:] == (target.shape[-1:] if len(target.shape) > 1 else ())
            row += piece.n_rows
        assert row == math.prod(target.shape[:-1] or target.shape)
    names = [piece.name for target in targets for piece in target.pieces]
    names += [piece.name for pieces in copies(config).values() for piece in pieces]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("period, d_rope, groups", [(12, 8, 3), (20, 20, 2), (70, 6, 1), (4, 2, 5)])
def test_reordering_undoes_itself_and_moves_rotary_rows_only(period, d_rope, groups):
    rows, rotary = torch.arange(groups * period * 3.0).view(-1, 3), Rotary(period, d_rope)
    ours = to_ours(rows, rotary)
    assert torch.equal(to_theirs(ours, rotary), rows) and torch.equal(to_ours(to_theirs(rows, rotary), rotary), rows)
    fixed = period - d_rope
    before, after = rows.view(groups, period, 3), ours.view(groups, period, 3)
    assert torch.equal(before[:, :fixed], after[:, :fixed])
    half = d_rope // 2
    for pair in range(half):  # channels 2 i and 2 i + 1 of theirs turn together, as i and i + half of ours
        assert torch.equal(after[:, fixed + pair], before[:, fixed + 2 * pair])
        assert torch.equal(after[:, fixed + pair + half], before[:, fixed + 2 * pair + 1])


def test_deepseek_v3_has_the_released_names_and_shapes():
    """Source: the weight files of DeepSeek-V3."""
    shapes = {piece.name: piece.shape for target in layout(V3, "deepseek_v3") for piece in target.pieces}
    dense, moe, mtp = "model.layers.2.", "model.layers.3.", "model.layers.61."
    expected = {
        f"{dense}mlp.gate_proj.weight": (18432, 7168),
        f"{dense}mlp.down_proj.weight": (7168, 18432),
        f"{moe}self_attn.q_a_proj.weight": (1536, 7168),
        f"{moe}self_attn.q_a_layernorm.weight": (1536,),
        f"{moe}self_attn.q_b_proj.weight": (24576, 1536),
        f"{moe}self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
        f"{moe}self_attn.kv_a_layernorm.weight": (512,),
        f"{moe}self_attn.kv_b_proj.weight": (32768, 512),
        f"{moe}self_attn.o_proj.weight": (7168, 16384),
        f"{moe}mlp.gate.weight": (256, 7168),
        f"{moe}mlp.gate.e_score_correction_bias": (256,),
        f"{moe}mlp.experts.255.up_proj.weight": (2048, 7168),
        f"{moe}mlp.shared_experts.down_proj.weight": (7168, 2048),
        f"{mtp}eh_proj.weight": (7168, 14336),
        f"{mtp}enorm.weight": (7168,),
        f"{mtp}hnorm.weight": (7168,),
        f"{mtp}shared_head.norm.weight": (7168,),
        f"{mtp}mlp.experts.0.gate_proj.weight": (2048, 7168),
        "model.embed_tokens.weight": (129280, 7168),
        "model.norm.weight": (7168,),
        "lm_head.weight": (129280, 7168),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    main = {name: shape for name, shape in shapes.items() if not name.startswith(mtp)}
    assert sum(map(math.prod, main.values())) == 671_026_419_200  # selection biases included
    repeated = {piece.name for pieces in copies(V3).values() for piece in pieces}
    assert repeated == {f"{mtp}embed_tokens.weight", f"{mtp}shared_head.head.weight"}


def test_the_released_fp8_checkpoint_quantises_these_matrices_and_no_others():
    pieces = [piece for target in layout(V3, "deepseek_v3") for piece in target.pieces]
    kinds = {re.sub(r"\d+", "#", piece.name.removeprefix("model.layers.")): piece.fp8 for piece in pieces}
    plain = {name for name, fp8 in kinds.items() if not fp8}
    assert plain == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "#.input_layernorm.weight",
        "#.post_attention_layernorm.weight",
        "#.self_attn.q_a_layernorm.weight",
        "#.self_attn.kv_a_layernorm.weight",
        "#.mlp.gate.weight",
        "#.mlp.gate.e_score_correction_bias",
        "#.enorm.weight",
        "#.hnorm.weight",
        "#.eh_proj.weight",
        "#.shared_head.norm.weight",
    }
    assert all(len(piece.shape) == 2 for piece in pieces if piece.fp8)


def test_llama_has_the_released_names():
    config = replace(FAMILIES["gqa"], n_layers=1)
    names = [piece.name for target in layout(config, "llama") for piece in target.pieces]
    assert sorted(names) == sorted(
        ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
        + [f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkvo"]
        + [f"model.layers.0.mlp.{side}_proj.weight" for side in ("gate", "up", "down")]
        + [f"model.layers.0.{norm}_layernorm.weight" for norm in ("input", "post_attention")]
    )


@pytest.mark.parametrize(
    "recipe, format, n_values",
    [
        ("deepseek-7b", "llama", 6_910_365_696),
        ("deepseek-67b", "llama", 67_425_001_472),
        ("deepseek_moe_16b", "deepseek", 16_375_728_128),
        ("deepseek_v2_lite", "deepseek_v2", 15_706_484_224),
        ("deepseek_v2", "deepseek_v2", 235_741_434_880),
        ("deepseek_v3", "deepseek_v3", 671_026_419_200),
    ],
)
def test_published_models_have_a_format_and_as_many_values_as_published(recipe, format, n_values):
    text = (ROOT / "recipes" / "pretrain" / f"{recipe}.toml").read_text(encoding="utf-8")
    config = replace(from_tree(tomllib.loads(text)["model"], ModelConfig), mtp_depth=0)
    assert derived_format(config) == ("qwen2_moe" if format == "deepseek" else format)
    check_fits(config, format)
    assert sum(math.prod(piece.shape) for target in layout(config, format) for piece in target.pieces) == n_values
