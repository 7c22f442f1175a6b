"""On Hopper: codes and scales against the reference arithmetic, the three products against float64 of those codes."""

import pytest
import torch
from on_gpu import waiting_for_the_device_is_an_error

from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.error import relative_error
from isoflop.numerics.fp8_block import Fp8BlockProduct, dequantise, quantise_blocks, quantise_rows
from isoflop.numerics.fp8_scaled import Codes, ScaledFormat
from isoflop.numerics.fp8_whole import Fp8WholeProduct
from isoflop.numerics.joined import swiglu
from isoflop.numerics.linear import Linear
from isoflop.numerics.section import NumericsSection, Rule
from isoflop.numerics.step_weights import step_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
    ),
]
SHAPES = pytest.mark.parametrize("shape", [(256, 384), (48, 208), (1040, 2048)])
PRODUCTS = {
    "block": lambda: Fp8BlockProduct(),
    "block, powers of two": lambda: Fp8BlockProduct(power_of_two_scales=True),
    "row": lambda: Fp8WholeProduct(per_row=True),
    "tensor": lambda: Fp8WholeProduct(per_row=False),
}
ALL = pytest.mark.parametrize("name", PRODUCTS)


def randn(*shape, dtype=torch.bfloat16, seed=0):
    x = torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
    return (x * torch.logspace(-2, 2, shape[-1], device="cuda")).to(dtype)  # tiles of very different sizes


def meant(codes: torch.Tensor, scales: torch.Tensor, scaling: str, n: int) -> torch.Tensor:
    """The float64 matrix [R, n] that codes along rows and their scales stand for."""
    if scaling == "block":
        return codes[:, :n].double() * scales.T.double().repeat_interleave(128, 1)[:, :n]
    return codes[:, :n].double() * (scales[:, None].double() if scaling == "row" else scales.double())


def weight_meant(codes: Codes, scaling: str, shape) -> torch.Tensor:
    n_out, n_in = shape
    if scaling != "block":
        return meant(codes.rows, codes.row_scales, scaling, n_in)
    scales = codes.row_scales.double().repeat_interleave(128, 0)[:n_out].repeat_interleave(128, 1)[:, :n_in]
    return codes.rows[:, :n_in].double() * scales


@SHAPES
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_tiles_have_the_scales_and_codes_of_the_reference(shape, power_of_two, again):
    x, (n_rows, n_columns) = randn(*shape), shape
    found = ScaledFormat("block", power_of_two).quantise(x, again=again)
    codes, scale = (t.cuda() for t in quantise_rows(x.float().cpu(), 128, power_of_two))
    turned = dequantise(found.rows[:, :n_columns], found.row_scales.T, 128).T if again else x.float().T
    again_quantised = quantise_rows(turned.contiguous().cpu(), 128, power_of_two)
    codes_of_columns, scale_of_columns = (t.cuda() for t in again_quantised)
    for mine, my_scale, theirs, their_scale, n in (
        (found.rows, found.row_scales, codes, scale, n_columns),
        (found.columns, found.column_scales, codes_of_columns, scale_of_columns, n_rows),
    ):
        torch.testing.assert_close(my_scale.T, their_scale, rtol=3e-7, atol=0)
        differing = (mine[:, :n].float() != theirs.float()).float().mean().item()
        assert differing < (0 if power_of_two else 5e-3) + 1e-9, "only values half-way between two codes may differ"
        assert not mine[:, n:].float().any(), "padding is zero"
    assert relative_error(meant(found.rows, found.row_scales, "block", n_columns), x) < 3e-2


@SHAPES
def test_blocks_of_weights_have_the_codes_of_the_reference_in_both_directions(shape):
    w, (n_out, n_in) = randn(*shape, dtype=torch.float32), shape
    found = ScaledFormat("block").quantise_weight(w)
    codes, scale = (t.cuda() for t in quantise_blocks(w.cpu(), 128, False))
    torch.testing.assert_close(found.row_scales[:, : scale.shape[1]], scale, rtol=3e-7, atol=0)
    torch.testing.assert_close(found.column_scales[:, : len(scale)], scale.T, rtol=3e-7, atol=0)
    assert (found.rows[:, :n_in].float() != codes.float()).float().mean() < 1e-4
    assert torch.equal(found.columns[:, :n_out].float(), found.rows[:, :n_in].float().T)


@ALL
@SHAPES
def test_all_three_products_are_those_of_the_codes_in_float64(name, shape):
    product, (n_out, n_in) = PRODUCTS[name](), (320, shape[1])
    format = product.scaled.format
    x, w, d_y = randn(shape[0], n_in), randn(n_out, n_in, dtype=torch.float32, seed=1), randn(shape[0], n_out, seed=2)
    x_leaf, w_leaf = x.clone().requires_grad_(), w.clone().requires_grad_()
    with waiting_for_the_device_is_an_error():
        y = product(x_leaf, w_leaf)
        y.backward(d_y)
    x8, d8, w8 = format.quantise(x, again=True), format.quantise(d_y), format.quantise_weight(w)
    scaling, rows = format.scaling, lambda c, n: meant(c.rows, c.row_scales, format.scaling, n)
    columns = lambda c, n: meant(c.columns, c.column_scales, scaling, n)
    weight = weight_meant(w8, scaling, w.shape)
    turned = weight if scaling == "block" else columns(w8, n_out).T
    assert relative_error(y, rows(x8, n_in) @ weight.T) < 4e-3, "rounding to bf16, and the sums of tensor cores"
    assert relative_error(x_leaf.grad, rows(d8, n_out) @ turned) < 4e-3
    assert w_leaf.grad.dtype == torch.float32
    assert relative_error(w_leaf.grad, columns(d8, len(x)) @ columns(x8, len(x)).T) < 1e-3


