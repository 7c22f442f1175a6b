"""`numerics.until`: after a share of the steps every product is plain again, in training, validation, loaded runs."""

import json

import pytest
import torch
from torch import nn

from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.accounting import training_memory
from isoflop.numerics.assign import assign
from isoflop.numerics.linear import Linear
from isoflop.numerics.section import NumericsSection, Rule
from isoflop.recipe import to_tree
from isoflop.tokens.shards import TokenSet
from isoflop.training import checkpoint, loop
from isoflop.training.checkpoint import Saving
from isoflop.training.load_run import find_trained, load_model
from isoflop.training.pretrain.recipe import check
from isoflop.training.pretrain.workload import LanguageModel, Pretraining, run_pretrain, trajectory_of
from isoflop.training.schedule import cooldown_start
from isoflop.training.step import take_step
from isoflop.training.step_hooks import PlainFrom

FP8 = {"rules": [{"modules": "blocks.*", "format": "fp8_block"}]}
PHOTONIC = {"rules": [{"modules": "*", "format": "photonic"}]}
LAST = 24
"""Of 30 steps those in FP8 with until = 0.8."""


def lines_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run_dir):
    return [line["loss_nats"] for line in lines_of(run_dir) if "learning_rate" in line]


def stopping_after(n_calls):
    calls = iter(range(10**9))
    return lambda: next(calls) >= n_calls


def formats_of(model):
    return {type(layer.numerics) for layer in model.modules() if isinstance(layer, Linear)}


@pytest.mark.parametrize("numerics", [FP8, PHOTONIC], ids=["fp8_block", "photonic"])
def test_up_to_the_switch_a_run_is_one_in_its_format_and_from_there_on_a_plain_one(tmp_path, tiny_recipe, numerics):
    """The second half is compared with a plain run that goes on from the weights of the switch."""
    ends = tiny_recipe(numerics={**numerics, "until": 0.8}, checkpoint={"every_steps": LAST, "keep": 9})
    run_pretrain(ends, tmp_path / "ends")
    run_pretrain(tiny_recipe(numerics=numerics), tmp_path / "stays")
    found, stays = losses(tmp_path / "ends"), losses(tmp_path / "stays")
    assert found[:LAST] == stays[:LAST] and len(found) == 30
    assert all(a != b for a, b in zip(found[LAST:], stays[LAST:], strict=True))
    job = Pretraining(tiny_recipe())
    built, plan = job.build(), job.plan
    step = checkpoint.load(tmp_path / f"ends/checkpoints/step_{LAST:08d}", built.model, built.optimizer)["step"]
    loop.train(
        built.workload, built.model, built.optimizer, plan, run_dir=tmp_path / "plain",
        saving=Saving(every_s=0.0, at_end=False), state={}, start_step=step,
    )  # fmt: skip
    assert found[LAST:] == losses(tmp_path / "plain")


@pytest.mark.parametrize("numerics", [FP8, PHOTONIC], ids=["fp8_block", "photonic"])
@pytest.mark.parametrize("stops", [(LAST,), (10, 17)], ids=["at", "before and after"])
def test_a_run_stopped_around_the_switch_is_the_undisturbed_one(tmp_path, tiny_recipe, numerics, stops):
    recipe = tiny_recipe(
        numerics={**numerics, "until": 0.8}, train={"micro_batch": 2}, validate={"every_steps": 6}
    )  # with a validation at the switch
    whole = run_pretrain(recipe, tmp_path / "whole")
    for n_steps in stops:
        stopped = run_pretrain(recipe, tmp_path / "parts", should_stop=stopping_after(n_steps - 1))
        assert stopped["status"] == "interrupted"
    parts = run_pretrain(recipe, tmp_path / "parts")
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert parts["loss_nats"] == whole["loss_nats"]


