"""The kernels of a decoding step against the plain forward pass and float64: in Triton's interpreter, and on a GPU."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_deepseek import BASE, LATENT, SIGMOID, SOFTMAX, build
from torch.nn import functional as F

from isoflop.model import few_rows as steps
from isoflop.model import pages, plain_rows
from isoflop.model.config import ModelConfig
from isoflop.model.few_rows import run_step
from isoflop.model.pages import PAGE, Span, make_step
from isoflop.model.transformer import Transformer
from isoflop.numerics import few_rows, rounds
from isoflop.numerics.error import relative_error
from isoflop.serving import noise

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETS = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

UNGROUPED = dataclasses.replace(SIGMOID, n_groups=1, n_groups_kept=1)
SMALL = dataclasses.replace(BASE, n_layers=2, seq_len=700)
MODELS = {
    "gqa": ModelConfig(2, 32, 4, 2, 8, 48, 160, 700, init_std=0.12),
    "mha of odd sizes": ModelConfig(2, 36, 3, 3, 12, 44, 150, 700, init_std=0.12),
    "latent": SMALL,
    "latent queries too": dataclasses.replace(SMALL, latent=dataclasses.replace(LATENT, d_q_latent=20)),
    "experts": dataclasses.replace(SMALL, experts=UNGROUPED),
    "softmax experts": dataclasses.replace(SMALL, latent=None, d_head=8, experts=SOFTMAX),
    "experts alone": dataclasses.replace(SMALL, experts=dataclasses.replace(UNGROUPED, n_shared=0)),
}
LENGTHS = (0, 1, 63, 64, 65, 255, 256, 300)
"""Tokens held before a step: borders of a page and of a split."""


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(plain_rows, "takes", lambda *_: False)
    for module in (pages, steps):  # the float64 model stays plain
        monkeypatch.setattr(module, "has_kernels", lambda x, wide=False: x.dtype == torch.float32)
    from triton.runtime import interpreter  # pyright: ignore[reportMissingImports]

    patch = interpreter._patch_lang_tensor

    def with_index(tensor, scope):
        patch(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # NumPy 2.4: no int() of arrays with a dimension

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)
    # All sums across threads here are sums of several tensors at once, which it would take value by value.
    one_by_one = lambda self, tensors: [self.sum(tensor) for tensor in tensors]
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", one_by_one)


def spans(lengths, width):
    """Rows that hold so many tokens, on pages out of order."""
    n_pages = [-(-(length + width) // PAGE) for length in lengths]
    numbers = iter(torch.randperm(sum(n_pages), generator=torch.Generator().manual_seed(1)).add(1).tolist())
    return [Span([next(numbers) for _ in range(n)], length, width) for n, length in zip(n_pages, lengths, strict=True)]


def filled(model, n_pages, dtype):
    """Pages of all layers with something in them that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(2)
    layers = []
    for _ in range(model.config.n_layers):
        layer = pages.LayerPages(n_pages, model.config, dtype=model.dtype, device=model.embedding.weight.device)
        layer.keys.copy_(torch.randn(layer.keys.shape, generator=generator).to(dtype))
        if layer.values.data_ptr() != layer.keys.data_ptr():
            layer.values.copy_(torch.randn(layer.values.shape, generator=generator).to(dtype))
        layers.append(layer)
    return layers


