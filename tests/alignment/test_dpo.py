"""DPO and the reward model in the one loop."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_samples import make_samples
from interop_models import FAMILIES, build
from safetensors.torch import load_file, save_file

from isoflop.alignment.dpo import Dpo, run_dpo
from isoflop.alignment.pairs import Pairs, longer_wins
from isoflop.alignment.recipe import DpoSection
from isoflop.alignment.reference import FILE
from isoflop.alignment.reward_model import load_reward_model, run_reward, score_conversations
from isoflop.alignment.samples import PairRows, answer_only
from isoflop.alignment.sft import run_sft
from isoflop.alignment.start import open_start
from isoflop.errors import CheckpointError, RecipeError
from isoflop.run import read_json_lines
from isoflop.tokens.chat import Message, Row
from isoflop.training.step import forward_backward


def make_pairs(n=9, seed=0):
    generator = np.random.default_rng(seed)
    rows = make_samples(generator.integers(3, 60, 2 * n), seed=seed)
    return [PairRows(answer_only(a), answer_only(b)) for a, b in zip(rows[::2], rows[1::2])]


def step_of(model, pairs, micro_tokens, world=1, **options):
    device = torch.device("cpu")
    made = Pairs(pairs, seq_len=96, batch=len(pairs), seed=1, micro_tokens=micro_tokens)
    live = build(FAMILIES["gqa"], 1)
    workload = Dpo(made, made, DpoSection(**options), device, live=live)
    model.zero_grad()
    losses = [forward_backward(workload, model, workload.batch(0, r, world)) for r in range(world)]
    figures = dict(zip(workload.hooks[0]._names, workload.hooks[0].finish().tolist()))
    return sum(losses).item(), {n: p.grad.clone() for n, p in model.named_parameters()}, figures


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize(("micro_tokens", "world"), [(1, 1), (200, 1), (10_000, 1), (150, 2), (1, 3)])
def test_dpo_is_the_same_for_any_grouping_and_number_of_ranks(loss, micro_tokens, world):
    model, pairs = build(FAMILIES["gqa"]), make_pairs()
    expected, gradients, figures = step_of(model, pairs, 300, loss=loss)
    found, others, other_figures = step_of(model, pairs, micro_tokens, world, loss=loss)
    assert found == pytest.approx(expected, rel=1e-5)
    largest = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() < 1e-5 * largest, name
    assert other_figures == pytest.approx(figures, rel=1e-4)


def test_an_answer_is_the_last_one_only():
    row = Row(np.arange(9, dtype=np.int32), np.isin(np.arange(9), [2, 3, 6, 7, 8]))
    assert answer_only(row).is_target.nonzero()[0].tolist() == [6, 7, 8]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("reference", ["cached", "live"])
def test_dpo_starts_at_ln2_with_zero_margin_and_learns(make, reference, adapter, tmp_path):
    sections = {"adapter": {"rank": 4}} if adapter else {}
    found = run_dpo(make("dpo", dpo={"reference": reference, "beta": 0.5}, **sections), tmp_path / "run")
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    first = lines[0]
    assert first["loss_nats"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == first["rewards/accuracies"] == first["rewards/chosen"] == 0.0
    assert first["logps/chosen"] < 0 and first["entropy"] > 0
    assert lines[-1]["rewards/margins"] > 0 and lines[-1]["loss_nats"] < first["loss_nats"]
    assert found["accuracy"] == found["validation"]["accuracy"] and 0 <= found["validation"]["longer_wins"] <= 1
    assert (tmp_path / "run" / FILE).is_file() == (reference == "cached")


def test_cached_and_live_references_give_the_same_run(make, tmp_path):
    for reference in ("cached", "live"):
        run_dpo(make("dpo", dpo={"reference": reference}), tmp_path / reference)
    lines = [read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("cached", "live")]
    for cached, live in zip(*lines, strict=True):
        assert cached["loss_nats"] == pytest.approx(live["loss_nats"], abs=2e-6)


def test_cached_reference_is_refused_for_other_weights_and_when_damaged(make, tmp_path):
    run_dpo(make("dpo", train={"epochs": 1}), tmp_path / "first")
    run_sft(make(train={"epochs": 1}), tmp_path / "sft")
    other = tmp_path / "other"
    other.mkdir()
    (other / FILE).write_bytes((tmp_path / "first" / FILE).read_bytes())
    recipe = make("dpo", initial={"run": str(tmp_path / "sft")}, train={"epochs": 1})
    with pytest.raises(CheckpointError, match="was made with other reference weights"):
        run_dpo(recipe, other)
    tensors = load_file(other / FILE)
    (other / FILE).write_bytes((other / FILE).read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is damaged"):
        run_dpo(recipe, other)
    save_file(tensors, other / FILE)
    with pytest.raises(CheckpointError, match="was made with other"):
        run_dpo(recipe, other)
    (other / FILE).unlink()
    (other / f".{FILE}.123").write_bytes(b"half written")
    assert run_dpo(recipe, other)["status"] == "finished"


def test_a_stopped_dpo_run_resumed_equals_an_undisturbed_one_bitwise(make, tmp_path):
    recipe = make("dpo", checkpoint={"every_steps": 1})
    whole = run_dpo(recipe, tmp_path / "whole")
    calls = iter([False, True])
    assert run_dpo(recipe, tmp_path / "cut", should_stop=lambda: next(calls, True))["status"] == "interrupted"
    assert run_dpo(recipe, tmp_path / "cut")["loss_nats"] == whole["loss_nats"]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_truncation_of_one_side_leaves_the_other(make, tmp_path, pairs):
    """A pair with one side over the limit is left out as a whole and counted; no side is ever cut."""
    long = {"prompt": "long", "chosen": "short", "rejected": "word " * 120}
    path = tmp_path / "long.jsonl"
    path.write_text(Path(pairs).read_text() + json.dumps(long) + "\n")
    found = run_dpo(make("dpo", data={"train": [str(path)]}, train={"epochs": 1}), tmp_path / "run")
    assert found["samples"]["set_aside"] == {
        "N tokens are over the limit of N": 1,
        "equal sides: chosen and rejected are the same text": 1,
    }


def test_longer_wins_counts_ties_half():
    row = lambda n: Row(np.arange(n + 1, dtype=np.int32), np.arange(n + 1) > 0)
    assert longer_wins([PairRows(row(3), row(2)), PairRows(row(1), row(2)), PairRows(row(2), row(2))]) == 0.5


def test_label_smoothing_without_meaning_is_refused(make, tmp_path):
    with pytest.raises(RecipeError, match=r"dpo\.label_smoothing = 0\.1 has no meaning for dpo\.loss = 'ipo'"):
        run_dpo(make("dpo", dpo={"loss": "ipo", "label_smoothing": 0.1}), tmp_path / "run")


def test_number_formats_that_end_before_the_run_are_refused(make, tmp_path):
    numerics = {"rules": [{"modules": "blocks.*", "format": "fp8_block"}], "until": 0.8}
    with pytest.raises(RecipeError, match=r"numerics\.until = 0\.8 must be 1 here: only pre-training"):
        run_dpo(make("dpo", numerics=numerics), tmp_path / "run")


@pytest.mark.parametrize("adapter", [False, True])
def test_a_reward_model_learns_to_rank_loads_again_and_resumes(make, adapter, tmp_path):
    sections = {"adapter": {"rank": 4}} if adapter else {}
    recipe = make("reward", train={"epochs": 4}, checkpoint={"every_steps": 3}, **sections)
    found = run_reward(recipe, tmp_path / "run")
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert lines[0]["loss_nats"] == pytest.approx(math.log(2), abs=0.02)
    assert lines[-1]["loss_nats"] < lines[0]["loss_nats"] and lines[-1]["accuracy"] > 0.5
    assert found["accuracy"] == found["validation"]["accuracy"]
    model = load_reward_model(tmp_path / "run")
    template = open_start(recipe.initial).template
    talks = [
        [Message("user", "say 3 stone"), Message("assistant", text)] for text in ("stone", "window", "stone river")
    ]
    together = score_conversations(model, template, talks)
    alone = [score_conversations(model, template, [talk])[0] for talk in talks]
    assert together == pytest.approx(alone, abs=1e-5) and len({round(s, 6) for s in together}) == 3
    calls = iter([False, False, True])
    run_reward(recipe, tmp_path / "cut", should_stop=lambda: next(calls, True))
    assert run_reward(recipe, tmp_path / "cut")["loss_nats"] == found["loss_nats"]


def test_longer_answer_alone_does_not_win_the_reward_model(make, tmp_path):
    """Of length-matched pairs one is right: "longer wins" is at chance, the trained model above it."""
    found = run_reward(make("reward", train={"epochs": 30, "learning_rate": 0.02}), tmp_path / "run")
    assert abs(found["validation"]["longer_wins"] - 0.5) < 0.25
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["accuracy"] > 0.8
