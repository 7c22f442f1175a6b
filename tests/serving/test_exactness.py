"""What the engine writes is what the model says: greedy text equals the full forward pass, whatever runs beside it.

At the size of CI here; the 64 requests of 256 tokens are the slow ones.
"""

import random

import pytest
import torch
from serving_models import MODELS, count_ties, foresighted, fresh, prompts_of

from isoflop.model.transformer import Transformer
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.memory import page_bytes

GREEDY = Sampling(max_tokens=30, temperature=0)
BOTH = pytest.mark.parametrize("name", MODELS)


def run(model, prompts, sampling=GREEDY, **options):
    engine = Engine(model, None, EngineOptions(**options))
    done = engine.complete(prompts, sampling)
    assert engine.pool.n_held == 0 and not engine.scheduler.running and not engine.scheduler.waiting
    return engine, done


def ids(completions):
    return [done.ids for done in completions]


def check(model, prompts, sampling=GREEDY, **options):
    engine, done = run(model, prompts, sampling, **options)
    assert all(len(one.ids) == sampling.max_tokens for one in done)
    assert count_ties(model, done) <= max(1, len(prompts) // 64)
    return engine, done


@BOTH
def test_greedy_equals_the_full_forward_alone_and_batched(name):
    model, prompts = fresh(name), prompts_of(12, MODELS[name])
    _, batched = check(model, prompts)
    alone = [run(model, [prompt])[1][0] for prompt in prompts[:4]]
    assert ids(alone) == ids(batched)[:4]


@BOTH
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_greedy_equals_the_full_forward_in_chunks_of(name, chunk):
    check(fresh(name), prompts_of(6, MODELS[name]), chunk_tokens=chunk)


@BOTH
def test_greedy_equals_the_full_forward_with_preemption_forced(name):
    model, prompts = fresh(name), prompts_of(8, MODELS[name], shortest=40, longest=120)
    sampling = Sampling(max_tokens=70, temperature=0)
    engine, _ = check(model, prompts, sampling, cache_bytes=9 * page_bytes(model), max_rows=6, prefix_reuse=False)
    assert engine.scheduler.n_preempted > 0
    engine, _ = check(model, prompts, sampling, cache_bytes=9 * page_bytes(model), max_rows=6)
    assert engine.stats.n_reused_tokens > 0  # their own pages, found again


@BOTH
@pytest.mark.parametrize("draft", ["none", "mtp"])
def test_greedy_equals_the_full_forward_with_prefix_reuse(name, draft):
    if (name, draft) == ("dense", "mtp"):
        pytest.skip("a dense model without prediction modules")
    model, generator = fresh(name), random.Random(4)
    shared = prompts_of(2, MODELS[name], shortest=150, longest=150)
    prompts = [shared[at % 2][: generator.choice([64, 65, 66, 100, 128, 129, 150])] for at in range(12)]
    prompts = [[*prompt, *prompts_of(1, MODELS[name], longest=9, seed=at)[0]] for at, prompt in enumerate(prompts)]
    engine, done = check(model, prompts, max_rows=2, draft=draft)
    assert engine.stats.n_reused_tokens >= 3 * 64 and any(one.n_reused_tokens for one in done)
    assert all(one.n_reused_tokens % 64 == 0 and one.n_reused_tokens < len(one.prompt_ids) for one in done)


@BOTH
def test_greedy_equals_the_full_forward_in_every_slot(name):
    model, prompts = fresh(name), prompts_of(8, MODELS[name])
    expected = run(model, [prompts[0]])[1][0].ids
    for slot in range(8):
        turned = [*prompts[1 : 1 + slot], prompts[0], *prompts[1 + slot :]]
        _, done = run(model, turned)
        assert done[slot].ids == expected, slot


@BOTH
def test_greedy_equals_the_full_forward_through_every_bucket_border(name):
    model, prompts = fresh(name), prompts_of(9, MODELS[name])
    expected = ids(run(model, prompts)[1])
    shapes = set()
    for n in (1, 2, 3, 4, 5, 8, 9):
        engine, done = run(model, prompts[:n], replay=True, max_rows=8)
        assert ids(done) == expected[:n], n
        shapes |= set(engine.runner._decode._recorded)
    assert {shape.n_rows for shape in shapes} == {1, 2, 4, 8} and len({shape.n_columns for shape in shapes}) > 1


def adversary(seed):
    """Drafts that are right for a while and then wrong, by a generator of their own, or wrong all the time."""
    generator = random.Random(seed)

    def look_up(tokens, n_drafts):
        truth = KNOWN.get(tuple(tokens), [])[:n_drafts]
        n_right = generator.randint(0, len(truth)) if truth else 0
        return [*truth[:n_right], *(generator.randrange(160) for _ in range(n_drafts - n_right))]

    return look_up


KNOWN: dict[tuple[int, ...], list[int]] = {}
"""What follows a text, told to the adversary."""


def tell(completions):
    KNOWN.clear()
    for done in completions:
        for n in range(len(done.ids)):
            KNOWN[(*done.prompt_ids, *done.ids[:n])] = done.ids[n:]


@BOTH
@pytest.mark.parametrize("drafts", ["mtp", "lookup", "adversary"])
def test_greedy_equals_the_full_forward_with_drafts_from(name, drafts, monkeypatch):
    if (name, drafts) == ("dense", "mtp"):
        pytest.skip("a dense model without prediction modules")
    model = foresighted() if drafts == "mtp" else fresh(name)
    prompts = prompts_of(10, MODELS[name])
    _, plain = check(model, prompts)
    if drafts == "adversary":
        tell(plain)
        monkeypatch.setattr("isoflop.serving.engine.look_up", adversary(1))
    engine, done = check(model, prompts, draft="mtp" if drafts == "mtp" else "lookup")
    assert ids(done) == ids(plain)
    assert 0 < sum(engine.stats.accepted) < sum(engine.stats.proposed)
    assert engine.stats.n_steps < 0.9 * len(plain[0].ids) + 10 or drafts == "lookup"


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 7}, {"replay": True}, {"max_rows": 2}], ids=str)
def test_drafts_of_modules_are_those_of_the_whole_sequence(options):
    """Acceptance at the first place: how often the module's choice on the finished text is the next token."""
    model, prompts = foresighted(), prompts_of(5, MODELS["moe_mla"])
    seen = []
    engine = Engine(model, None, EngineOptions(draft="mtp", **options))
    plan = engine.scheduler.plan

    def watched():
        found = plan()
        seen.extend((work.row.number, len(work.row.tokens), list(work.row.drafts)) for work in found.rows)
        return found

    engine.scheduler.plan = watched
    done = engine.complete(prompts, GREEDY)
    for number, n_tokens, drafts in seen:
        tokens = torch.tensor([[*done[number].prompt_ids, *done[number].ids]])
        if not drafts:
            continue
        with torch.no_grad():
            depths, _ = model.mtp_hidden(model(tokens), tokens)
            wanted = model.head(depths[0])[0, n_tokens - 2].argmax().item()
            assert drafts[0] == wanted, (number, n_tokens)
            if len(drafts) > 1 and n_tokens < tokens.shape[1] and drafts[0] == tokens[0, n_tokens]:
                assert drafts[1] == model.head(depths[1])[0, n_tokens - 2].argmax().item(), (number, n_tokens)
    assert engine.stats.accepted[0] / engine.stats.proposed[0] > 0.5
    assert engine.stats.acceptance[1] is not None


