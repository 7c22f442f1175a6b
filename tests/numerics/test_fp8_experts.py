"""Experts in FP8 as grouped products, in their plain form: what the loop over experts with simulated products says."""

import pytest
import torch

from isoflop.model.config import ExpertConfig
from isoflop.model.dispatch import arrange
from isoflop.model.experts import Experts
from isoflop.numerics import fp8_experts
from isoflop.numerics.error import relative_error
from isoflop.numerics.fp8_whole import Fp8WholeProduct

N_EXPERTS, D_MODEL, D_EXPERT = 8, 48, 32
CHOICES = {
    "even": lambda g: torch.rand(100, N_EXPERTS, generator=g).topk(3).indices,
    "experts without rows": lambda g: torch.rand(70, N_EXPERTS, generator=g)[:, :5].topk(3).indices + 1,
    "one has all": lambda g: torch.full((37, 1), 5),
    "one token": lambda g: torch.tensor([[7, 0, 2]]),
}
ALL = pytest.mark.parametrize("name", CHOICES)
BOTH = pytest.mark.parametrize("per_row", [True, False], ids=["row", "tensor"])


def grouped(self, x_TD, choices, weights, plus_TD, adds=False):
    """What `Fp8WholeProduct.experts` does on a GPU, without asking whether it is one."""
    weights_TA, slot_R, ends_E = choices
    codes = tuple(fp8_experts.quantise_weight(weight, self.per_row) for weight in weights)
    rows = fp8_experts.filled_up(slot_R, ends_E, weights_TA.shape[1])
    return fp8_experts.experts(x_TD, weights_TA, plus_TD, rows, weights, codes, self.per_row, adds)


def layer_and_inputs(name, per_row):
    generator = torch.Generator().manual_seed(0)
    chosen_TA = CHOICES[name](generator)
    layer = Experts(D_MODEL, ExpertConfig(N_EXPERTS, 3, D_EXPERT))
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.2, generator=generator)
    layer.numerics = Fp8WholeProduct(per_row)
    x_TD, plus_TD, d_y_TD = (torch.randn(len(chosen_TA), D_MODEL, generator=generator) for _ in range(3))
    return layer, x_TD * torch.logspace(-2, 1, D_MODEL), torch.rand(chosen_TA.shape, generator=generator), plus_TD, (
        chosen_TA, d_y_TD,
    )  # fmt: skip


@ALL
@BOTH
def test_all_results_and_gradients_are_those_of_the_loop_over_experts(name, per_row):
    found = []
    for way in ("loop", "grouped"):
        layer, *leaves, (chosen_TA, d_y_TD) = layer_and_inputs(name, per_row)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        x_TD, weights_TA, plus_TD = leaves
        if way == "loop":
            y_TD, _ = layer(x_TD, weights_TA, chosen_TA, plus_TD)
        else:
            at = arrange(chosen_TA, N_EXPERTS)
            choices = (weights_TA, at.slot_R, at.ends_E)
            y_TD = grouped(layer.numerics, x_TD, choices, (layer.gate_up, layer.down), plus_TD)
        y_TD.backward(d_y_TD)
        found.append([y_TD.detach(), *(leaf.grad for leaf in leaves), layer.gate_up.grad, layer.down.grad])
    for theirs, ours in zip(*found, strict=True):
        assert ours.shape == theirs.shape and relative_error(ours, theirs) < 2e-3, "codes half-way may differ"


@ALL
def test_rows_are_filled_up_to_what_the_products_ask_for(name):
    chosen_TA = CHOICES[name](torch.Generator().manual_seed(0))
    at = arrange(chosen_TA, N_EXPERTS)
    rows = fp8_experts.filled_up(at.slot_R, at.ends_E, chosen_TA.shape[1])
    counts_E = torch.diff(rows.ends_E, prepend=rows.ends_E.new_zeros(1))
    assert (counts_E % 16 == 0).all() and (counts_E >= 16).all() and len(rows.token_P) % 128 == 0
    assert rows.ends_E.dtype == torch.int32 and rows.ends_E[-1] == len(rows.token_P)
    assert (rows.token_P[rows.row_TA] == torch.arange(len(chosen_TA))[:, None]).all()
    assert (rows.token_P >= 0).sum() == chosen_TA.numel(), "all other rows are zeros"
    assert torch.equal(rows.group.repeat_interleave(16)[rows.row_TA].long(), chosen_TA)


def test_gradients_of_micro_batches_are_added_in_place():
    layer, x_TD, weights_TA, plus_TD, (chosen_TA, d_y_TD) = layer_and_inputs("even", True)
    at = arrange(chosen_TA, N_EXPERTS)
    choices, weights = (weights_TA, at.slot_R, at.ends_E), (layer.gate_up, layer.down)
    for _ in range(3):
        grouped(layer.numerics, x_TD, choices, weights, plus_TD, adds=True).backward(d_y_TD)
    added = [weight.grad for weight in weights]
    layer.zero_grad()
    grouped(layer.numerics, x_TD, choices, weights, plus_TD).backward(d_y_TD)
    for three, weight in zip(added, weights, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(three, 3 * weight.grad)


def test_a_graph_takes_experts_in_no_format_that_loops_over_them():
    assert Fp8WholeProduct(True).capturable(torch.empty(32, 16))
    assert not Fp8WholeProduct(True).capturable(torch.empty(8, 32, 16)), "not on a CPU"
