"""Rounds that the device does alone: same text and same drafts as single steps, and begun ahead of the host."""

import pytest
import torch
from serving_models import count_ties, one_module, prompts_of

from isoflop.model.pages import DUMP, PAGE
from isoflop.numerics.rounds import begin_round, end_round
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.rounds import Rounds

GREEDY = Sampling(max_tokens=90, temperature=0)


@pytest.fixture
def counted(monkeypatch):
    """How often a round was begun ahead, and how often one of those was asked for."""
    found = {"rounds": 0, "ahead": 0, "kept": 0}
    run, replay = Rounds.run, Rounds._replay

    def watched_run(self, works):
        begun, before = self._begun, found["rounds"]
        result = run(self, works)
        found["kept"] += begun is not None and found["rounds"] == before + (self._begun is not None)
        return result

    def watched_replay(self, state, works, *, ahead):
        found["rounds"] += 1
        found["ahead"] += ahead > 0
        return replay(self, state, works, ahead=ahead)

    monkeypatch.setattr(Rounds, "run", watched_run)
    monkeypatch.setattr(Rounds, "_replay", watched_replay)
    return found


@pytest.mark.parametrize("name", ["dense", "moe_mla"])
@pytest.mark.parametrize(
    "options",
    [{"max_rows": 1}, {"max_rows": 3}, {"max_rows": 8, "chunk_tokens": 7}, {"max_rows": 4, "cache_bytes": 150_000}],
)
def test_text_and_acceptance_are_those_of_single_steps(name, options, counted):
    model = one_module(name)
    prompts = prompts_of(6, model.config, longest=100)
    if "cache_bytes" in options:
        page = Engine(model, None, EngineOptions(max_rows=1, draft="mtp")).runner.n_bytes // (1 + -(-400 // PAGE))
        options = {**options, "cache_bytes": 8 * page}  # too few for all: some are sent back
    single = Engine(model, None, EngineOptions(draft="mtp", replay=False, **options))
    texts = single.complete(prompts, GREEDY)
    assert not counted["rounds"]
    engine = Engine(model, None, EngineOptions(draft="mtp", replay=True, **options))
    found = engine.complete(prompts, GREEDY)
    assert count_ties(model, found) == 0
    assert [one.ids for one in found] == [one.ids for one in texts]
    assert engine.stats.accepted == single.stats.accepted and engine.stats.proposed == single.stats.proposed
    assert counted["kept"] > 0.5 * engine.stats.n_steps if options["max_rows"] == 1 else counted["kept"]
    assert "cache_bytes" not in options or engine.scheduler.n_preempted


def test_rows_that_ask_for_more_and_stops_and_cancelling_go_back_to_single_steps(counted):
    model = one_module("moe_mla")
    prompts = prompts_of(5, model.config, longest=100)
    plain = Engine(model, None, EngineOptions()).complete(prompts, GREEDY)
    stop = plain[1].ids[10]
    each = [GREEDY, Sampling(max_tokens=90, temperature=0, stop_ids=(stop,)), GREEDY]
    each += [Sampling(max_tokens=20, temperature=1, seed=3), Sampling(max_tokens=30, temperature=0, logprobs=1)]
    expected = Engine(model, None, EngineOptions()).complete(prompts, each)
    engine = Engine(model, None, EngineOptions(draft="mtp", replay=True, max_rows=5))
    found = {engine.add(prompt, one): [] for prompt, one in zip(prompts, each, strict=True)}
    extra = engine.add(prompts[0], GREEDY)
    n = 0
    while not engine.is_finished():
        for output in engine.step():
            if output.number in found:
                found[output.number] += output.ids
        n += 1
        if n == 50:
            engine.cancel(extra)
    assert [*found.values()] == [one.ids for one in expected]
    assert counted["kept"] and counted["kept"] < counted["ahead"]


def test_a_round_begins_where_the_state_says_and_ends_by_its_draft():
    state_R4 = torch.tensor([[11, 12, 63, 0], [21, 22, 5, 1], [0, 0, 0, 0]])
    table_RP = torch.tensor([[4, 7], [9, DUMP], [DUMP, DUMP]])
    embedding, angles = torch.arange(60.0).view(30, 2), (torch.arange(400.0)[:, None], -torch.arange(400.0)[:, None])
    begun = begin_round(state_R4, table_RP, embedding, angles, PAGE)
    assert begun.tokens_N.tolist() == [11, 12, 21, 22, 0, 0] and begun.positions_N.tolist() == [63, 64, 5, 6, 0, 1]
    assert begun.slots_N.tolist() == [4 * PAGE + 63, 7 * PAGE, 9 * PAGE + 5, 9 * PAGE + 6, 0, 1]
    assert begun.before_R.tolist() == [63, 5, 0]
    assert torch.equal(begun.x_ND, embedding[begun.tokens_N])
    assert begun.angles[0].flatten().tolist() == begun.positions_N.tolist()
    chosen_N2 = torch.tensor([[12, 1.5], [13, 2.5], [23, 3.5], [24, 4.5], [5, 0.5], [6, 0.5]]).double()
    drafted_NV = torch.nn.functional.one_hot(torch.tensor([30, 31, 40, 41, 1, 2]), 50).float()
    report_2R5 = torch.zeros(2, 3, 5, dtype=torch.float64)
    end_round(state_R4, chosen_N2, drafted_NV, report_2R5)
    assert state_R4.tolist() == [[13, 31, 65, 1], [23, 40, 6, 0], [5, 1, 1, 1]]
    assert report_2R5[0, 0].tolist() == [12, 1.5, 13, 2.5, 31] and report_2R5[1, 1].tolist() == [23, 3.5, 24, 4.5, 40]
    assert not report_2R5[1, 0].any() and not report_2R5[0, 1].any()
