"""On a GPU: greedy text through kernels and CUDA graphs is the full forward pass's, at every border of a bucket."""

import dataclasses
import gc

import pytest
import torch
from serving_models import MODELS, count_ties, fresh, one_module, prompts_of
from test_deepseek import BASE, SIGMOID, build

from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.memory import needed_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BORDERS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64)


def run(model, prompts, sampling, **options):
    engine = Engine(model, None, EngineOptions(cache_bytes=2**26, **options))
    return engine, engine.complete(prompts, sampling)


def test_float32_text_through_graphs_is_the_full_forward_s():
    """64 requests of 256 tokens; then so many of them at once that each border of a bucket is crossed."""
    assert not torch.backends.cuda.matmul.allow_tf32
    model, prompts = fresh("dense").cuda(), prompts_of(64, MODELS["dense"], longest=140)
    sampling = Sampling(max_tokens=256, temperature=0)
    engine, done = run(model, prompts, sampling, max_rows=64)
    assert count_ties(model, done) <= 1
    shapes = set(engine.runner._decode._recorded)
    assert all(recorded._graph is not None for recorded in engine.runner._decode._recorded.values())
    for n in BORDERS:
        engine, few = run(model, prompts[:n], Sampling(max_tokens=40, temperature=0), max_rows=64)
        assert count_ties(model, few) <= 1
        shapes |= set(engine.runner._decode._recorded)
    assert {shape.n_rows for shape in shapes} == {1, 2, 4, 8, 16, 32, 64}
    assert {shape.n_columns for shape in shapes} >= {1, 2, 4, 7}


def test_float32_text_of_latent_experts_is_the_full_forward_s():
    model, prompts = fresh("moe_mla").cuda(), prompts_of(64, MODELS["moe_mla"], longest=140)
    for options in ({"max_rows": 64}, {"max_rows": 3}, {"max_rows": 6, "draft": "mtp"}):
        n = 64 if options["max_rows"] == 64 else 6
        _, done = run(model, prompts[:n], Sampling(max_tokens=256 if n == 64 else 40, temperature=0), **options)
        assert count_ties(model, done) <= 1


@pytest.mark.parametrize("name", ["dense", "moe_mla"])
def test_float32_text_of_rounds_that_the_device_does_alone_is_the_full_forward_s(name):
    model = one_module(name).cuda()
    prompts = prompts_of(6, model.config, longest=140)
    for max_rows in (1, 4, 6):
        engine, done = run(model, prompts, Sampling(max_tokens=80, temperature=0), max_rows=max_rows, draft="mtp")
        assert count_ties(model, done) <= 1
        rounds = engine.runner._rounds
        assert (rounds is None) == (name == "moe_mla")  # experts in groups are not recorded
        if rounds is not None:
            assert rounds._recorded
            assert all(recorded._graph is not None for recorded, _ in rounds._recorded.values())


@pytest.mark.parametrize("n", [1, 2, 8, 9, 33])
def test_bfloat16_experts_through_graphs_stay_near_the_exact_model(n):
    """Log-probabilities of what was drawn; few rows and many take different kernels."""
    experts = dataclasses.replace(SIGMOID, n_groups=1, n_groups_kept=1, d_expert=16)
    exact = build(dataclasses.replace(BASE, n_layers=2, seq_len=400, experts=experts)).cuda()
    narrow = Transformer(exact.config, torch.bfloat16).cuda()
    narrow.load_state_dict(exact.state_dict())
    prompts, sampling = (
        prompts_of(n, exact.config, longest=90),
        Sampling(max_tokens=40, temperature=1, seed=1, logprobs=0),
    )
    engine, done = run(narrow, prompts, sampling, max_rows=64)
    assert all(recorded._graph is not None for recorded in engine.runner._decode._recorded.values())
    errors = []
    for one in done:
        tokens = torch.tensor([*one.prompt_ids, *one.ids], device="cuda")
        with torch.no_grad():
            logits_TV = exact.logits(tokens[None, :-1])[0, len(one.prompt_ids) - 1 :].log_softmax(-1)
        raw = torch.tensor([logprob.raw for logprob in one.logprobs], device="cuda")
        errors += (logits_TV.gather(1, tokens[len(one.prompt_ids) :, None])[:, 0] - raw).abs().tolist()
    assert sorted(errors)[len(errors) // 2] < 0.03


def test_peak_memory_is_what_was_forecast():
    gc.collect()  # models and graphs of the tests before this one
    before = torch.cuda.memory_allocated()
    config = ModelConfig(4, 512, 8, 8, 64, 1408, 8192, 2048, init_std=0.05)
    model = Transformer(config, torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    engine = Engine(model, None, EngineOptions(cache_bytes=2**32, max_rows=8))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    prompts = prompts_of(8, config, shortest=1000, longest=1024)
    engine.complete(prompts, Sampling(max_tokens=20, temperature=0.7, top_p=0.9))
    needed = needed_bytes(model, n_pages=engine.pool.n_pages, max_rows=8, budget=engine.scheduler.budget)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(needed, rel=0.05)
