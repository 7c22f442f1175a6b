"""Losses and statistics of balance against the papers' sums written as loops, and settings that are refused."""

import dataclasses
import math

import pytest
import torch

from isoflop.errors import RecipeError
from isoflop.model.config import ExpertConfig
from isoflop.model.experts import Routing
from isoflop.training.balance import balance_loss, bias_direction, by_name, counted_load, load_statistics, relative_load
from isoflop.training.pretrain.recipe import BalanceSection, check_balance

V2 = ExpertConfig(8, 3, 4, affinity="softmax", normalise=False, selection_bias=False, n_groups=4, n_groups_kept=3)
V2 = dataclasses.replace(V2, group_score="max")
V3 = ExpertConfig(8, 2, 4, n_groups=2, n_groups_kept=1)
OFF = BalanceSection(bias_speed=0.0, sequence_loss=0.0)


def routing_of(experts, seed=0, n_batch=3, n_tokens=10):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_batch, n_tokens, experts.n_experts, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    affinity = logits.sigmoid() if experts.affinity == "sigmoid" else logits.softmax(-1)
    random = torch.rand(affinity.shape, generator=generator)
    chosen = random.topk(experts.n_active, -1).indices  # not the best ones: bias and groups may choose anything
    return Routing(affinity, chosen, torch.bincount(chosen.flatten(), minlength=experts.n_experts)), logits


def by_loops(routing, experts, section):
    """The published sums, one index at a time (arXiv 2412.19437, eq. 17 to 20; arXiv 2405.04434, eq. 23 to 31)."""
    total = 0.0
    for affinity, chosen in zip(routing.affinity_BTE, routing.chosen_BTA.tolist(), strict=True):
        n_tokens, n, k = len(affinity), experts.n_experts, experts.n_active
        p = [sum(token[i] / token.sum() for token in affinity) / n_tokens for i in range(n)]
        top = [sorted(range(n), key=lambda i, t=token: -t[i])[:k] for token in affinity.tolist()]
        preferred = [n / (k * n_tokens) * sum(i in one for one in top) for i in range(n)]
        used = [n / (k * n_tokens) * sum(i in one for one in chosen) for i in range(n)]
        total = total + section.sequence_loss * sum(f * share for f, share in zip(preferred, p, strict=True))
        total = total + section.expert_loss * sum(f * share for f, share in zip(used, p, strict=True))
        size = n // section.n_devices
        for device in range(section.n_devices):
            group = range(device * size, (device + 1) * size)
            share = sum(p[i] for i in group)
            total = total + section.device_loss * sum(used[i] for i in group) / size * share
            sent = sum(any(i in group for i in one) for one in chosen)
            most = experts.n_groups_kept if experts.n_groups == section.n_devices else min(k, section.n_devices)
            total = total + section.communication_loss * section.n_devices / (most * n_tokens) * sent * share
    return total


@pytest.mark.parametrize("experts", [V2, V3], ids=["v2", "v3"])
@pytest.mark.parametrize(
    "weights",
    [
        {"sequence_loss": 1e-4},
        {"expert_loss": 0.003},
        {"device_loss": 0.05, "n_devices": 4},
        {"communication_loss": 0.02, "n_devices": 4},
        {"communication_loss": 0.02, "n_devices": 2},
        {"sequence_loss": 1.0, "expert_loss": 2.0, "device_loss": 3.0, "communication_loss": 4.0, "n_devices": 4},
    ],
    ids=lambda weights: "+".join(weights),
)
def test_losses_and_their_gradients_equal_the_published_sums(experts, weights):
    section = dataclasses.replace(OFF, **weights)
    routing, logits = routing_of(experts)
    loss = balance_loss(routing, experts, section)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    exact = by_loops(routing, experts, section)
    (wanted,) = torch.autograd.grad(exact, logits)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert ((gradient - wanted).abs().max() / wanted.abs().max()).item() < 1e-6


def test_even_load_costs_exactly_the_weight_of_a_sequence_and_uneven_load_more():
    section = dataclasses.replace(OFF, expert_loss=1.0)
    even = torch.full((1, 8, 8), 0.125)
    chosen = torch.stack([torch.arange(3) + token for token in range(8)])[None] % 8
    assert balance_loss(Routing(even, chosen, torch.zeros(8)), V2, section).item() == pytest.approx(1.0)
    uneven = torch.tensor([0.9] + [0.1 / 7] * 7).expand(1, 8, 8)
    alone = torch.arange(3).expand(1, 8, 3)
    assert balance_loss(Routing(uneven, alone, torch.zeros(8)), V2, section).item() > 2.0


def test_nothing_is_added_when_every_weight_is_zero():
    assert balance_loss(routing_of(V3)[0], V3, OFF) is None


def test_loads_count_choices_and_only_at_counted_positions():
    routing, _ = routing_of(V3)
    counted_BT = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.5
    by_hand = torch.bincount(routing.chosen_BTA[counted_BT].flatten(), minlength=8)
    assert torch.equal(counted_load(routing.chosen_BTA, 8, counted_BT), by_hand)
    everywhere = relative_load(routing.chosen_BTA, 8).sum(0) * 10 * 2 / 8
    torch.testing.assert_close(everywhere, routing.load_E.float())


def test_statistics_of_even_one_sided_and_dead_loads():
    loads_LE = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [6, 2, 0, 12]])
    found = by_name(load_statistics(loads_LE).flatten().tolist())
    assert found["max_violation"] == pytest.approx([0.0, 3.0, 1.4])
    assert found["dead"] == [0, 3, 1]
    shares = [0.3, 0.1, 0.6]
    entropy = -sum(p * math.log(p) for p in shares) / math.log(4)
    assert found["entropy"] == pytest.approx([1.0, 0.0, entropy])


def test_biases_go_up_below_the_mean_down_above_and_rest_at_it():
    direction = bias_direction(torch.tensor([[1, 2, 3, 2], [10**9, 10**9 + 1, 10**9, 10**9]]))
    assert direction.tolist() == [[1, 0, -1, 0], [1, -1, 1, 1]]  # one token in four billion is seen


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bias_speed": -1.0}, ["train.balance.bias_speed = -1.0", "at least 0"]),
        ({"report_every": -1}, ["train.balance.report_every = -1"]),
        ({"n_devices": 3}, ["train.balance.n_devices = 3", "divide", "n_experts = 8"]),
        ({"device_loss": 0.1}, ["n_devices = 1", "at least 2", "8"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(RecipeError) as caught:
        check_balance(BalanceSection(**changes), V3)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_settings_without_experts_are_refused():
    with pytest.raises(RecipeError, match="balance is set but the model has no experts"):
        check_balance(BalanceSection(), None)
