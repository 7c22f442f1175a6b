"""The product through oneDNN is float32's, and a model that is asked through it is the model."""

import dataclasses

import pytest
import torch
from serving_models import DENSE, MOE_MLA, count_ties, prompts_of
from test_deepseek import build

from isoflop.numerics.cpu import CpuProduct, has_onednn, has_packed
from isoflop.serving import Engine, Sampling
from isoflop.serving.products import prepare

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this PyTorch comes without oneDNN")


@pytest.mark.parametrize("n_rows", [0, 1, 2, 9, 64, 300])
@pytest.mark.parametrize("leaves_rows", [False, True])
def test_products_are_exact_to_float32(n_rows, leaves_rows):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, n_rows, 640, generator=generator), torch.randn(300, 640, generator=generator)
    product, exact = CpuProduct(leaves_rows=leaves_rows), x.double() @ weight.double().T
    for holds in (False, True):
        if holds:
            product.hold(weight, False)
        with torch.inference_mode():
            found = product(x, weight)
        assert found.shape == (1, n_rows, 300) and found.dtype == torch.float32
        if n_rows:
            assert ((found - exact).abs().max() / exact.abs().max()).item() < 1e-6


@pytest.mark.skipif(not has_packed(), reason="this PyTorch comes without MKL's packed product")
def test_a_held_weight_is_laid_out_for_rows_and_by_columns_for_one():
    weight, x = torch.randn(300, 640), torch.randn(5, 640)
    product, values = CpuProduct(leaves_rows=True), weight.clone()
    assert product.hold(weight, False)
    assert weight.t().is_contiguous() and torch.equal(weight, values)
    with torch.inference_mode():
        expected = product(x, weight)
        weight.zero_()
        assert torch.equal(product(x, weight), expected) and not product(x[:1], weight).any()
    product.release()
    assert not product(x, weight).any()


def test_held_weights_follow_an_update():
    wide = dataclasses.replace(DENSE, d_model=256, d_ff=512, n_heads=8, d_head=32, vocab_size=600, init_std=0.05)
    engine, new = Engine(build(wide)), build(wide, seed=1)
    greedy, prompts = Sampling(max_tokens=10, temperature=0), prompts_of(3, wide, longest=60)
    before = engine.complete(prompts, greedy)
    engine.update_weights(new.state_dict())
    after = engine.complete(prompts, greedy)
    assert count_ties(new, after) == 0 and [one.ids for one in after] != [one.ids for one in before]


def test_a_model_whose_products_are_wide_enough_says_the_same_through_it():
    experts = dataclasses.replace(MOE_MLA.experts, d_expert=400)
    wide = dataclasses.replace(MOE_MLA, d_model=256, d_ff=512, experts=experts, vocab_size=600, init_std=0.05)
    model = build(wide)
    engine = Engine(build(wide))
    through = {name for name, module in engine.model.named_modules() if isinstance(module, CpuProduct)}
    assert {"head.numerics", "blocks.0.mlp.gate_up.numerics", "blocks.1.mlp.experts.numerics"} <= through
    assert not [name for name in through if "kv_up" in name]
    done = engine.complete(prompts_of(6, wide, longest=60), Sampling(max_tokens=20, temperature=0))
    assert count_ties(model, done) == 0


def test_bfloat16_and_narrow_products_are_left_to_pytorch():
    for dtype in (torch.float32, torch.bfloat16):
        model = build(MOE_MLA, dtype)
        prepare(model, fixed=False)
        assert not [module for module in model.modules() if isinstance(module, CpuProduct)]
