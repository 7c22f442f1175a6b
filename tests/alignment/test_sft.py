"""SFT in the one loop: the same numbers for any split, masks that matter, resumed equals uninterrupted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_samples import make_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_models import FAMILIES, build

from isoflop.alignment.sample_terms import SampleTerms
from isoflop.alignment.sft import Sft, run_sft
from isoflop.alignment.start import open_start
from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection
from isoflop.training.step import forward_backward

MIXED = replace(FAMILIES["v3"], n_layers=2, mtp_depth=1, yarn=None)


def step_of(model, rows, *, rank=0, world=1, terms=True, **options):
    """(loss, gradients by name, loads) of step 0."""
    hook = None
    if terms and (model.config.experts or model.config.mtp_depth):
        hook = SampleTerms(model, BalanceSection(sequence_loss=0.01, expert_loss=0.02), MtpSection(), moves_bias=True)
    workload = Sft(rows, rows, seq_len=96, batch=len(rows), seed=5, terms=hook, **options)
    model.zero_grad()
    losses = []
    for r in range(world):  # gradients of ranks add up
        losses.append(forward_backward(workload, model, workload.batch(0, r, world)))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return torch.stack(losses).sum(), gradients, None if hook is None else hook._loads_LE.clone()


LENGTHS = st.lists(st.integers(2, 90), min_size=2, max_size=14)


@settings(max_examples=15)
@given(LENGTHS, st.integers(1, 400), st.booleans(), st.integers(1, 3), st.sampled_from(["mha", "moe", "mixed"]))
def test_loss_and_gradient_are_the_same_for_any_split_and_packing(lengths, micro_tokens, packed, world, name):
    config = MIXED if name == "mixed" else replace(FAMILIES[name], n_layers=2)
    model, rows = build(config), make_samples(lengths, seed=len(lengths))
    expected, gradients, loads = step_of(model, rows, micro_tokens=1, packed=False)
    found, others, other_loads = step_of(model, rows, micro_tokens=micro_tokens, packed=packed, world=world)
    assert abs(found - expected) < 1e-6 * max(1, abs(expected))
    assert gradients.keys() == others.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        assert (others[key] - gradient).abs().max() < 1e-5 * largest, key
    if loads is not None:
        assert torch.equal(loads, other_loads)  # padding is in no load


def test_a_step_is_divided_by_all_its_targets():
    model, rows = build(FAMILIES["mha"]), make_samples([30, 12, 50, 7])
    loss, _, _ = step_of(model, rows, micro_tokens=1, packed=False)
    with torch.no_grad():
        total = sum(
            -model.logits(torch.from_numpy(row.ids[None, :-1].astype(np.int64)))[0].log_softmax(-1)[
                place, row.ids[place + 1]
            ]
            for row in rows
            for place in np.flatnonzero(row.is_target[1:])
        )
    n_targets = sum(int(row.is_target[1:].sum()) for row in rows)
    assert loss.item() == pytest.approx(total.item() / n_targets, rel=1e-5)


def test_every_epoch_shows_every_conversation_once_in_its_own_order():
    rows = make_samples([5] * 23)
    workload = Sft(rows, rows, seq_len=96, batch=10, seed=1, micro_tokens=1000)
    epochs = [[row.ids.tobytes() for step in range(3 * e, 3 * e + 3) for row in workload.samples(step)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row.ids.tobytes() for row in rows)
    assert epochs[0] != epochs[1]


def read(run: Path, name: str):
    return json.loads((run / name).read_text(encoding="utf-8"))


def test_a_run_leaves_metrics_answers_quarantine_template_and_a_page(make, tmp_path):
    found = run_sft(make(), tmp_path / "run")
    run = tmp_path / "run"
    assert found["status"] == "finished" and found["step"] == found["n_steps"] == 6
    before = read(run, "before.json")
    assert found["loss_nats"] < before["assistant_loss"]["value"] - 0.2
    assert 0 <= found["stop_share"] <= 1 and 0 <= found["repetition_ratio"] <= 1
    assert found["validation"]["low"] < found["validation"]["loss_nats"] < found["validation"]["high"]
    reasons = [json.loads(line)["reason"] for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert any("empty answer" in reason for reason in reasons)
    assert any("over the limit of 96" in reason for reason in reasons)
    page = (run / "report.html").read_text()
    assert "Answers before and after" in page and "over the limit of N" in page
    assert (run / "tokenizer" / "chat_template.jinja").is_file()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_a_start_for_the_next_one_and_exports_with_its_template(make, tmp_path):
    from isoflop.interop.export_hf import export_run

    run_sft(make(), tmp_path / "first")
    found = run_sft(make(initial={"run": str(tmp_path / "first")}, train={"epochs": 1}), tmp_path / "second")
    assert found["status"] == "finished"
    assert found["base_sha256"] == open_start(make(initial={"run": str(tmp_path / "first")}).initial).model_sha256
    export_run(tmp_path / "first", tmp_path / "hf")
    assert "User: " in (tmp_path / "hf" / "chat_template.jinja").read_text()


def test_a_stopped_run_resumed_equals_an_undisturbed_one_bitwise(make, tmp_path):
    recipe = make(checkpoint={"every_steps": 2})
    whole = run_sft(recipe, tmp_path / "whole")
    calls = iter([False, False, True])
    stopped = run_sft(recipe, tmp_path / "cut", should_stop=lambda: next(calls, True))
    assert stopped["status"] == "interrupted"
    resumed = run_sft(recipe, tmp_path / "cut")
    assert resumed["loss_nats"] == whole["loss_nats"]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    step = "checkpoints/step_00000006/model.safetensors"
    assert (tmp_path / "cut" / step).read_bytes() == (tmp_path / "whole" / step).read_bytes()


def test_where_it_runs_is_not_what_it_is(make, tmp_path):
    first = run_sft(make(), tmp_path / "a")
    other = run_sft(make(train={"packed": False, "micro_tokens": 96}), tmp_path / "b")
    assert first["trajectory"] == other["trajectory"]
    assert first["loss_nats"] == pytest.approx(other["loss_nats"], rel=1e-4)


def test_adapters_are_trained_alone_merged_and_go_on(make, tmp_path):
    recipe = make(adapter={"rank": 4}, train={"learning_rate": 0.05})
    found = run_sft(recipe, tmp_path / "lora")
    assert found["loss_nats"] < read(tmp_path / "lora", "before.json")["assistant_loss"]["value"] - 0.01
    again = run_sft(make(initial={"run": str(tmp_path / "lora")}, train={"epochs": 1}), tmp_path / "next")
    before = read(tmp_path / "next", "before.json")["assistant_loss"]["value"]
    assert before == pytest.approx(found["loss_nats"], rel=1e-4)  # the merged model is the adapted one
    assert again["status"] == "finished"


def test_the_folder_of_another_run_keeps_its_recipe(make, base, tmp_path):
    recipe = (base / "recipe.toml").read_text()
    with pytest.raises(RecipeError, match=r"is the run that initial\.run names; give another folder"):
        run_sft(make(), base)
    assert (base / "recipe.toml").read_text() == recipe
    run_sft(make(train={"epochs": 1}), tmp_path / "first")
    recipe = (tmp_path / "first" / "recipe.toml").read_text()
    with pytest.raises(CheckpointError, match="was trained with another recipe"):
        run_sft(make(train={"epochs": 1, "learning_rate": 0.5}), tmp_path / "first")
    assert (tmp_path / "first" / "recipe.toml").read_text() == recipe


def test_adapters_of_another_base_are_refused(make, base, tmp_path):
    recipe = make(adapter={"rank": 4}, checkpoint={"every_steps": 1})
    run_sft(recipe, tmp_path / "lora", should_stop=lambda: True)
    run_sft(make(train={"epochs": 1}), tmp_path / "other")
    with pytest.raises(CheckpointError, match="adapters and moments belong to another base"):
        run_sft(make(adapter={"rank": 4}, initial={"run": str(tmp_path / "other")}), tmp_path / "lora")
    with pytest.raises(CheckpointError, match="holds adapters without their base and no merged folder"):
        open_start(make(initial={"run": str(tmp_path / "lora")}).initial)


def test_two_stages_run_one_after_the_other_or_one_by_one(make, talks, tmp_path):
    recipe = make(second={"train": [talks], "epochs": 1, "learning_rate": 0.001})
    found = run_sft(recipe, tmp_path / "both")
    assert found["n_steps"] == 3 and (tmp_path / "both" / "stage1" / "result.json").is_file()
    with pytest.raises(CheckpointError, match="has not finished; run --stage 1 first"):
        run_sft(recipe, tmp_path / "alone", stage=2)
    run_sft(recipe, tmp_path / "alone", stage=1)
    second = run_sft(recipe, tmp_path / "alone", stage=2)
    assert second["loss_nats"] == found["loss_nats"]
    with pytest.raises(RecipeError, match=r"--stage 2 needs a \[second\] section"):
        run_sft(make(), tmp_path / "none", stage=2)


def test_a_base_of_another_tokenizer_is_refused(make, tiny_corpus, base, tmp_path):
    from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens

    build_tokens(
        tiny_corpus, tmp_path / "tokens", TokensRecipe(TokenizerOptions(400, n_reserved=0, padded_vocab_size=512))
    )
    with pytest.raises(DataError, match="is another tokenizer than"):
        open_start(make(initial={"tokenizer": str(tmp_path / "tokens")}).initial)


def test_a_template_that_never_ends_an_answer_is_refused(make, tmp_path):
    (tmp_path / "open.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(RecipeError, match="ends an answer with no special token"):
        run_sft(make(data={"template": str(tmp_path / "open.jinja")}), tmp_path / "run")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"max_tokens": 8}}, r"data\.train: no sample is left: N tokens are over the limit"),
        ({"data": {"max_tokens": 97}}, r"data\.max_tokens = 97 is more than the model's context of 96"),
        ({"data": {"train": []}}, r"data\.train = \[\] must name files"),
        (
            {"train": {"balance": {"device_loss": 0.1, "n_devices": 2}}},
            "device_loss and communication_loss are taken over",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(make, sections, message, tmp_path):
    with pytest.raises((DataError, RecipeError), match=message):
        run_sft(make(**sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()