@BOTH
def test_log_probabilities_are_those_of_the_full_forward(name):
    model, prompts = fresh(name), prompts_of(4, MODELS[name], shortest=2)
    sampling = Sampling(max_tokens=9, temperature=0.7, seed=5, logprobs=3, prompt_logprobs=2)
    for options in ({}, {"chunk_tokens": 5}, {"draft": "lookup"}):
        _, done = run(model, prompts, sampling, **options)
        for one in done:
            tokens = torch.tensor([*one.prompt_ids, *one.ids])
            with torch.no_grad():
                exact_TV = model.logits(tokens[None, :-1])[0].double().log_softmax(-1)
            found = [*one.prompt_logprobs, *one.logprobs]
            assert len(found) == len(tokens) - 1
            for at, (logprob, token) in enumerate(zip(found, tokens[1:].tolist(), strict=True)):
                assert logprob.raw == pytest.approx(exact_TV[at, token].item(), abs=1e-4)
                best = exact_TV[at].topk(3).indices.tolist()
                assert [i for i, _ in logprob.top] == best[: len(logprob.top)]
            assert {len(p.top) for p in one.logprobs} == {3} and {len(p.top) for p in one.prompt_logprobs} == {2}


@BOTH
def test_bfloat16_weights_are_cast_once_and_stay_near_the_exact_model(name):
    exact, prompts = fresh(name), prompts_of(4, MODELS[name], longest=40)
    narrow = Transformer(exact.config, torch.bfloat16)
    narrow.load_state_dict(exact.state_dict())
    sampling = Sampling(max_tokens=10, temperature=1.0, seed=1, logprobs=0)
    engine, done = run(narrow, prompts, sampling, draft="lookup")
    assert engine.model.head.weight.dtype == torch.bfloat16 and engine.runner.layers[0].keys.dtype == torch.bfloat16
    errors = []
    for one in done:
        tokens = torch.tensor([*one.prompt_ids, *one.ids])
        with torch.no_grad():
            logits_TV = exact.logits(tokens[None, :-1])[0, len(one.prompt_ids) - 1 :].log_softmax(-1)
        raw = torch.tensor([logprob.raw for logprob in one.logprobs])
        errors += (logits_TV.gather(1, tokens[len(one.prompt_ids) :, None])[:, 0] - raw).abs().tolist()
    assert sorted(errors)[len(errors) // 2] < 0.05, errors


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk_tokens": 1},
        {"chunk_tokens": 7},
        {"chunk_tokens": 64},
        {"max_rows": 12, "cache_pages": 40},
        {"draft": "lookup"},
        {"draft": "adversary"},
        {"draft": "mtp"},
        {"replay": True},
        {"fixed_shapes": True, "max_rows": 16},
    ],
    ids=str,
)
def test_64_mixed_requests_of_256_tokens_equal_the_full_forward(name, options, monkeypatch):
    options = dict(options)
    model, prompts = fresh(name), prompts_of(64, MODELS[name], longest=140)
    sampling = Sampling(max_tokens=256, temperature=0)
    if options.get("draft") == "mtp":
        if name == "dense":
            pytest.skip("a dense model without prediction modules")
        model = foresighted()
    if options.get("draft") == "adversary":
        tell(run(model, prompts, sampling)[1])
        monkeypatch.setattr("isoflop.serving.engine.look_up", adversary(2))
        options["draft"] = "lookup"
    if "cache_pages" in options:
        options["cache_bytes"] = options.pop("cache_pages") * page_bytes(model)
    engine, done = run(model, prompts, sampling, **options)
    n_ties = count_ties(model, done)
    print(f"{name} {options}: {n_ties} ties of 64, {engine.scheduler.n_preempted} sent back, {engine.stats}")
    assert n_ties <= 1
