"""On Hopper: codes of experts against the plain form, grouped products against float64 of those codes, whole layers."""

import pytest
import torch
from on_gpu import waiting_for_the_device_is_an_error

from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.dispatch import arrange
from isoflop.model.experts import Experts
from isoflop.model.transformer import Transformer
from isoflop.numerics import fp8_experts
from isoflop.numerics.assign import assign
from isoflop.numerics.error import relative_error
from isoflop.numerics.fp8_whole import Fp8WholeProduct
from isoflop.numerics.section import NumericsSection, Rule
from isoflop.numerics.step_weights import step_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
    ),
]
N_EXPERTS, D_MODEL, D_EXPERT = 8, 272, 208
CHOICES = {
    "even": lambda g: torch.rand(700, N_EXPERTS, generator=g).topk(3).indices,
    "experts without rows": lambda g: torch.rand(170, N_EXPERTS, generator=g)[:, :5].topk(3).indices + 1,
    "one has all": lambda g: torch.full((1037, 1), 5),
    "one token": lambda g: torch.tensor([[7, 0, 2]]),
}
ALL = pytest.mark.parametrize("name", CHOICES)
BOTH = pytest.mark.parametrize("per_row", [True, False], ids=["row", "tensor"])


def randn(*shape, dtype=torch.bfloat16, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (x * torch.logspace(-2, 2, shape[-1])).to(dtype).cuda()  # columns of very different sizes


def filled(name) -> tuple[torch.Tensor, fp8_experts.Rows]:
    chosen_TA = CHOICES[name](torch.Generator().manual_seed(0)).cuda()
    at = arrange(chosen_TA, N_EXPERTS)
    return chosen_TA, fp8_experts.filled_up(at.slot_R, at.ends_E, chosen_TA.shape[1])


def operands(kind: str, rows: fp8_experts.Rows, n_tokens: int):
    n_rows = len(rows.token_P)
    if kind == "taken":
        return randn(n_tokens, D_MODEL), {"token_P": rows.token_P}
    if kind == "gated":
        return randn(n_rows, 2 * D_EXPERT) / 30, {"weights_P": randn(n_rows, dtype=torch.float32, seed=1).abs()}
    return randn(n_rows, D_MODEL), {}


@ALL
def test_rows_are_filled_up_as_in_the_plain_form(name):
    chosen_TA, found = filled(name)
    at = arrange(chosen_TA.cpu(), N_EXPERTS)
    plain = fp8_experts.filled_up(at.slot_R, at.ends_E, chosen_TA.shape[1])
    for mine, theirs in zip(found, plain, strict=True):
        assert torch.equal(mine.cpu(), theirs)


@ALL
@BOTH
@pytest.mark.parametrize("kind", ["plain", "taken", "gated", "weight"])
def test_kernels_have_the_scales_and_codes_of_the_plain_form(name, per_row, kind):
    chosen_TA, rows = filled(name)
    if kind == "weight":
        weight = randn(N_EXPERTS, D_EXPERT, D_MODEL, dtype=torch.float32)
        found, plain = (fp8_experts.quantise_weight(w, per_row) for w in (weight, weight.cpu()))
    else:
        x, given = operands(kind, rows, len(chosen_TA))
        with waiting_for_the_device_is_an_error():
            found = fp8_experts.quantise(x, rows.group, N_EXPERTS, per_row, **given)
        given = {key: tensor.cpu() for key, tensor in given.items()}
        plain = fp8_experts.quantise(x.cpu(), rows.group.cpu(), N_EXPERTS, per_row, **given)
    assert_equal_but_for_rounding(found, plain)


@ALL
@BOTH
def test_gradients_of_gate_and_up_have_the_scales_and_codes_of_the_plain_form(name, per_row):
    _, rows = filled(name)
    x, given = operands("gated", rows, 0)
    operands_P = (randn(len(x), D_EXPERT, seed=2), x, given["weights_P"], rows.group)
    with waiting_for_the_device_is_an_error():
        found = fp8_experts.quantise_gradients(*operands_P, N_EXPERTS, per_row)
    plain = fp8_experts.quantise_gradients(*(operand.cpu() for operand in operands_P), N_EXPERTS, per_row)
    assert_equal_but_for_rounding(found[0], plain[0])
    assert relative_error(found[1].cpu(), plain[1]) < 1e-5


def assert_equal_but_for_rounding(found: fp8_experts.Codes, plain: fp8_experts.Codes) -> None:
    for mine, theirs in zip(found, plain, strict=True):
        mine = mine.cpu()
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        if mine.dtype == torch.float32:
            torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=0)
        else:
            differing = (mine.float() != theirs.float()).float().mean().item()
            assert differing < 1e-2, "only values half-way between two codes may differ"
            assert relative_error(mine.float(), theirs.float()) < 1e-2


