"""Greedy answers against the plain forward pass, and the detector of loops."""

import numpy as np
import pytest
import torch
from interop_models import FAMILIES, build

from isoflop.alignment.answers import answer
from isoflop.alignment.repetition import looped_tokens, repeats

PROMPTS = [np.arange(1, 1 + n, dtype=np.int32) for n in (3, 5, 3, 8, 5, 3)]


def one_by_one(model, prompt, stops, limit):
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            chosen = int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        if chosen in stops:
            return ids[len(prompt) :], True
        ids.append(chosen)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("name", ["gqa", "v3_dense"])
def test_greedy_answers_equal_the_plain_forward_pass(name):
    model = build(FAMILIES[name])
    prompts = [prompt + shift for shift in range(4) for prompt in PROMPTS]
    expected = [one_by_one(model, prompt, (), 20) for prompt in prompts]
    stops = sorted({ids[7] for ids, _ in expected[:3]})
    found = answer(model, prompts, stop_ids=stops, max_new_tokens=20)
    assert [(item.ids, item.stopped) for item in found] == [one_by_one(model, p, stops, 20) for p in prompts]
    assert 0 < sum(item.stopped for item in found) < len(prompts)


def test_a_full_context_ends_an_answer_and_unknown_rows_are_never_chosen():
    model = build(FAMILIES["mha"])
    prompts = [np.ones(90, dtype=np.int32), np.ones(96, dtype=np.int32)]
    found = answer(model, prompts, stop_ids=[], max_new_tokens=50, n_known=12)
    assert [len(item.ids) for item in found] == [6, 0] and max(found[0].ids) < 12
    assert not found[0].stopped


def test_sampled_answers_follow_the_seed():
    model = build(FAMILIES["mha"])
    say = lambda seed: answer(model, PROMPTS, stop_ids=[7], max_new_tokens=12, temperature=1.0, seed=seed)
    assert say(1) == say(1) and say(1) != say(2)


def test_asking_changes_nothing_in_a_model_that_goes_on_training():
    model = build(FAMILIES["v3"]).train()
    weights = {name: (id(weight), weight.clone()) for name, weight in model.named_parameters()}
    answer(model, PROMPTS, stop_ids=[7], max_new_tokens=4)
    assert model.training and model.config.mtp_depth == len(model.mtp) > 0
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(id(w) == weights[n][0] and torch.equal(w, weights[n][1]) for n, w in model.named_parameters())


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5] * 30, 30),
        ([9, 8, 7, *[1, 2, 3] * 9, 1], 28),
        ([*range(60), *[1, 2] * 2], 0),
        (list(range(100)), 0),
        ([*range(40)] * 3, 120),
        ([], 0),
        ([3, 3, 3], 3),
    ],
)
def test_the_loop_at_the_end_is_found(ids, expected):
    assert looped_tokens(ids) == expected


def test_an_answer_that_stops_or_loops_shortly_does_not_repeat():
    assert repeats([4] * 256, stopped=False) and not repeats([4] * 256, stopped=True)
    assert not repeats([*range(200), 1, 1, 1, 1], stopped=False)
