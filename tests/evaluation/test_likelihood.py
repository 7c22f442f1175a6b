"""Scores over a forest equal those of plain forward passes, one sequence at a time, whatever is shared and cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interop_models import FAMILIES, build

from isoflop.evaluation import likelihood
from isoflop.evaluation.forest import Asked, cut, grow
from isoflop.evaluation.likelihood import fit, score
from isoflop.model import many_rows, pages, tree


def questions(seed: int, n: int = 12) -> list[Asked]:
    """Few worked examples, contexts behind them, options behind those; some sequences are asked as a whole."""
    random = np.random.default_rng(seed)
    shots = [random.integers(0, 160, 90) for _ in range(2)]
    found = []
    for _ in range(n):
        context = [
            *shots[random.integers(2)][: random.choice([0, 90])],
            *random.integers(0, 160, random.integers(1, 50)),
        ]
        for _ in range(random.integers(1, 5)):
            option = random.integers(0, 3, random.integers(1, 16)).tolist()
            sequence, _ = fit(context, option, 192)
            found.append(sequence if random.random() < 0.8 else Asked(sequence.tokens, len(sequence.tokens) - 1))
    return found


@torch.no_grad()
def plain(model, sequence: Asked) -> tuple[float, bool]:
    tokens = torch.tensor(sequence.tokens.astype(np.int64))[None]
    log_p = model.logits(tokens[:, :-1])[0].log_softmax(-1)[-sequence.n_scored :]
    wanted = tokens[0, -sequence.n_scored :]
    return log_p.gather(1, wanted[:, None]).double().sum().item(), bool((log_p.argmax(-1) == wanted).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_scores_equal_plain(family):
    model = build(replace(FAMILIES[family], seq_len=192))
    asked = questions(seed=sum(map(ord, family)))
    expected = [plain(model, sequence) for sequence in asked]
    for budget in (1, 260, 100_000):  # a node at a time, parts that go on with what is kept, all at once
        found = {one.number: one for one in score(model, asked, budget=budget)}
        assert sorted(found) == list(range(len(asked)))
        for number, (nats, is_greedy) in enumerate(expected):
            assert abs(found[number].nats - nats) <= 1e-5 * max(1, abs(nats)), (budget, number)
            assert found[number].is_greedy == is_greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_a_gpu_give_the_same_scores_without_the_kernels_of_decoding(family, monkeypatch):
    model = build(replace(FAMILIES[family], seq_len=192))
    asked = questions(seed=1)
    expected = {one.number: one for one in score(model, asked, budget=260)}
    monkeypatch.setattr(tree, "BY_TREE", ())
    monkeypatch.setattr(many_rows, "takes", lambda model: False)
    monkeypatch.setattr(pages, "has_kernels", lambda x, wide=False: True)  # those of pages.py write to its slots
    for one in score(model, asked, budget=260):
        assert abs(one.nats - expected[one.number].nats) <= 1e-5 * max(1, abs(one.nats))
        assert one.is_greedy == expected[one.number].is_greedy


def test_ties_over_the_vocabulary_go_to_the_first_token(monkeypatch):
    model = build(replace(FAMILIES["mha"], seq_len=192))
    model.head.weight.data[:] = model.head.weight.data[:1]  # all logits are equal
    monkeypatch.setattr(likelihood, "HEAD_COLUMNS", 48)
    asked = [Asked(np.array([5, 6, token], np.int32), 1) for token in (0, 1, 47, 48, 159)]
    found = {one.number: one for one in score(model, asked)}
    assert [found[at].is_greedy for at in range(5)] == [True, False, False, False, False]
    assert all(abs(one.nats + np.log(model.config.vocab_size)) < 1e-5 for one in found.values())


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=30), min_size=1, max_size=20), st.integers(1, 40))
def test_every_asked_token_is_computed_once_behind_its_own_text(rows, budget):
    asked = [Asked(np.array(row, np.int32), 1 + sum(row) % (len(row) - 1)) for row in rows]
    answered = [[] for _ in rows]
    memory, was_kept = np.zeros(0, dtype=np.int32), False
    for kept, nodes, is_kept in cut(grow(asked), budget):
        assert was_kept or not len(kept)
        was_kept = is_kept
        assert len(nodes) == 1 or sum(node.n_tokens for node in nodes) <= budget
        memory = np.concatenate([memory[kept], *(node.tokens[node.start : node.end] for node in nodes)])
        for node in nodes:
            seen = memory[np.concatenate([one.slots for one in node.path()][::-1])]
            for number, first, last in node.places:
                assert seen[:last].tolist() == rows[number][:last]
                answered[number] += range(first, last)
    for row, sequence, places in zip(rows, asked, answered):
        assert sorted(places) == list(range(len(row) - 1 - sequence.n_scored, len(row) - 1))


def test_what_is_shared_is_computed_once():
    shared, tails = [1] * 40, [[2, 3, 4, 5, 6], [2, 9], [7, 8, 9], [7, 8, 8]]
    nodes = grow([Asked(np.array([*shared, *tail, 0], np.int32), 1) for tail in tails])
    assert sum(node.n_tokens for node in nodes) <= 40 + sum(map(len, tails))
    assert len(grow([Asked(np.array([*shared, last], np.int32), 1) for last in range(4)])) == 1  # letters: one pass


def test_what_does_not_fit_is_cut_from_the_left():
    sequence, n_cut = fit([1, 2, 3, 4], [5, 6], 4)
    assert (sequence.tokens.tolist(), sequence.n_scored, n_cut) == ([2, 3, 4, 5, 6], 2, 1)
    sequence, n_cut = fit([1], [2, 3, 4, 5], 3)
    assert (sequence.tokens.tolist(), sequence.n_scored, n_cut) == ([2, 3, 4, 5], 3, 1)