def test_what_is_validated_and_what_is_loaded_is_plain_after_the_switch_only(tmp_path, tiny_recipe, monkeypatch):
    seen, cpu = [], torch.device("cpu")
    measure = LanguageModel.validate
    monkeypatch.setattr(
        LanguageModel,
        "validate",
        lambda self, model: seen.append(formats_of(model.blocks)) or measure(self, model),
    )
    for until, last in ((0.8, {type(None)}), (1.0, None), (0.999, None)):
        seen.clear()
        recipe = tiny_recipe(numerics={**FP8, "until": until}, validate={"every_steps": 8})
        result = run_pretrain(recipe, tmp_path / str(until), stop_at=23)
        assert result["status"] == "stopped" and seen == [seen[0]] * 2 and type(None) not in seen[0]
        assert formats_of(load_model(find_trained(tmp_path / str(until)), device=cpu).blocks) == seen[0]
        run_pretrain(recipe, tmp_path / str(until))
        expected = last or seen[0]
        assert seen[2:] == [expected, expected], "at step 24, and at the end"
        assert formats_of(load_model(find_trained(tmp_path / str(until)), device=cpu).blocks) == expected


class Pretended:
    """In place of a captured step: what it was made for, and that it is asked no longer."""

    made: list = []

    def __init__(self, workload, model, optimizer, micro_batches, clip_norm):
        self.take = lambda batches: take_step(workload, model, optimizer, batches, clip_norm=clip_norm)
        self.formats, self.model, self.groups = formats_of(model), model, optimizer.param_groups
        self.made.append((self.formats, [p.grad is None for p in model.parameters()]))

    def __call__(self, micro_batches, rate):
        assert formats_of(self.model) == self.formats, "a step that was captured with other formats"
        for group in self.groups:
            group["lr"] = rate
        self.model.zero_grad(set_to_none=False)
        return self.take(micro_batches)


