"""Passkey questions: lengths and depths are what they say, right means what greedy decoding says, records add up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from isoflop.corpus.passkey import FILLER, QUESTION, statement
from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.evaluation.passkey import (
    DEPTHS,
    answers_right,
    compare_context,
    default_lengths,
    make_question,
    passkey_accuracy,
    summary,
    text_loss,
)
from isoflop.intervals import Z90, wilson
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.run import processor
from isoflop.tokens.bpe import Tokenizer, train_tokenizer
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.workload import run_pretrain

TEXT = f"{' '.join(FILLER)} {statement('01234')} {statement('56789')} {QUESTION}12345.\n"


@pytest.fixture(scope="module", params=["v1", "v3"])
def tokenizer(request) -> Tokenizer:
    return train_tokenizer([TEXT] * 20, 400, rules=request.param, pad_multiple=8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("length", [64, 100, 333])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_question_fills_its_length_and_has_its_key_at_its_depth(tokenizer, length, depth):
    tokens, start = make_question(tokenizer, length, depth, generator())
    assert length - 24 < len(tokens) <= length  # less than a sentence is left
    assert tokens[0] == tokenizer.bos_id
    text, key = tokenizer.decode(tokens[1:]), tokenizer.decode(tokens[start:])
    assert len(key) == 5 and text.endswith(QUESTION + key) and text.count(key) == 2
    before, _, after = text.removesuffix(QUESTION + key).partition(statement(key))
    n_before, n_after = (part.count(".") for part in (before, after))
    assert n_before == round(depth * (n_before + n_after))


def test_questions_differ_by_trial_and_not_by_call(tokenizer):
    one, two, again = (make_question(tokenizer, 100, 0.5, generator(seed)) for seed in (0, 1, 0))
    assert one == again != two


def test_a_length_without_room_for_the_key_is_refused(tokenizer):
    with pytest.raises(RecipeError, match=r"lengths: 10 tokens are too few for key and question; give at least \d+"):
        make_question(tokenizer, 10, 0.5, generator())


class Oracle(Transformer):
    """A model whose next token is right up to a given number of answer tokens."""

    def __init__(self, vocab_size: int, next_of: dict[tuple[int, ...], int]):
        super().__init__(ModelConfig(1, vocab_size, 1, 1, 2, 4, vocab_size, 512))
        self.next_of = next_of
        self.head.forward = lambda hidden: hidden  # type: ignore[method-assign]

    def forward(self, tokens_BT, cache=None, **_):
        out = torch.zeros(*tokens_BT.shape, self.config.vocab_size)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for end in range(1, len(tokens) + 1):
                out[row, end - 1, self.next_of.get(tuple(tokens[:end]), 0)] = 1.0
        return out


def test_an_answer_counts_when_every_token_of_it_is_the_most_likely(tokenizer):
    questions = [make_question(tokenizer, n, 0.5, generator(n)) for n in (64, 80, 96)]
    next_of = {tuple(t[:end]): t[end] for t, start in questions for end in range(start, len(t))}
    assert answers_right(Oracle(tokenizer.vocab_size, next_of), questions) == [True, True, True]
    tokens, start = questions[1]
    wrong = {**next_of, tuple(tokens[: len(tokens) - 1]): 0}  # the last token of the second answer
    assert answers_right(Oracle(tokenizer.vocab_size, wrong), questions) == [True, False, True]
    late = {key: value for key, value in next_of.items() if key != tuple(tokens[:start])}
    assert answers_right(Oracle(tokenizer.vocab_size, late), questions) == [True, False, True]


def test_one_pass_agrees_with_greedy_decoding(tokenizer):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(2, 16, 2, 2, 8, 32, tokenizer.vocab_size, 96, init_std=0.5))
    model.initialise(torch.Generator().manual_seed(0))
    prompt, start = make_question(tokenizer, 96, 0.5, generator())
    tokens = list(prompt[:start])
    for _ in range(len(prompt) - start):
        tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    questions = [type(make_question(tokenizer, 96, 0.5, generator()))(tokens, start)]
    assert answers_right(model, questions) == [True]  # what it would say itself
    tokens[-1] = (tokens[-1] + 1) % tokenizer.vocab_size
    assert answers_right(model, questions) == [False]


def test_an_untrained_model_finds_nothing_and_records_say_how_sure_that_is(tokenizer):
    model = Transformer(ModelConfig(1, 8, 2, 2, 4, 16, tokenizer.vocab_size, 128, init_std=0.1))
    model.initialise(torch.Generator().manual_seed(0))
    records = passkey_accuracy(model, tokenizer, lengths=(64, 128), depths=(0.0, 1.0), n_trials=8)
    assert [(r["length"], r["depth"]) for r in records] == [(64, 0.0), (64, 1.0), (128, 0.0), (128, 1.0)]
    for record in records:
        assert record["n_right"] == record["accuracy"] == record["low"] == 0.0 and 0.1 < record["high"] < 0.4
        assert 0.7 * record["length"] < record["mean_tokens"] <= record["length"]


def test_the_interval_is_wilsons():
    for n_right in (0, 13, 45, 50):
        found, expected = wilson(n_right, 50, Z90), binomtest(n_right, 50).proportion_ci(0.9, "wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_lengths_double_up_to_the_context():
    assert default_lengths(128, 1024) == [64, 128, 256, 512, 1024]
    assert default_lengths(256, 3072) == [96, 192, 256, 384, 768, 1536, 3072]


def test_text_loss_is_the_runs_own_validation_at_its_own_length(tmp_path, tiny_recipe, tiny_tokens):
    result = run_pretrain(tiny_recipe(validate={"max_tokens": 0}), tmp_path / "run")
    from isoflop.training.load_run import find_trained, load_model

    model = load_model(find_trained(tmp_path / "run"), device=torch.device("cpu"))
    found = text_loss(model, TokenSet.open(tiny_tokens), seq_len=16)
    assert found["loss_nats"] == pytest.approx(result["loss_nats"], rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(result["loss_nats"]), rel=1e-6)


@pytest.fixture
def run(tmp_path, tiny_recipe):
    """A run with a context just long enough for a question in this tokenizer."""
    recipe = tiny_recipe(model={"seq_len": 256}, train={"batch_tokens": 256, "n_tokens": 2 * 256, "warmup_steps": 0})
    run_pretrain(recipe, tmp_path / "run")
    return tmp_path / "run"


def test_a_comparison_has_both_runs_their_cells_their_text_and_a_summary(run, tmp_path):
    found = compare_context(
        run, before=run, lengths=(128, 256), depths=(0.5,), n_trials=2, max_tokens=600, device="cpu"
    )
    assert [(cell["run"], cell["length"]) for cell in found["cells"]] == [
        ("before", 128),
        ("before", 256),
        ("after", 128),
        ("after", 256),
    ]
    assert found["summary"]["accuracy_inside_after"] == 0.0 and found["summary"]["perplexity_change"] == 0.0
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == processor()
    one = compare_context(run, lengths=(128,), depths=(0.5,), n_trials=2, max_tokens=600, device="cpu")
    assert set(one["runs"]) == {"run"} and "perplexity_change" not in one["summary"]


def test_the_summary_pools_cells_by_length():
    cells = [
        {"run": "after", "length": length, "n_trials": 10, "n_right": right}
        for length, right in ((64, 10), (128, 9), (128, 8), (256, 5), (256, 6))
    ]
    text = {"before": {"perplexity": 10.0}, "after": {"perplexity": 10.1}}
    found = summary({"original_seq_len": 128, "runs": {"after": ""}, "cells": cells, "text": text})
    assert found["accuracy_inside_after"] == 27 / 30 and found["accuracy_at_256_after"] == 11 / 20
    assert found["perplexity_change"] == pytest.approx(0.01)


def test_bad_requests_say_what_to_do(run, tmp_path, tokens_of_another_size):
    with pytest.raises(RecipeError, match=r"512 is longer than the context of .* 256; extend it first"):
        compare_context(run, lengths=(512,), device="cpu")
    with pytest.raises(DataError, match="is not there; give it with --tokens DIR"):
        compare_context(run, tokens=tmp_path / "none", device="cpu")
    with pytest.raises(DataError, match=r"has a vocabulary of 320, the model of .* 512"):
        compare_context(run, tokens=tokens_of_another_size, device="cpu")
    with pytest.raises(CheckpointError, match=r"has no recipe\.toml"):
        compare_context(tmp_path, device="cpu")


@pytest.fixture
def tokens_of_another_size(tiny_corpus: Path, tmp_path: Path) -> Path:
    from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens

    build_tokens(tiny_corpus, tmp_path / "tokens", TokensRecipe(TokenizerOptions(300, 0, 320)))
    return tmp_path / "tokens"


def test_the_picture_has_a_panel_per_run_and_the_same_bytes_twice(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install isoflop[report]")
    from isoflop.evaluation.passkey_figure import passkey_figure
    from isoflop.pages.plot import save

    cells = [
        {"run": name, "length": length, "depth": depth, "accuracy": share}
        for name, share in (("before", 0.0), ("after", 0.98))
        for length in (64, 128, 256, 512, 1024)
        for depth in DEPTHS
    ]
    text = {name: {"perplexity": 12.3, "seq_len": 128} for name in ("before", "after")}
    found = {"runs": {"before": "", "after": ""}, "cells": cells, "text": text, "original_seq_len": 128}
    figure = passkey_figure(found)
    assert len(figure.axes) == 3  # two panels and the scale
    first, second = (save(passkey_figure(found), tmp_path / f"{name}.svg").read_bytes() for name in "ab")
    assert first == second