@ALL
def test_products_are_near_those_of_the_simulation(name):
    x, w, d_y = randn(256, 512), randn(384, 512, dtype=torch.float32, seed=1), randn(256, 384, seed=2)
    found = {}
    for device in ("cuda", "cpu"):
        x_leaf, w_leaf = (t.to(device).clone().requires_grad_() for t in (x, w))
        y = PRODUCTS[name]()(x_leaf, w_leaf)
        y.backward(d_y.to(device))
        found[device] = [t.detach().cpu() for t in (y, x_leaf.grad, w_leaf.grad)]
    for real, simulated in zip(found["cuda"], found["cpu"], strict=True):
        assert relative_error(real, simulated) < 6e-3


def test_a_gated_mlp_is_its_three_steps():
    product = Fp8BlockProduct()
    gate_up, down = randn(2 * 640, 256, dtype=torch.float32) / 16, randn(256, 640, dtype=torch.float32, seed=1) / 16
    x, d_y = randn(160, 256, seed=2), randn(160, 256, seed=3)
    results = {}
    for way in ("one", "apart", "exact"):
        leaves = [(t.double() if way == "exact" else t).clone().requires_grad_() for t in (x, gate_up, down)]
        if way == "one":
            y = product.gated(leaves[0], leaves[1], product, leaves[2])
        elif way == "apart":
            y = product(swiglu(product(leaves[0], leaves[1])), leaves[2])
        else:
            y = swiglu(leaves[0] @ leaves[1].T) @ leaves[2].T
        y.backward(d_y.to(y.dtype))
        results[way] = [y.detach(), *(leaf.grad for leaf in leaves)]
    for one, apart, exact in zip(*results.values(), strict=True):
        assert relative_error(one, apart) < 2e-2, "SwiGLU is not rounded to bf16 in between"
        assert relative_error(one, exact) < 1.05 * relative_error(apart, exact)


@ALL
def test_gradients_of_micro_batches_add_up_in_place(name):
    layer = Linear(256, 384).cuda()
    layer.weight.data.copy_(randn(384, 256, dtype=torch.float32) / 16)
    layer.numerics = PRODUCTS[name]()
    batches = [(randn(64, 256, seed=i), randn(64, 384, seed=9 + i)) for i in range(3)]
    for x, d_y in batches:
        layer(x).backward(d_y)
    expected, layer.weight.grad = layer.weight.grad, None
    with step_weights(layer, torch.bfloat16):
        for x, d_y in batches:
            layer(x).backward(d_y)
    assert layer.numerics.scaled.codes is None
    assert relative_error(layer.weight.grad, expected) < 1e-6


@pytest.mark.parametrize(("n_rows", "n_in", "runs"), [(8, 40, False), (37, 64, True), (1, 64, True)])
def test_any_number_of_rows_runs_and_odd_widths_are_simulated(n_rows, n_in, runs):
    x, w, d_y = randn(n_rows, n_in), randn(32, n_in, dtype=torch.float32, seed=1), randn(n_rows, 32, seed=2)
    assert ScaledFormat("block").runs(x, w) is runs
    found = []
    for device in ("cuda", "cpu"):
        x_leaf, w_leaf = (t.to(device).clone().requires_grad_() for t in (x, w))
        Fp8BlockProduct()(x_leaf, w_leaf).backward(d_y.to(device))
        found.append((x_leaf.grad.cpu(), w_leaf.grad.cpu()))
    for real, simulated in zip(*found, strict=True):
        assert real.shape == simulated.shape and relative_error(real, simulated) < 2e-2


@pytest.mark.parametrize("format", ["fp8_block", "fp8_rowwise", "fp8_tensorwise"])
def test_a_model_in_fp8_learns_as_in_bfloat16(format):
    shape = ModelConfig(2, 256, 4, 4, 64, 768, 1024, 128, init_std=0.05)
    tokens = torch.randint(1024, (4, 129), generator=torch.Generator().manual_seed(1)).cuda()
    losses = {}
    for numerics in (None, NumericsSection((Rule("blocks.*", format),))):
        model = Transformer(shape, torch.bfloat16).cuda()
        model.initialise(torch.Generator().manual_seed(0))
        if numerics is not None:
            assign(model, numerics)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        for _ in range(4):
            with step_weights(model, torch.bfloat16):
                loss = model.loss_sum(tokens[:, :-1], tokens[:, 1:]) / 512
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[numerics is None] = float(loss.detach())
    assert losses[True] < 3 and losses[False] == pytest.approx(losses[True], rel=0.03)
