"""The kernels of a decoding step against the plain forward pass and float64: in Triton's interpreter, and on a GPU."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from test_deepseek import BASE, LATENT, SIGMOID, SOFTMAX, build

from isoflop.model import few_rows as steps
from isoflop.model import pages
from isoflop.model.config import ModelConfig
from isoflop.model.few_rows import run_step
from isoflop.model.pages import PAGE, Span, make_step
from isoflop.model.transformer import Transformer
from isoflop.numerics.error import relative_error

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
    for module in (pages, steps):  # the float64 model stays plain
        monkeypatch.setattr(module, "has_kernels", lambda x: x.dtype == torch.float32)
    from triton.runtime import interpreter  # pyright: ignore[reportMissingImports]

    patch = interpreter._patch_lang_tensor

    def with_index(tensor, scope):
        patch(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # NumPy 2.4: no int() of arrays with a dimension

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)


def spans(lengths, width):
    """Rows that hold so many tokens, on pages out of order."""
    n_pages = [-(-(length + width) // PAGE) for length in lengths]
    numbers = iter(torch.randperm(sum(n_pages), generator=torch.Generator().manual_seed(1)).add(1).tolist())
    return [Span([next(numbers) for _ in range(n)], length, width) for n, length in zip(n_pages, lengths, strict=True)]


def filled(model, n_pages):
    """Pages of all layers with something in them."""
    generator = torch.Generator().manual_seed(2)
    layers = []
    for _ in range(model.config.n_layers):
        layer = pages.LayerPages(n_pages, model.config, dtype=model.dtype, device=model.embedding.weight.device)
        layer.keys.copy_(torch.randn(layer.keys.shape, generator=generator))
        if layer.values.data_ptr() != layer.keys.data_ptr():
            layer.values.copy_(torch.randn(layer.values.shape, generator=generator))
        layers.append(layer)
    return layers


def compare(config, lengths, width, dtype, device, limit):
    """Hidden states and pages of a step through the kernels, and of the float64 model's plain one."""
    model, exact = (Transformer(config, kind) for kind in (dtype, torch.float64))
    state = build(config).state_dict()
    for one in (model, exact):
        one.load_state_dict(state)
        one.to(device)
        one.cast_once()
    exact.double()
    rows = spans(lengths, width)
    tokens = torch.randint(0, config.vocab_size, (len(rows) * width,), generator=torch.Generator().manual_seed(3))
    n_pages = 1 + sum(len(row.pages) for row in rows)
    found, layers = [], []
    for one in (model, exact):
        step = make_step(rows, width=width, device=device, n_rows=len(rows) + 1, in_place=False)
        padded = torch.cat((tokens, torch.zeros(width, dtype=torch.int64))).to(device)
        layers.append(filled(one, n_pages))
        run = run_step if one is model else Transformer.step
        with torch.inference_mode():
            found.append(run(one, padded, step, layers[-1])[: len(tokens)])
    assert relative_error(found[0], found[1]) < limit
    for ours, theirs in zip(*layers, strict=True):
        assert relative_error(ours.keys[1:], theirs.keys[1:]) < limit
        assert relative_error(ours.values[1:], theirs.values[1:]) < limit


@pytest.mark.skipif(not INTERPRETS, reason="run by the next test, in a process whose Triton interprets")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("lengths", "width"), [((70,), 1), ((300,), 3), ((63, 256), 1), ((0, 300), 2)])
def test_interpreted_step_of_kernels_is_the_model_s(name, lengths, width, interpreted):
    compare(MODELS[name], lengths, width, torch.float32, "cpu", 2e-6)


@pytest.mark.skipif(INTERPRETS or not HAS_TRITON, reason="needs Triton, whose interpreter runs kernels without a GPU")
def test_in_triton_s_interpreter_a_step_of_kernels_is_the_model_s():
    """In a process of its own: whether Triton interprets is settled when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "28 passed" in done.stdout, done.stdout[-4000:]
