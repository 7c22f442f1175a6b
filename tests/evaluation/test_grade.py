"""Normalisations, samples and missing answers, by hand."""

import math

import pytest

from isoflop.evaluation.grade import BITS, grade, option_scores, summarise
from isoflop.evaluation.recipe import NORMALISATIONS
from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.task import Choice, Passage, Question

ITEM = Choice("1", "Q:", (" ab", " \u00e4bcdef"), (1,))
ANSWER = {
    "nats": [-4.0, -6.0],
    "nats_tokens": [1, 3],
    "whole_text": [-9.0, -11.0],
    "whole_text_tokens": [3, 5],
    "unconditional": [-3.0, -8.0],
}


def test_normalisations_known_answer():
    expected = {
        "acc": [-4, -6],
        "acc_norm": [-2, -1],
        "acc_bytes": [-2, -6 / 7],
        "acc_token": [-4, -2],
        "acc_whole_text": [-3, -2.2],
        "acc_mutual_info": [-1, 2],
    }
    for metric in NORMALISATIONS:
        assert option_scores(ITEM, ANSWER, metric) == pytest.approx(expected[metric]), metric
    found = grade(task("piqa"), ITEM, ANSWER, ("acc_mutual_info",), (1,))
    assert found is not None and found.scores == {
        "acc": 0.0,
        "acc_norm": 1.0,
        "acc_mutual_info": 1.0,
        BITS: pytest.approx(6 / 7 / math.log(2)),
    }


def test_samples_are_averaged_and_programs_pass_at_k():
    question = Question("1", "Q: x?\nA:", ("blue",))
    found = grade(task("nq_open"), question, {"outputs": ["blue", "red", "Blue.", "green"]}, (), (1,))
    assert found is not None and found.scores == {"exact_match": 0.5}
    verdicts = [["passed", ""], ["failed", ""], ["failed", ""], ["timeout", ""]]
    found = grade(task("humaneval"), question, {"outputs": [""] * 4, "verdicts": verdicts}, (), (1, 2))
    assert found is not None and found.scores == {"pass@1": 0.25, "pass@2": 0.5}


def test_missing_answers_are_not_zeros():
    items = [Question(str(n), "Q", ("a",)) for n in range(3)]
    graded = [
        grade(task("nq_open"), items[0], {"outputs": ["a"]}, (), (1,)),
        grade(task("nq_open"), items[1], {"problem": "a logit is not finite", "outputs": [""]}, (), (1,)),
        grade(task("humaneval"), items[2], {"outputs": [""]}, (), (1,)),
    ]
    assert graded[1] is None and graded[2] is None
    found = summarise(items, graded)
    assert (found["exact_match"].value, found["exact_match"].n) == (1.0, 1)


def test_bits_per_byte_are_those_of_all_bytes_together():
    items = [Passage("1", "abcd"), Passage("2", "abcdefgh")]
    answers = [{"nats": [-2.0, -1.0]}, {"nats": [-3.0]}]
    graded = [grade(task("pile"), item, answer, (), (1,)) for item, answer in zip(items, answers)]
    assert summarise(items, graded)["bits_per_byte"].value == pytest.approx(6 / 12 / math.log(2))