def compare(config, lengths, width, dtype, device):
    """Relative errors against the float64 model of a step through kernels and of a plain one: of the hidden states
    of the row in the middle (an expert's tie may send one elsewhere), and of all that is in the pages."""
    model, exact = Transformer(config, dtype), Transformer(config, torch.float64).double()
    model.load_state_dict(build(config).state_dict())
    model.cast_once()
    exact.load_state_dict(model.state_dict())
    rows = spans(lengths, width)
    tokens = torch.randint(0, config.vocab_size, (len(rows) * width,), generator=torch.Generator().manual_seed(3))
    n_rows = len(rows) + (len(rows) > 1)  # one is padding
    tokens_N = torch.cat((tokens, torch.zeros((n_rows - len(rows)) * width, dtype=torch.int64))).to(device)
    n_pages = 1 + sum(len(row.pages) for row in rows)
    found = []
    for one, run in ((exact, Transformer.step), (model, run_step), (model, Transformer.step)):
        one.to(device)
        step = make_step(rows, width=width, device=device, n_rows=n_rows, n_columns=6, in_place=False)
        layers = filled(one, n_pages, dtype)
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            if run is Transformer.step:
                patch.setattr(pages, "has_kernels", lambda x, wide=False: False)
            found.append((run(one, tokens_N, step, layers)[: len(tokens)], layers))
    (exact_ND, exact_layers), *others = found
    errors = []
    for hidden_ND, layers in others:
        each = sorted(relative_error(*pair) for pair in zip(hidden_ND, exact_ND, strict=True))
        kept = zip(layers, exact_layers, strict=True)
        pairs = [pair for a, b in kept for pair in ((a.keys[1:], b.keys[1:]), (a.values[1:], b.values[1:]))]
        errors.append((each[len(each) // 2], max(relative_error(*pair) for pair in pairs)))
    return errors


ONE = [((70,), 1), ((300,), 1)]
SOME = [((300,), 3), ((63, 256), 1), ((0, 300), 2)]


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("lengths", "width"), [ONE[1], SOME[2]])
def test_interpreted_step_of_kernels_is_the_model_s(name, lengths, width, interpreted):
    of_kernels, _ = compare(MODELS[name], lengths, width, torch.float32, "cpu")
    assert max(of_kernels) < 2e-6


@pytest.mark.parametrize("name", ["gqa", "mha of odd sizes"])
@pytest.mark.parametrize(("lengths", "width"), [*ONE, *SOME, (LENGTHS, 1)], ids=str)
def test_on_a_cpu_a_step_in_few_calls_is_the_model_s(name, lengths, width, monkeypatch):
    taken, takes = [], plain_rows.takes
    monkeypatch.setattr(plain_rows, "takes", lambda *of: taken.append(takes(*of)) or taken[-1])
    for errors in compare(MODELS[name], lengths, width, torch.float32, "cpu"):
        assert max(errors) < 2e-6
    assert taken == [True]


def mtp_errors(dtype, device):
    """Of a prediction module's step through kernels and of a plain one, against float64."""
    config = dataclasses.replace(SMALL, experts=UNGROUPED, mtp_depth=1)
    model, exact = Transformer(config, dtype), Transformer(config, torch.float64).double()
    model.load_state_dict(build(config).state_dict())
    model.cast_once()
    exact.load_state_dict(model.state_dict())
    rows, generator = spans((70,), 2), torch.Generator().manual_seed(3)
    tokens_N = torch.randint(0, config.vocab_size, (2,), generator=generator).to(device)
    hidden_ND = torch.randn(2, config.d_model, generator=generator).to(device, dtype)
    found = []
    for one, run in ((exact, Transformer.mtp_step), (model, steps.run_mtp_step), (model, Transformer.mtp_step)):
        one.to(device)
        step = make_step(rows, width=2, device=device, in_place=False)
        layer = filled(one, 3, dtype)[0]
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            if run is Transformer.mtp_step:
                patch.setattr(pages, "has_kernels", lambda x, wide=False: False)
            found.append(run(one, 1, hidden_ND.to(one.dtype), tokens_N, step, layer))
    return [relative_error(one, found[0]) for one in found[1:]]


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
def test_interpreted_step_of_a_prediction_module_is_the_model_s(interpreted):
    assert mtp_errors(torch.float32, "cpu")[0] < 2e-6


ALONE = [(1, 1040, 96, True), (1, 514, 4100, False), (1, 1040, 8200, True), (1, 40, 130, False)]
PRODUCTS = [(2, 600, 96, False), (2, 1040, 520, True), (2, 514, 5000, False), (2, 40, 130, False), *ALONE]
"""Tokens (all in one kernel), rows and columns of the weight, gated: one of each kind of tiles, pairs of tokens too."""
HELD = [(8, 0, 0, 4), (4, 0, 0, 2), (2, 0, 0, 1)]
"""Tiles of rows that are in registers before the wait."""


def held_errors(dtype, device):
    """Of pairs and of one token, by tiles that hold their rows."""
    found = []
    for tiles in HELD:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(few_rows, "PAIR", dict.fromkeys(few_rows.PAIR, tiles))
            patch.setattr(few_rows, "ONE", {(96, True): tiles, (520, False): tiles})
            sizes = [*PRODUCTS[:2], (2, 514, 700, False), PRODUCTS[4], (1, 1040, 520, False)]
            found += [product_error(*each, dtype, device) for each in sizes]
    return found


def product_error(n_tokens, n_out, n_in, gated, dtype, device):
    """Of a product with norm and two weights, or gated, and of one that is added to something, against float64."""
    generator = torch.Generator().manual_seed(5)
    x, plus, first, second, gain = (
        torch.randn(size, generator=generator).to(device, dtype)
        for size in ((n_tokens, n_in), (n_tokens, n_out), (n_out, n_in), (n_out // 2, n_in), (n_in,))
    )
    first, second = first / n_in**0.5, second / n_in**0.5
    second, norm = None if gated else second, few_rows.Norm(gain.float(), 1e-6)
    y = few_rows._product(x, first, second, norm=norm, gated=gated)
    added = few_rows._product(x, first, None, norm=None, plus_NF=plus)
    wide = x.double()
    exact_added = wide @ first.double().T + plus.double()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * gain.double()
    exact = wide @ torch.cat((first, first[:0] if second is None else second)).double().T
    if gated:
        gate, up = exact.chunk(2, -1)
        exact = F.silu(gate) * up
    return max(relative_error(y, exact), relative_error(added, exact_added))


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
def test_interpreted_products_in_tiles_of_every_kind_are_exact(interpreted):
    assert all(product_error(*sizes, torch.float32, "cpu") < 2e-6 for sizes in PRODUCTS)
    assert max(held_errors(torch.float32, "cpu")) < 2e-6


def round_errors(device):
    """Relative errors of the kernels around a round's steps, from their plain forms."""
    generator = torch.Generator().manual_seed(7)
    table_RP = torch.randint(0, 9, (4, 3), generator=generator).to(device)
    embedding, hidden_ND, cos, sin, gain, logits_NV, drafted_NV = (
        torch.randn(size, generator=generator).to(device)
        for size in ((5000, 20), (8, 20), (401, 6), (401, 6), (20,), (8, 5000), (8, 5000))
    )
    logits_NV[0, 12], logits_NV[6, 4097] = 9, 9
    norms = few_rows.Norm(gain, 1e-6), few_rows.Norm(gain + 1, 1e-5)
    found = []
    for kernels in (True, False):
        state_R4 = torch.tensor([[11, 12, 63, 0], [21, 22, 5, 1], [0, 0, 700, 0], [7, 4097, 127, 1]]).to(device)
        report_2R5 = torch.zeros(2, 4, 5, dtype=torch.float64, pin_memory=device == "cuda")
        with pytest.MonkeyPatch.context() as patch:
            for module in (few_rows, rounds):
                patch.setattr(module, "has_kernels", lambda x, wide=False, integers=False, there=kernels: there)
            begun = rounds.begin_round(state_R4, table_RP, embedding, (cos, sin), PAGE)
            drafted = rounds.begin_draft(logits_NV, hidden_ND, embedding, *norms)
            if device == "cuda" and not kernels:
                report_2R5 = report_2R5.cuda()  # plain operators do not write to the host
            rounds.end_round(state_R4, drafted[0], drafted_NV, report_2R5)
        if device == "cuda":
            torch.cuda.synchronize()
        found.append([*begun[:5], *begun.angles, *drafted, state_R4, report_2R5])
    return [relative_error(a.double().cpu(), b.double().cpu()) for a, b in zip(*found, strict=True)]


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
def test_interpreted_rounds_are_the_plain_ones(interpreted):
    assert max(round_errors("cpu")) < 3e-7


SEEDS = [(3, 0), (2**63 + 5, 17), (2**64 - 1, 2**31)]


def noise_error(device):
    keys = torch.from_numpy(np.array(SEEDS, np.uint64).view(np.int64)).to(device)
    expected = np.stack([noise.gumbel(seed, position, 1003) for seed, position in SEEDS])
    return (noise._gumbel_kernel(keys, 1003).cpu() - torch.from_numpy(expected)).abs().max().item()


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
def test_interpreted_noise_is_numpy_s(interpreted):
    assert noise_error("cpu") < 3e-6


@pytest.mark.skipif(INTERPRETS or not HAS_TRITON, reason="needs Triton, whose interpreter runs kernels without a GPU")
def test_in_triton_s_interpreter_a_step_of_kernels_is_the_model_s():
    """In a process of its own: whether Triton interprets is settled when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and f"{2 * len(MODELS) + 4} passed" in done.stdout, done.stdout[-4000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("lengths", "width"), [*ONE, *SOME, (LENGTHS, 1)], ids=str)
def test_on_a_gpu_a_step_of_kernels_is_the_model_s(name, dtype, lengths, width):
    of_kernels, plain = compare(MODELS[name], lengths, width, dtype, "cuda")
    for error, allowed in zip(of_kernels, plain, strict=True):
        assert error < (3e-6 if dtype == torch.float32 else 1.3 * allowed + 1e-3), (of_kernels, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_products_in_tiles_of_every_kind_are_exact():
    for sizes in PRODUCTS:
        assert product_error(*sizes, torch.float32, "cuda") < 3e-6
        assert product_error(*sizes, torch.bfloat16, "cuda") < 5e-3
    assert max(held_errors(torch.float32, "cuda")) < 3e-6
    assert max(held_errors(torch.bfloat16, "cuda")) < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_step_of_a_prediction_module_is_the_model_s():
    assert mtp_errors(torch.float32, "cuda")[0] < 3e-6
    of_kernels, plain = mtp_errors(torch.bfloat16, "cuda")
    assert of_kernels < 1.3 * plain + 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_rounds_are_the_plain_ones():
    assert max(round_errors("cuda")) < 3e-7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_on_a_gpu_is_numpy_s():
    assert noise_error("cuda") < 3e-6
    assert noise.gumbel_rows(SEEDS, 1003, torch.device("cuda")).shape == (3, 1003)
