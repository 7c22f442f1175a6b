"""The demo's conversations, its rule, pairs of a model's own answers, and (slow) the whole chain with its claims."""

import json

import numpy as np
import pytest
import torch

from isoflop.alignment.answers import answer
from isoflop.alignment.conversations import read_conversations, read_pairs
from isoflop.alignment.demo_data import arithmetic, docstrings, interleaved, judge, right_result
from isoflop.alignment.made_pairs import make_pairs
from isoflop.alignment.pairs import longer_wins
from isoflop.alignment.records import Quarantine
from isoflop.alignment.samples import Prompt, load_pairs
from isoflop.alignment.scoring import difference, ratio, share
from isoflop.alignment.sft import run_sft
from isoflop.alignment.start import open_start
from isoflop.cli.main import main
from isoflop.corpus.read.environment import EnvironmentOptions
from isoflop.evaluation.statistics import mean_of
from isoflop.tokens.chat import Message
from isoflop.training.load_run import find_trained, load_model


def test_sums_are_right_different_and_held_out_by_their_numbers():
    train, valid = arithmetic(2000, 0, valid=False), arithmetic(2000, 0, valid=True)
    for talk in [*train, *valid]:
        text, result = talk.answer.removeprefix("The result of ").removesuffix(".").split(" is ")
        assert eval(text) == int(result) and text in talk.question
    sums = [{talk.answer for talk in side} for side in (train, valid)]
    assert not sums[0] & sums[1] and len(sums[0]) > 1000 and len(sums[1]) > 300
    assert len({talk.question for talk in train}) == 2000 and len(valid) > 1000
    assert arithmetic(50, 1, valid=False) == arithmetic(50, 1, valid=False) != arithmetic(50, 2, valid=False)


def test_docstrings_are_one_sentence_and_held_out_by_package(tmp_path):
    options = EnvironmentOptions(max_mb=3.0)
    train, valid = (docstrings(500, 0, options, valid=side) for side in (False, True))
    assert len(train) > 50 and len(valid) > 5
    for talk in [*train, *valid]:
        assert "def " in talk.question and talk.answer.endswith(".") and "\n" not in talk.answer
    lines = [json.dumps(talk.record()) for talk in interleaved(train, arithmetic(20, 0, valid=False), seed=1)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    bad = Quarantine()
    found = read_conversations([tmp_path / "x.jsonl"], "auto", bad)
    assert len(found) + len(bad.records) == len(lines) and len(found) > 0.9 * len(lines)


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ("The result of 3 + 4 is 7.", "The result of 3 + 4 is 7.", True),
        ("The result of 3 + 4 is 7.", "It is 8.", False),
        ("The result of 3 + 4 is 7.", "no number", False),
        ("Return the first of 3.", "anything", None),
    ],
)
def test_the_last_number_of_an_answer_is_its_result(expected, said, right):
    assert right_result(expected, said) is right
    assert judge(expected, said, stopped=True, repeated=False) is (right is not False)
    assert not judge(expected, said, stopped=False, repeated=False)
    assert not judge(expected, said, stopped=True, repeated=True)
    assert not judge(expected, " ", stopped=True, repeated=False)


def test_pairs_of_own_answers_pass_and_fail_the_rule_and_are_read_as_pairs(make, tmp_path):
    run_sft(make(train={"epochs": 6}, answers={"prompts": 0}), tmp_path / "run")
    start = open_start(make(initial={"run": str(tmp_path / "run")}).initial)
    model = load_model(find_trained(tmp_path / "run"), device=torch.device("cpu"))
    prompts = []
    for index in range(25):
        messages = (Message("user", f"say {index} stone"),)
        prompts.append(Prompt(messages, start.template.prompt_ids(messages), "stone"))
    rule = lambda expected, text, stopped, repeated: len(text) % 2 == 0
    records = make_pairs(model, start, prompts, rule, n_answers=5, max_new_tokens=8, seed=1)
    again = make_pairs(model, start, prompts, rule, n_answers=5, max_new_tokens=8, seed=1)
    assert records == again and len(records) > 5
    for record in records:
        assert len(record["chosen"]) % 2 == 0 and len(record["rejected"]) % 2 == 1
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    bad = Quarantine()
    assert len(read_pairs([tmp_path / "pairs.jsonl"], "auto", bad)) == len(records) and not bad.records
    recipe = make("dpo", data={"train": [str(tmp_path / "pairs.jsonl")], "valid_fraction": 0.3})
    loaded = load_pairs(recipe.data, start.template, max_tokens=96, seed=0)
    assert 0.2 < longer_wins([*loaded.train, *loaded.valid]) < 0.8


def test_intervals_cover_known_answers():
    assert share([True] * 90 + [False] * 10)[:2] == pytest.approx((0.9, 0.8256), abs=1e-3)  # Wilson, by hand
    assert share([True] * 90 + [False] * 10) == mean_of([1.0] * 90 + [0.0] * 10)  # as in evaluation
    generator = np.random.default_rng(0)
    counts = generator.integers(5, 50, 400)
    figure = ratio(counts * 2.0 + generator.normal(0, 1, 400), counts)
    assert figure.low < 2.0 < figure.high and figure.high - figure.low < 0.05
    before = generator.normal(0, 5, 300)
    change = difference(before, before + 0.5 + generator.normal(0, 0.1, 300))
    assert change.low < 0.5 < change.high and change.high - change.low < 0.1


@pytest.mark.slow
def test_the_demo_keeps_its_claims(tmp_path, capsys):
    main(["align", "demo", "--out", str(tmp_path / "demo"), "--json", str(tmp_path / "score.json")])
    score = json.loads((tmp_path / "demo" / "score.json").read_text())
    detail = json.loads((tmp_path / "demo" / "detail.json").read_text())
    assert score == json.loads((tmp_path / "score.json").read_text())
    assert list(score) == ["base", "sft1", "sft2", "dpo"]
    assert all(set(figure) == {"value", "low", "high", "n"} for item in score.values() for figure in item.values())
    assert score["base"]["stop_share"]["value"] < 0.2 and score["base"]["stop_share"]["n"] == 500
    assert score["sft1"]["stop_share"]["value"] > 0.9 and score["sft2"]["stop_share"]["value"] > 0.9
    assert detail["changes"]["base to sft1"]["assistant_loss"]["high"] < 0
    assert detail["changes"]["sft1 to sft2"]["repetition_ratio"]["high"] <= 0.02
    assert score["dpo"]["pair_accuracy"]["value"] >= 0.65 and score["dpo"]["pair_accuracy"]["low"] > 0.5
    assert detail["n_pairs"] >= 400 and detail["longer_wins"] <= 0.6
    assert (tmp_path / "demo" / "report.html").is_file()


def test_answers_need_no_gradient(base):
    model = load_model(find_trained(base), device=torch.device("cpu"))
    answer(model, [np.arange(5)], stop_ids=[], max_new_tokens=2)
    assert all(p.grad is None for p in model.parameters())