@pytest.mark.parametrize("n_micro", [1, 2])
def test_captured_steps_are_captured_anew_at_the_switch(tmp_path, tiny_recipe, monkeypatch, n_micro):
    """The capture itself is tested on a GPU (tests/training/test_cuda_graph_gpu.py)."""
    monkeypatch.setattr(loop, "can_capture", lambda *_: True)
    monkeypatch.setattr(loop, "GraphedStep", Pretended)
    Pretended.made.clear()
    recipe = tiny_recipe(numerics={**FP8, "until": 0.5}, train={"micro_batch": 4 // n_micro})
    run_pretrain(recipe, tmp_path / "whole")
    (first, _), (second, no_gradients) = Pretended.made
    assert type(None) in second and len(second) == 1 and len(first) == 2 and all(no_gradients)
    run_pretrain(recipe, tmp_path / "resumed", should_stop=stopping_after(20))
    run_pretrain(recipe, tmp_path / "resumed")
    assert len(Pretended.made) == 5 and Pretended.made[-1][0] == second


def test_a_step_that_cannot_be_captured_after_the_switch_starts_from_no_gradients(tmp_path, tiny_recipe, monkeypatch):
    numerics = {**FP8, "until": 0.5}
    run_pretrain(tiny_recipe(numerics=numerics), tmp_path / "eager")
    monkeypatch.setattr(loop, "can_capture", lambda _, model, *__: len(formats_of(model)) == 2)
    monkeypatch.setattr(loop, "GraphedStep", Pretended)
    run_pretrain(tiny_recipe(numerics=numerics), tmp_path / "both")
    assert losses(tmp_path / "both") == losses(tmp_path / "eager")


def test_the_hook_takes_formats_off_once_and_for_good():
    model = nn.ModuleDict({"a": Linear(4, 4), "b": Linear(4, 4)})
    assign(model, NumericsSection((Rule("a", "fp8_block"),)))
    hook = PlainFrom(model, 5)
    hook.begin(4)
    hook.validating(4)
    assert formats_of(model) != {type(None)}
    hook.validating(5)
    assert formats_of(model) == {type(None)}


@pytest.mark.parametrize("until", [0.8, 0.7, 0.85, 0.5, 0.9, 0.75])
def test_formats_end_where_the_cooldown_begins(until):
    section, fraction = NumericsSection((Rule("*", "fp8_block"),), until=until), float(f"{1 - until:.2f}")
    for n_steps in range(1, 400):
        begins = cooldown_start(n_steps, fraction)
        assert section.plain_from(n_steps) == (None if begins == n_steps else begins)


def test_records_and_dry_runs_say_when_and_recipes_without_the_key_are_what_they_were(tmp_path, tiny_recipe):
    ends, stays = tiny_recipe(numerics={**FP8, "until": 0.8}), tiny_recipe(numerics=FP8)
    result = run_pretrain(ends, tmp_path)
    assert result["numerics"] == "fp8_block 128 on blocks.* until 80%; else float32"
    assert ends.formats() == {"numerics": "fp8_block 128 on blocks.* until 80%", "plain_from_step": LAST}
    assert stays.formats() == {"numerics": "fp8_block 128 on blocks.*"} and tiny_recipe().formats() == {}
    token_set = TokenSet.open(tiny_recipe().data.tokens)
    assert "until" not in to_tree(stays)["numerics"]
    assert trajectory_of(stays, token_set) != trajectory_of(ends, token_set)
    with pytest.raises(CheckpointError, match="another recipe"):
        run_pretrain(stays, tmp_path)


def test_memory_is_that_of_the_plain_steps(tiny_recipe):
    train = {"precision": "bfloat16"}
    stays, ends = (tiny_recipe(numerics={**FP8, **keys}, train=train) for keys in ({}, {"until": 0.8}))
    needs = [training_memory(recipe.model, **recipe.computed_as()).total_bytes for recipe in (stays, ends)]
    assert needs[0] < needs[1] == training_memory(stays.model).total_bytes


def test_runs_of_other_lengths_share_a_trunk_up_to_the_switch_of_the_shorter(tmp_path, tiny_recipe):
    def recipe(n_steps, until):
        return tiny_recipe(numerics={**FP8, "until": until}, train={"n_tokens": n_steps * 64})

    for until, limit in ((0.8, 24), (0.5, 15)):
        trunk = tmp_path / f"trunk-{until}"
        run_pretrain(recipe(60, until), trunk, stop_at=24, keep_steps=frozenset({limit, 24}))
        run_pretrain(recipe(30, until), tmp_path / f"whole-{until}")
        start = trunk / "checkpoints" / f"step_{limit:08d}"
        run_pretrain(recipe(30, until), tmp_path / f"branch-{until}", start_from=start)
        assert losses(tmp_path / f"branch-{until}") == losses(tmp_path / f"whole-{until}")[limit:]
    with pytest.raises(CheckpointError, match=r"up to the numerics\.until of the shorter one \(step 15\)"):
        run_pretrain(recipe(30, 0.5), tmp_path / "late", start_from=trunk / "checkpoints/step_00000024")


@pytest.mark.parametrize("until", [0.0, -0.1, 1.2])
def test_shares_out_of_range_are_refused(tiny_recipe, until):
    with pytest.raises(RecipeError, match=rf"numerics\.until = {until} must be above 0 and at most 1"):
        check(tiny_recipe(numerics={**FP8, "until": until}))


def test_compiled_blocks_follow_the_switch():
    """What is replayed must not be the program of the format."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"block": Linear(16, 16)})
    nn.init.normal_(model["block"].weight)
    assign(model, NumericsSection((Rule("*", "fp8_block"),)))
    model["block"].compile(dynamic=False, backend="eager")
    x = torch.randn(8, 16)
    coarse = model["block"](x)
    PlainFrom(model, 1).begin(1)
    exact = model["block"](x)
    assert torch.equal(exact, x @ model["block"].weight.T) and not torch.equal(coarse, exact)
