"""Stacked runs compute what separate ones compute, and leave the same files."""

import dataclasses
import json
import math

import pytest
import torch

from isoflop.model.config import ExpertConfig, ModelConfig
from isoflop.model.stacked import stackable, weight_gradient
from isoflop.model.transformer import Transformer
from isoflop.numerics.error import relative_error
from isoflop.training import checkpoint, stack
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan, train
from isoflop.training.monitor import NOBODY, Watch
from isoflop.training.optim import adamw
from isoflop.training.pretrain.workload import Pretraining, run_pretrain
from isoflop.training.stack import Member, StackedStep, can_stack, run_stacked, train_stacked
from isoflop.training.workload import Workload

SHAPE = ModelConfig(2, 16, 4, 2, 4, 24, 48, 12, init_std=0.2)


class Draws(Workload):
    """Random tokens in two micro-batches of two sequences."""

    tokens_per_step = 4 * 12

    def __init__(self, seed: int, bad_from: int | None = None):
        self.seed, self.bad_from = seed, bad_from

    def batch(self, step, rank=0, world=1):
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        rows = torch.randint(47, (4, 13), generator=generator)
        if self.bad_from is not None and step >= self.bad_from:
            rows[0, :-1] = 47  # whose embedding is not a number
        return [(part,) for part in rows.split(2)]

    def loss_sum(self, model, micro_batch):
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])

    def validate(self, model):
        return {"loss_nats": 0.0}


class Rows(Draws):
    """In one micro-batch."""

    def batch(self, step, rank=0, world=1):
        return [(torch.cat([part for (part,) in super().batch(step)]),)]


def member(folder, seed, *, rate=1e-2, n_steps=6, stop_at=None, watch=NOBODY, bad_from=None, shape=SHAPE):
    model = Transformer(shape, torch.float64).double()
    model.initialise(torch.Generator().manual_seed(seed))
    if bad_from is not None:
        model.embedding.weight.data[47] = math.nan
    optimizer = adamw(model, learning_rate=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    plan = StepPlan(n_steps, rate=lambda step: rate * (1 - step / n_steps), stop_at=stop_at)
    return Member(Draws(seed, bad_from), model, optimizer, plan, folder, Saving(every_s=0.0), {}, watch)


def alone(folder, seed, **settings):
    one = member(folder, seed, **settings)
    options = {"run_dir": folder, "saving": one.saving, "state": {}}
    return one.model, train(one.workload, one.model, one.optimizer, one.plan, **options)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


RUNS = ((3, 1e-2), (4, 1e-2), (3, 3e-2))


@pytest.mark.parametrize("runs", [RUNS, ((3, 3e-2), (4, 3e-2), (5, 3e-2))])  # AdamW of each; of all as one
def test_stacked_runs_are_separate_ones_to_the_order_of_sums(tmp_path, runs):
    members = [member(tmp_path / f"stacked{i}", seed, rate=rate) for i, (seed, rate) in enumerate(runs)]
    results = train_stacked(members, start_step=0)
    for index, (seed, rate) in enumerate(runs):
        model, result = alone(tmp_path / f"alone{index}", seed, rate=rate)
        for (name, weight), other in zip(model.named_parameters(), members[index].model.parameters(), strict=True):
            assert relative_error(other.detach(), weight.detach()) < 1e-12, name
        assert results[index].train_loss_nats == pytest.approx(result.train_loss_nats, rel=1e-6)  # figures are float32
        assert (results[index].status, results[index].step, results[index].stacked) == ("finished", 6, 3)
        one, other = rows_of(tmp_path / f"alone{index}"), rows_of(tmp_path / f"stacked{index}")
        assert [row["learning_rate"] for row in other] == [row["learning_rate"] for row in one]
        for mine, theirs in zip(other, one, strict=True):
            assert mine["loss_nats"] == pytest.approx(theirs["loss_nats"], rel=1e-6)
            assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-6)


