"""Gradients of experts' weights by one product against float64: in Triton's interpreter, and on Hopper."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from on_gpu import waiting_for_the_device_is_an_error

from isoflop.model import dispatch
from isoflop.numerics import expert_gradients, fp8_experts
from isoflop.numerics.error import relative_error
from isoflop.numerics.linear import Held

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETS = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
ON_HOPPER = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
    ),
]
COUNTS = {"ragged": [37, 0, 64, 1, 154], "one has all": [0, 0, 200, 0, 0], "even": [32] * 5}
N_OUT, N_IN = 80, 48
ALL = pytest.mark.parametrize("name", COUNTS)
BOTH = pytest.mark.parametrize("coded", [False, True], ids=["bf16", "fp8"])


def operands(counts, coded, device, n_out, n_in):
    """Rows or columns of the gradient and the input, ends, scales, and the exact gradients [E, N, K]."""
    counts = [-(-max(count, 1) // 16) * 16 for count in counts] if coded else counts
    if coded:
        counts[-1] += -sum(counts) % 128
    generator, ends_E = torch.Generator().manual_seed(0), torch.tensor(counts).cumsum(0).int()
    rows = [torch.randn(sum(counts), n, generator=generator).bfloat16() for n in (n_out, n_in)]
    scales, wide = None, [x.double() for x in rows]
    if coded:
        group = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(torch.tensor(counts) // 16)
        codes = [fp8_experts._plain(x.float(), group, len(counts), True, False)[2:] for x in rows]
        rows, scales = [code.to(device) for code, _ in codes], tuple(scale.to(device) for _, scale in codes)
        of_row = group.repeat_interleave(16)
        wide = [code.double().T * scale.double()[of_row] for code, scale in codes]
    exact_ENK = torch.stack([a.T @ b for a, b in zip(*(x.split(counts) for x in wide), strict=True)])
    return [x.to(device) for x in rows], ends_E.to(device), scales, exact_ENK


def errors(counts, coded, device, tiles=None, sizes=(N_OUT, N_IN)):
    """Of gradients that are written and of those that are added."""
    rows, ends_E, scales, exact_ENK = operands(counts, coded, device, *sizes)
    if device == "cpu" and not coded:
        rows = [x.float() for x in rows]  # the interpreter would multiply the bits of bf16
    weight = torch.nn.Parameter(torch.full(exact_ENK.shape, torch.nan, device=device))
    with waiting_for_the_device_is_an_error() if device == "cuda" else torch.no_grad():
        found = expert_gradients.expert_gradient(weight, *rows, ends_E, True, scales, tiles)
        weight.grad = torch.full(exact_ENK.shape, 3.0, device=device)
        assert expert_gradients.expert_gradient(weight, *rows, ends_E, True, scales, tiles) is None
    unused_E = exact_ENK.flatten(1).eq(0).all(1)
    assert (found[unused_E] == 0).all() and (weight.grad[unused_E] == 3).all()
    return relative_error(found.cpu(), exact_ENK), relative_error(weight.grad.cpu() - 3, exact_ENK)


@ALL
def test_plain_sums_of_codes_are_those_of_float64(name):
    assert max(errors(COUNTS[name], True, "cpu")) < 1e-6


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
@ALL
@BOTH
def test_interpreted_gradients_are_those_of_float64(name, coded, monkeypatch):
    from triton.runtime import interpreter  # pyright: ignore[reportMissingImports]

    patch = interpreter._patch_lang_tensor

    def with_index(tensor, scope):
        patch(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # NumPy 2.4: no int() of arrays with a dimension

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)
    monkeypatch.setattr(expert_gradients, "has_kernels", lambda x, wide=False: True)
    assert max(errors(COUNTS[name], coded, "cpu", (32, 32, 32, 4, 3))) < 1e-6


@pytest.mark.skipif(INTERPRETS or not HAS_TRITON, reason="needs Triton, whose interpreter runs kernels without a GPU")
def test_in_triton_s_interpreter_gradients_are_those_of_float64():
    """In a process of its own: whether Triton interprets is settled when it is imported."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and f"{2 * len(COUNTS)} passed" in done.stdout, done.stdout[-4000:]


class TestOnHopper:
    pytestmark = ON_HOPPER

    @pytest.mark.parametrize("counts", [*COUNTS.values(), [700, 0, 1, 300, 1023, 16]], ids=str)
    @BOTH
    @pytest.mark.parametrize("sizes", [(208, 272), (512, 640)])
    def test_gradients_are_those_of_float64(self, counts, coded, sizes):
        assert max(errors(counts, coded, "cuda", sizes=sizes)) < (3e-3 if coded else 3e-5)

    @pytest.mark.parametrize("adds", [True, False])
    def test_held_experts_have_the_gradients_of_two_micro_batches_in_float32(self, adds):
        rows, ends_E, _, exact_ENK = operands(COUNTS["ragged"], False, "cuda", 208, 272)
        weight = torch.nn.Parameter(torch.zeros(exact_ENK.shape, device="cuda"))
        held = Held(weight.detach().bfloat16(), adds)
        for _ in range(2):
            dispatch.grouped_product(rows[1], weight, ends_E, held=held).backward(rows[0])
        assert weight.grad is not None and relative_error(weight.grad.cpu(), 2 * exact_ENK) < 3e-5
