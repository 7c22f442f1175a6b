"""Selection by hand, the permutation there and back, and grouped products equal looped ones."""

import dataclasses

import float64_model
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.model import dispatch
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.experts import MixtureOfExperts, Router, select
from isoflop.model.transformer import Transformer


def model_config(experts):
    return ModelConfig(2, 16, 2, 2, 8, 32, 64, 16, experts=dataclasses.replace(experts, n_dense_layers=0))


@settings(max_examples=40)
@given(
    st.sampled_from([(8, 2, 1, 1), (16, 4, 4, 2), (12, 6, 6, 3), (24, 8, 8, 4), (6, 6, 2, 2), (5, 5, 1, 1)]),
    st.sampled_from(["top_sum", "max"]),
    st.integers(0, 10_000),
)
def test_selection_equals_sorting_by_hand(sizes, group_score, seed):
    n_experts, n_active, n_groups, kept = sizes
    experts = ExpertConfig(
        n_experts, n_active, 4, n_groups=n_groups, n_groups_kept=kept, group_score=group_score, n_dense_layers=0
    )
    config = model_config(experts)
    generator = torch.Generator().manual_seed(seed)
    affinity_TE = torch.rand(9, n_experts, generator=generator)
    bias_E = torch.rand(n_experts, generator=generator) * 2 - 1.5  # mostly below 0
    chosen_TA = select(affinity_TE, bias_E, experts)
    for token in range(9):
        by_hand = float64_model.choose((affinity_TE[token] + bias_E).tolist(), config)
        assert sorted(chosen_TA[token].tolist()) == sorted(by_hand)


def test_a_discarded_group_stays_out_even_when_every_kept_score_is_negative():
    experts = ExpertConfig(4, 2, 4, n_groups=2, n_groups_kept=1)
    affinity_TE = torch.tensor([[0.30, 0.30, 0.10, 0.49]])
    bias_E = torch.tensor([-0.9, -0.9, -0.95, -0.95])  # scores -0.6, -0.6 | -0.85, -0.46: a mask of 0 would win
    assert sorted(select(affinity_TE, bias_E, experts)[0].tolist()) == [0, 1]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("affinity", ["sigmoid", "softmax"])
def test_weights_come_from_affinities_without_the_bias_normalised_then_scaled(affinity, normalise):
    config = ExpertConfig(8, 3, 4, affinity=affinity, normalise=normalise, routed_scale=2.5)
    router = Router(16, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        router.weight.normal_(0, 0.5, generator=generator)
        router.bias.uniform_(-1, 1, generator=generator)
    x_TD = torch.randn(20, 16, generator=generator)
    weights_TA, chosen_TA, affinity_TE = router(x_TD)
    logits_TE = x_TD @ router.weight.T
    expected_TE = logits_TE.sigmoid() if affinity == "sigmoid" else logits_TE.softmax(-1)
    expected_TA = expected_TE.gather(1, chosen_TA)
    if normalise:
        expected_TA = expected_TA / expected_TA.sum(-1, keepdim=True)
        torch.testing.assert_close(weights_TA.sum(-1), torch.full((20,), 2.5))
    torch.testing.assert_close(weights_TA, 2.5 * expected_TA)
    torch.testing.assert_close(affinity_TE, expected_TE)


def test_routing_is_float32_whatever_the_activations_are():
    router = Router(16, ExpertConfig(8, 3, 4))
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    weights_TA, _, affinity_TE = router(torch.randn(5, 16).bfloat16())
    assert weights_TA.dtype == affinity_TE.dtype == torch.float32


def test_affinities_that_all_underflow_give_zero_weights_and_not_nan():
    router = Router(4, ExpertConfig(8, 3, 4))
    torch.nn.init.constant_(router.weight, -100.0)
    weights_TA, _, _ = router(torch.full((2, 4), 10.0))
    assert (weights_TA == 0).all()


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(4, 9), st.integers(0, 1000))
def test_rows_are_sorted_by_expert_and_come_back_to_their_tokens(n_tokens, n_active, n_experts, seed):
    generator = torch.Generator().manual_seed(seed)
    chosen_TA = torch.rand(n_tokens, n_experts, generator=generator).topk(n_active, dim=1).indices
    at = dispatch.arrange(chosen_TA, n_experts)
    expert_R = chosen_TA.flatten()[at.slot_R]
    assert (expert_R.diff() >= 0).all()
    assert torch.equal(at.load_E(), torch.bincount(chosen_TA.flatten(), minlength=n_experts).int())
    assert int(at.ends_E[-1]) == n_tokens * n_active  # no token is dropped
    x_TD = torch.randn(n_tokens, 3, generator=generator)
    torch.testing.assert_close(dispatch.unpermute(dispatch.permute(x_TD, at), at), n_active * x_TD)
    weights_TA = torch.rand(n_tokens, n_active, generator=generator)
    rows_R1 = dispatch.permute_choices(weights_TA, at)
    assert torch.equal(rows_R1[at.row_TA][..., 0], weights_TA)