def test_steps_taken_at_once_are_those_one_by_one_and_end_where_a_checkpoint_is_due(tmp_path, monkeypatch):
    def trained(name, most):
        calls = []

        class Several(StackedStep):
            def __init__(self, *args):
                super().__init__(*args)
                self.most = most

            def __call__(self, block, step, n_steps):
                calls.append(n_steps)
                return super().__call__(block, step, n_steps)

        monkeypatch.setattr(stack, "StackedStep", Several)
        members = [member(tmp_path / name / str(seed), seed, n_steps=14, stop_at=12) for seed in (1, 2)]
        saving = Saving(every_s=0.0, at_steps=frozenset({6}))
        train_stacked([each._replace(saving=saving) for each in members], start_step=0)
        assert list(checkpoint.saved(tmp_path / name / "1" / "checkpoints")) == [6, 12]
        return calls, [rows_of(tmp_path / name / str(seed)) for seed in (1, 2)]

    one_by_one, expected = trained("one", 1)
    calls, rows = trained("several", 4)
    assert rows == expected and one_by_one == [1] * 12 and calls == [4, 2, 4, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("runs", [RUNS, ((3, 3e-2), (4, 3e-2), (5, 3e-2))])
def test_replays_of_several_steps_are_steps_alone(tmp_path, runs):
    def on_gpu(folder, seed, rate):
        one = member(folder, seed, rate=rate, n_steps=21)
        model = one.model.cuda()
        optimizer = adamw(model, learning_rate=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        return one._replace(workload=Rows(seed), model=model, optimizer=optimizer)

    members = [on_gpu(tmp_path / f"stacked{i}", seed, rate) for i, (seed, rate) in enumerate(runs)]
    train_stacked(members, start_step=0)
    for index, (seed, rate) in enumerate(runs):
        folder = tmp_path / f"alone{index}"
        one = on_gpu(folder, seed, rate)
        plan = dataclasses.replace(one.plan, graph=False)
        train(one.workload, one.model, one.optimizer, plan, run_dir=folder, saving=one.saving, state={})
        for (name, weight), other in zip(one.model.named_parameters(), members[index].model.parameters(), strict=True):
            assert relative_error(other.detach(), weight.detach()) < 1e-6, name  # rates are float32 in a graph
        rows = zip(rows_of(folder), rows_of(tmp_path / f"stacked{index}"), strict=True)
        assert all(mine["loss_nats"] == pytest.approx(theirs["loss_nats"], rel=1e-6) for mine, theirs in rows)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_gradient_of_weights_is_the_same_in_parts_of_the_rows(n_parts):
    generator = torch.Generator().manual_seed(0)
    d_y, x = (torch.randn(2, 12, n, generator=generator, dtype=torch.float64) for n in (5, 4))
    exact = torch.einsum("srn,srk->snk", d_y, x)
    assert relative_error(weight_gradient(d_y, x, n_parts), exact) < 1e-12


def test_a_checkpoint_of_a_stacked_run_is_that_of_a_run_alone(tmp_path):
    members = [member(tmp_path / str(seed), seed, stop_at=3) for seed in (1, 2)]
    assert [result.status for result in train_stacked(members, start_step=0)] == ["stopped", "stopped"]
    resumed = member(tmp_path / "2", 7)
    found = checkpoint.newest(tmp_path / "2" / "checkpoints")
    assert found is not None and checkpoint.load(found, resumed.model, resumed.optimizer)["step"] == 3
    options = {"run_dir": tmp_path / "2", "saving": Saving(every_s=0.0), "state": {}, "start_step": 3}
    train(Draws(2), resumed.model, resumed.optimizer, resumed.plan, **options)
    whole, _ = alone(tmp_path / "whole", 2)
    for weight, other in zip(whole.parameters(), resumed.model.parameters(), strict=True):
        assert relative_error(other.detach(), weight.detach()) < 1e-12


def test_a_member_that_diverges_leaves_the_others_alone(tmp_path):
    members = [member(tmp_path / "good", 1), member(tmp_path / "bad", 2, bad_from=2)]
    good, bad = train_stacked(members, start_step=0)
    assert (good.status, bad.status, bad.step) == ("finished", "diverged", 3)
    assert len(rows_of(tmp_path / "bad")) == 3 and not math.isfinite(rows_of(tmp_path / "bad")[-1]["loss_nats"])
    model, _ = alone(tmp_path / "alone", 1)
    assert relative_error(members[0].model.head.weight.detach(), model.head.weight.detach()) < 1e-12


@pytest.mark.parametrize("weights", [{}, {"prose": 1.0, "code": 2.0}])
def test_batches_of_several_steps_are_those_of_each(tiny_recipe, weights):
    workload = Pretraining(tiny_recipe(data={"weights": weights})).build().workload
    for step, micro_batches in enumerate(workload.batches(2, 5), start=2):
        for one, other in zip(micro_batches, workload.batch(step), strict=True):
            assert torch.equal(one[0], other[0])


def test_a_stack_that_is_stopped_saves_every_member(tmp_path):
    asked = iter([False] * 4 + [True] * 9)
    watch = Watch(should_stop=lambda: next(asked))
    results = train_stacked([member(tmp_path / str(s), s, watch=watch) for s in (1, 2)], start_step=0)
    steps = {result.step for result in results}
    assert len(steps) == 1 and {result.status for result in results} == {"interrupted"}
    for seed in (1, 2):
        assert list(checkpoint.saved(tmp_path / str(seed) / "checkpoints")) == list(steps)


def test_only_runs_of_one_shape_and_length_are_stacked(tmp_path):
    same = [member(tmp_path, 1), member(tmp_path, 2, rate=1.0)]
    assert can_stack(same)
    assert not can_stack([*same, member(tmp_path, 3, n_steps=7)])
    assert not can_stack([*same, member(tmp_path, 3, shape=ModelConfig(2, 16, 4, 4, 4, 24, 48, 12))])
    experts = ModelConfig(2, 16, 4, 2, 4, 24, 48, 12, experts=ExpertConfig(4, 2, 8))
    assert not stackable(Transformer(experts))


def test_recipes_run_stacked_give_the_results_of_each(tiny_recipe, tmp_path):
    recipes = [tiny_recipe(train={"seed": seed}) for seed in (0, 1, 2)]
    expected = [run_pretrain(recipe, tmp_path / f"alone{i}") for i, recipe in enumerate(recipes)]
    folders = [tmp_path / f"stacked{i}" for i in range(3)]

    def stacked():
        nobody = [None] * 3
        return run_stacked([*map(Pretraining, recipes)], folders, start_from=nobody, on_progress=nobody)

    found = stacked()
    for one, other in zip(found, expected, strict=True):
        assert one["loss_nats"] == pytest.approx(other["loss_nats"], rel=1e-5)
        assert one["stacked"] == 3 and one.keys() - other.keys() == {"stacked"}
    assert stacked() == found, "finished runs are read, not repeated"
