"""Rules reach the layers they name, the last one wins, and one that names nothing is refused."""

import pytest
import torch

from isoflop.errors import RecipeError
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign, table
from isoflop.numerics.cast import CastProduct
from isoflop.numerics.error import effective_bits, layer_errors
from isoflop.numerics.fp8_block import Fp8BlockProduct
from isoflop.numerics.section import Fp8Section, NumericsSection, Rule, by_rule, numerics_text

CONFIG = ModelConfig(2, 32, 4, 4, 8, 48, 96, 12, init_std=0.05)


def model_of(*rules, **settings):
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    section = NumericsSection(tuple(Rule(*rule) for rule in rules), **settings)
    return model, assign(model, section)


def test_later_rules_go_before_earlier_ones_and_the_table_says_what_each_layer_got():
    model, rows = model_of(("blocks.*", "fp8_block"), ("blocks.0.*", "bfloat16"), ("*.out", "float32"))
    found = {row.module: row.format for row in rows}
    assert found["blocks.0.mlp.down"] == "bfloat16" and found["blocks.1.mlp.down"] == "fp8_block"
    assert found["blocks.0.attention.out"] == found["blocks.1.attention.out"] == "float32"
    assert found["head"] == "as activations" and model.head.numerics is None
    assert isinstance(model.blocks[0].mlp.down.numerics, CastProduct)
    assert isinstance(model.blocks[1].mlp.down.numerics, Fp8BlockProduct)
    lines = table(rows)
    assert any("blocks.*.attention.out" in line and line.startswith("   2 x") for line in lines)


def test_assigning_again_replaces_what_was_there():
    model, _ = model_of(("*", "fp8_block"))
    assign(model, NumericsSection((Rule("head", "bfloat16"),)))
    assert model.blocks[0].mlp.down.numerics is None and isinstance(model.head.numerics, CastProduct)


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        (
            (("block.*", "fp8_block"),),
            {},
            r"rules\[0\]\.modules = 'block\.\*' matches none of the 9 layers; did you mean",
        ),
        ((("*", "fp8_block"), ("embedding", "bfloat16")), {}, r"rules\[1\]\.modules = 'embedding' matches none"),
        ((), {}, r"numerics\.rules = \[\] must name at least one rule"),
        ((("*", "fp8_block"),), {"fp8_block": Fp8Section(block=0)}, r"fp8_block\.block = 0 must be at least 1"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules, settings, message):
    with pytest.raises(RecipeError, match=message):
        model_of(*rules, **settings)


def test_float32_by_rule_gives_the_bits_of_the_plain_model():
    model, _ = model_of(("*", "float32"))
    plain = Transformer(CONFIG)
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain.logits(tokens), model.logits(tokens))


def test_a_head_with_a_format_has_the_loss_and_gradients_of_the_chunked_one():
    model, _ = model_of(("head", "float32"))
    plain = Transformer(CONFIG)
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[0, :3] = -1
    for of in (model, plain):
        of.loss_sum(tokens, targets, chunk_tokens=7).backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name


def test_texts_for_records_name_format_rules_and_the_rest():
    section = NumericsSection((Rule("blocks.*", "fp8_block"), Rule("head", "bfloat16")))
    text = numerics_text(section, "float32")
    assert text == "fp8_block 128 on blocks.*; bfloat16 on head; else float32"
    assert by_rule(text) == by_rule(numerics_text(section)) == "fp8_block 128 on blocks.*; bfloat16 on head"
    assert numerics_text(None, "bfloat16") == "bfloat16" and by_rule("bfloat16") == by_rule("") == ""


def test_layer_errors_compare_each_layer_with_the_exact_product_of_its_own_input():
    model, _ = model_of(("blocks.*", "bfloat16"), ("blocks.1.*", "fp8_block"))
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    found = layer_errors(model, lambda: model(tokens))
    assert len(found) == 8
    bits = {name: row["effective_bits"] for name, row in found.items()}
    assert all(7 < bits[name] < 10 for name in bits if name.startswith("blocks.0."))
    assert all(3.5 < bits[name] < 6 for name in bits if name.startswith("blocks.1."))
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert effective_bits(exact * (1 + 2**-8), exact) == pytest.approx((20 * 8 * 0.30103 - 1.76) / 6.02, abs=0.01)