def test_permutations_have_exact_gradients():
    generator = torch.Generator().manual_seed(0)
    chosen_TA = torch.rand(7, 5, generator=generator).topk(3, dim=1).indices
    at = dispatch.arrange(chosen_TA, 5)
    x_TD = torch.randn(7, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    w_TA = torch.randn(7, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    plus_TD = torch.randn(7, 2, dtype=torch.float64, generator=generator, requires_grad=True)

    def there_and_back(x_TD, w_TA, plus_TD):
        return dispatch.unpermute(dispatch.permute(x_TD, at).sin() * dispatch.permute_choices(w_TA, at), at, plus_TD)

    assert torch.autograd.gradcheck(there_and_back, (x_TD, w_TA, plus_TD))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("counts", [[10, 0, 23, 17, 10], [0, 0, 60, 0, 0], [12] * 5], ids=["ragged", "one", "even"])
def test_grouped_products_equal_looped_ones_and_unused_experts_get_no_gradient(dtype, tolerance, counts):
    generator = torch.Generator().manual_seed(0)
    ends_E = torch.tensor(counts).cumsum(0).int()
    x, w, g = (torch.randn(size, generator=generator).to(dtype) for size in ((60, 32), (5, 24, 32), (60, 24)))
    found = []
    for product in (dispatch._GroupedProduct.apply, dispatch.looped_product):
        x_RD, w_EFD = x.clone().requires_grad_(), w.clone().requires_grad_()
        y_RF = product(x_RD, w_EFD, ends_E)
        y_RF.backward(g)
        found.append((y_RF.detach(), x_RD.grad, w_EFD.grad))
    for grouped, looped in zip(*found, strict=True):
        assert ((grouped - looped).abs().max() / looped.abs().max()).item() < tolerance
    assert (found[0][2][ends_E.diff(prepend=torch.zeros(1, dtype=torch.int32)) == 0] == 0).all()


def test_a_gradient_that_is_a_broadcast_view_is_taken():
    x_RD, w_EFD = torch.randn(8, 16, requires_grad=True), torch.randn(2, 8, 16, requires_grad=True)
    dispatch._GroupedProduct.apply(x_RD, w_EFD, torch.tensor([3, 8], dtype=torch.int32)).sum().backward()
    torch.testing.assert_close(w_EFD.grad[1], x_RD.detach()[3:].sum(0).expand(8, 16))


def test_the_kernel_is_only_used_where_it_never_asks_the_device():
    assert not dispatch.runs_grouped(torch.device("cpu"), torch.bfloat16, 16, 16)
    assert not dispatch.runs_grouped(torch.device("cuda"), torch.float32, 16, 16)
    assert not dispatch.runs_grouped(torch.device("cuda"), torch.bfloat16, 16, 12)


def test_one_layer_equals_tokens_sent_one_by_one():
    experts = ExpertConfig(16, 4, 6, n_shared=0, routed_scale=2.5, n_groups=4, n_groups_kept=2, n_dense_layers=0)
    layer = MixtureOfExperts(16, experts, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        layer.router.bias.uniform_(-0.5, 0.1, generator=generator)
    x_BTD = torch.randn(3, 5, 16, generator=generator)
    weights = {name: tensor.double() for name, tensor in layer.state_dict().items()}
    exact = float64_model.experts(x_BTD.double(), weights, model_config(experts))
    y_BTD, routing = layer(x_BTD)
    assert ((y_BTD - exact).abs().max() / exact.abs().max()).item() < 1e-6
    assert routing.chosen_BTA.shape == (3, 5, 4) and int(routing.load_E.sum()) == 60


@pytest.mark.slow
def test_the_grouped_path_is_one_graph_that_asks_for_no_number(monkeypatch):
    """As on a GPU: a break, or a number read back from the device, would be an error of `fullgraph`."""
    monkeypatch.setattr(dispatch, "runs_grouped", lambda device, dtype, *widths: True)
    experts = ExpertConfig(8, 2, 16, n_groups=4, n_groups_kept=2, n_dense_layers=0)
    latent = LatentConfig(16, 8, 8, 16, d_q_latent=24)
    config = ModelConfig(1, 32, 2, 2, 16, 32, 64, 16, init_std=0.1, latent=latent, experts=experts)
    model = Transformer(config, torch.bfloat16)
    model.initialise(torch.Generator().manual_seed(0))
    block, cos, sin = model.blocks[0], model.get_buffer("cos"), model.get_buffer("sin")
    x_BTD = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for run in (block, torch.compile(block, fullgraph=True, dynamic=False, backend="aot_eager")):
        stream_BTD, update_BTD, routing = run(x_BTD, None, cos, sin)
        y_BTD = stream_BTD + update_BTD
        (y_BTD.float().square().sum() + routing.affinity_BTE.sum()).backward()
        found.append((y_BTD.detach(), routing.load_E, block.mlp.experts.down.grad.clone()))
        block.zero_grad()
    assert torch.equal(found[0][1], found[1][1])
    for eager, compiled in zip(found[0][::2], found[1][::2], strict=True):
        assert ((eager - compiled).abs().max() / eager.abs().max()).item() < 2e-2
