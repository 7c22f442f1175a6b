"""Buckets, padding and slot tables, with the replay replaced by a plain call; and the mode of fixed shapes."""

import dataclasses
import random

import pytest
import torch
from serving_models import DENSE, MODELS, count_ties, foresighted, fresh, prompts_of

from isoflop.model.pages import DUMP, PAGE, Span
from isoflop.numerics.tiled import TiledProduct
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.replay import Replay, Shape, buckets_up_to
from isoflop.serving.runner import Runner

BOTH = pytest.mark.parametrize("name", MODELS)


def test_buckets_double_up_to_the_largest():
    assert buckets_up_to(1) == (1,)
    assert buckets_up_to(8) == (1, 2, 4, 8)
    assert buckets_up_to(12) == (1, 2, 4, 8, 12)


def recording(rows=(1, 2, 4), columns=(1, 2, 3)):
    seen = []

    def run(tokens_N, step):
        seen.append((tokens_N.clone(), step))
        return (tokens_N.double(),)

    return Replay(run, rows=rows, columns=columns, last_position=150, device=torch.device("cpu")), seen


def test_rows_are_padded_to_the_smallest_bucket_and_padding_goes_to_nobodys_page():
    replay, seen = recording()
    spans = [Span([5], 3, 1), Span([2, 7], 64, 2), Span([9], 0, 2)]
    assert replay.shape_of(spans, 2) == Shape(4, 2, 2)
    (result,) = replay([11, 0, 21, 22, 31, 32], spans, 2)
    assert result.tolist() == [11, 0, 21, 22, 31, 32]
    tokens_N, step = seen[0]
    assert tokens_N.tolist() == [11, 0, 21, 22, 31, 32, 0, 0]
    assert step.positions_N.tolist() == [3, 4, 64, 65, 0, 1, 0, 1]
    assert step.slots_N.tolist() == [5 * PAGE + 3, DUMP, 7 * PAGE, 7 * PAGE + 1, 9 * PAGE, 9 * PAGE + 1, DUMP, DUMP]
    assert step.rows.table_RP.tolist() == [[5, DUMP], [2, 7], [9, DUMP], [DUMP, DUMP]]
    assert step.rows.before_R.tolist() == [3, 64, 0, 0] and step.rows.run is None


def test_everything_that_is_a_launch_constant_is_part_of_the_shape():
    """The same rows at every border of a bucket: a replay never reads numbers of another shape."""
    replay, seen = recording()
    shapes = set()
    for n_rows in (1, 2, 3, 4):
        for start in (0, 62, 63, 64, 127, 128, 149):
            for width in (1, 3):
                spans = [Span([1, 2, 3], start, min(width, 151 - start))] * n_rows
                replay([7] * (n_rows * width), spans, width)
                shape = replay.shape_of(spans, width)
                shapes.add(shape)
                tokens_N, step = seen[-1]
                assert len(tokens_N) == shape.n_rows * shape.width == len(step.positions_N) == len(step.slots_N)
                assert step.rows.table_RP.shape == (shape.n_rows, shape.n_columns)
                assert step.positions_N.max() <= 150 and shape.n_columns * PAGE >= start + spans[0].n
    assert set(replay._recorded) == shapes
    assert len({recorded._numbers.data_ptr() for recorded in replay._recorded.values()}) == len(shapes)


@BOTH
@pytest.mark.parametrize("temperatures", [(0.0,), (0.0, 0.7, 1.0)], ids=["greedy", "mixed"])
def test_steps_begun_before_their_tokens_are_read_give_the_same_text(name, temperatures, monkeypatch):
    model, prompts, begun = fresh(name), prompts_of(6, MODELS[name], longest=100), []
    sampling = [
        Sampling(max_tokens=20 + at, temperature=temperatures[at % len(temperatures)], seed=at, stop_ids=(7,))
        for at in range(6)
    ]
    expected = Engine(model, None, EngineOptions(max_rows=4)).complete(prompts, sampling)
    original = Runner._decode_rows
    monkeypatch.setattr(Runner, "_decode_rows", lambda self, *args: begun.append(1) or original(self, *args))
    engine = Engine(model, None, EngineOptions(max_rows=4, replay=True))
    assert [one.ids for one in engine.complete(prompts, sampling)] == [one.ids for one in expected]
    assert len(begun) < engine.stats.n_steps / 2, "most steps were begun before"
    asked = [*sampling[:-1], dataclasses.replace(sampling[-1], logprobs=1)]  # nobody's tokens stay on the device
    assert [one.ids for one in engine.complete(prompts, asked)] == [one.ids for one in expected]


def bytes_of(model, prompts, sampling, **options):
    """Texts and the bits of their log-probabilities."""
    done = Engine(model, None, EngineOptions(fixed_shapes=True, max_rows=6, **options)).complete(prompts, sampling)
    return [(one.ids, [logprob.raw for logprob in one.logprobs]) for one in done]


@BOTH
@pytest.mark.parametrize("draft", ["none", "mtp"])
def test_with_fixed_shapes_a_request_gives_the_same_bytes_whatever_else_runs(name, draft):
    if (name, draft) == ("dense", "mtp"):
        pytest.skip("a dense model without prediction modules")
    model = foresighted() if draft == "mtp" else fresh(name)
    prompts = prompts_of(9, MODELS[name], longest=150)
    sampling = [Sampling(max_tokens=20, temperature=0.5, seed=at, logprobs=0) for at in range(9)]
    together = bytes_of(model, prompts, sampling, draft=draft)
    for at in (0, 4, 8):
        assert bytes_of(model, [prompts[at]], [sampling[at]], draft=draft) == together[at : at + 1]
    order = random.Random(1).sample(range(9), 9)
    mixed = bytes_of(model, [prompts[at] for at in order], [sampling[at] for at in order], draft=draft)
    assert mixed == [together[at] for at in order]
    twice = bytes_of(model, [*prompts, *prompts], [*sampling, *sampling], draft=draft)  # prefixes are found again
    assert twice == [*together, *together]
    assert bytes_of(model, prompts, sampling, draft=draft, prefix_reuse=False) == together


@BOTH
def test_fixed_shapes_are_the_model_s_own_text_too(name):
    model, prompts = fresh(name), prompts_of(5, MODELS[name])
    engine = Engine(model, None, EngineOptions(fixed_shapes=True, max_rows=3))
    done = engine.complete(prompts, Sampling(max_tokens=20, temperature=0))
    assert count_ties(fresh(name), done) <= 1 and engine.scheduler.n_preempted == 0
    assert set(engine.runner._decode._recorded) == {Shape(3, 1, -(-DENSE.seq_len // PAGE))}


def test_a_tiled_product_computes_a_row_in_the_same_shape_whatever_the_batch():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(37, 48, generator=generator), torch.randn(20, 48, generator=generator)
    product = TiledProduct(16)
    whole = product(x, weight)
    assert (whole.double() - x.double() @ weight.double().T).abs().max() < 1e-5
    for n in (0, 1, 15, 16, 17, 32):
        assert torch.equal(product(x[:n], weight), whole[:n])
    assert product(x.view(1, 37, 48), weight).shape == (1, 37, 20)