@ALL
def test_grouped_products_are_those_of_the_codes_in_float64(name):
    _, rows = filled(name)
    n_rows, ends_E = len(rows.token_P), rows.ends_E
    weight = fp8_experts.quantise_weight(randn(N_EXPERTS, D_EXPERT, D_MODEL, dtype=torch.float32), True)
    x, d_y = (fp8_experts.quantise(randn(n_rows, n, seed=n), rows.group, N_EXPERTS, True) for n in (D_MODEL, D_EXPERT))
    for fast in (True, False):
        with waiting_for_the_device_is_an_error():
            found = (
                fp8_experts.product(x[:2], weight[:2], ends_E, torch.bfloat16, fast),
                fp8_experts.product(d_y[:2], weight[2:], ends_E, torch.bfloat16, fast),
            )
        meant = lambda codes, scales: codes.double() * scales.double()[..., None]
        first = 0
        for e, last in enumerate(ends_E.tolist()):
            at = slice(first, last)
            w, turned = meant(weight.rows[e], weight.row_scales[e]), meant(weight.columns[e], weight.column_scales[e])
            exact = (
                meant(x.rows[at], x.row_scales[at]) @ w.T,
                meant(d_y.rows[at], d_y.row_scales[at]) @ turned.T,
            )
            for mine, theirs in zip((found[0][at], found[1][at]), exact, strict=True):
                if theirs.any():
                    assert relative_error(mine, theirs) < 4e-3, "rounding to bf16, and the sums of tensor cores"
                else:
                    assert not mine.any(), "an expert without rows"
            first = last


@ALL
@BOTH
def test_a_layer_is_that_of_the_plain_form_and_near_the_loop(name, per_row):
    generator, found = torch.Generator().manual_seed(0), {}
    chosen_TA = CHOICES[name](generator)
    layer = Experts(D_MODEL, ExpertConfig(N_EXPERTS, 3, D_EXPERT))
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.06, generator=generator)
    layer.numerics = Fp8WholeProduct(per_row)
    shape = (len(chosen_TA), D_MODEL)
    x_TD, plus_TD, d_y_TD = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
    weights_TA = torch.rand(chosen_TA.shape, generator=generator)
    for way, device in (("kernels", "cuda"), ("plain", "cpu"), ("loop", "cpu")):
        layer.to(device).zero_grad()
        leaves = [leaf.to(device).detach().clone().requires_grad_() for leaf in (x_TD, weights_TA, plus_TD)]
        chosen, d_y, weights = chosen_TA.to(device), d_y_TD.to(device), (layer.gate_up, layer.down)
        if way == "plain":
            at = arrange(chosen, N_EXPERTS)
            codes = tuple(fp8_experts.quantise_weight(weight, per_row) for weight in weights)
            rows = fp8_experts.filled_up(at.slot_R, at.ends_E, chosen.shape[1])
            y_TD = fp8_experts.experts(*leaves, rows, weights, codes, per_row, False)
        else:
            y_TD, load_E = layer(leaves[0], leaves[1], chosen, leaves[2])
            assert int(load_E.sum()) == chosen_TA.numel()
        y_TD.backward(d_y)
        results = (y_TD.detach(), *(leaf.grad for leaf in leaves), *(weight.grad for weight in weights))
        found[way] = [result.cpu().clone() for result in results]
    for mine, plain, loop in zip(*found.values(), strict=True):
        assert mine.shape == plain.shape and mine.dtype == loop.dtype
        # A bit of another scale of all values moves every code: two roundings to E4M3 are 2.6% sqrt(2) apart.
        assert relative_error(mine, plain) < 4e-2 and relative_error(mine, loop) < 4e-2


EXPERTS = ExpertConfig(16, 4, 64, n_groups=4, n_groups_kept=2, routed_scale=2.5)
V3 = ModelConfig(3, 128, 4, 4, 64, 256, 512, 128, init_std=0.05, latent=LatentConfig(64, 32, 32, 64), experts=EXPERTS)


@pytest.mark.parametrize("format", ["fp8_rowwise", "fp8_tensorwise"])
def test_a_mixture_in_fp8_learns_as_in_bfloat16_and_never_waits(format):
    tokens = torch.randint(512, (2, 4, 129), generator=torch.Generator().manual_seed(1)).cuda()
    losses = {}
    for numerics in (None, NumericsSection((Rule("blocks.*", format),))):
        model = Transformer(V3, torch.bfloat16).cuda()
        model.initialise(torch.Generator().manual_seed(0))
        if numerics is not None:
            assign(model, numerics)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)

        def step(model=model):
            with step_weights(model, torch.bfloat16):
                for windows in tokens:
                    loss = model.loss_sum(windows[:, :-1], windows[:, 1:]) / 1024
                    loss.backward()
            return loss

        for index in range(6):
            if index == 2:  # libraries have initialised themselves
                with waiting_for_the_device_is_an_error():
                    loss = step()
            else:
                loss = step()
            optimizer.step()
            optimizer.zero_grad()
        losses[numerics is None] = float(loss.detach())
    experts = [m for m in model.modules() if isinstance(m, Experts)]
    assert experts and not any(m.numerics.expert_codes for m in experts), "nothing is left of a step"
    assert losses[True] < 3 and losses[False] == pytest.approx(losses[True], rel=0.05)
