"""The loop with a workload of its own: accumulation, cadence of savings, divergence, stopping, resuming."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from isoflop.training import checkpoint
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan, train
from isoflop.training.monitor import Watch
from isoflop.training.optim import adamw
from isoflop.training.step import Layout, forward_backward
from isoflop.training.step_hooks import StepHook
from isoflop.training.workload import Workload


class Lines(Workload):
    """A regression on rows that depend on the step alone."""

    tokens_per_step = 12

    def __init__(self, n_micro: int = 1, bad_from: int | None = None):
        self.n_micro, self.bad_from = n_micro, bad_from

    def batch(self, step, rank=0, world=1):
        rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(step))[rank::world]
        if self.bad_from is not None and step >= self.bad_from:
            rows = rows * math.nan
        return [(part,) for part in rows.chunk(self.n_micro)]

    def loss_sum(self, model, micro_batch):
        (rows,) = micro_batch
        return F.mse_loss(model(rows[:, :2])[:, 0], rows[:, 2] + rows[:, 0], reduction="sum")

    def validate(self, model):
        return {"loss_nats": float(model.weight.detach().sum()), "bits_per_byte": 1.0}


def run(
    folder, workload=None, n_steps=20, *, saving=None, start=False, rate=0.05, should_stop=None, layout=None, **plan
):
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 0.3)
    torch.nn.init.constant_(model.bias, 0.0)
    optimizer = adamw(model, learning_rate=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    found = checkpoint.newest(folder / "checkpoints") if start else None
    start_step = checkpoint.load(found, model, optimizer)["step"] if found else 0
    result = train(
        workload or Lines(),
        model,
        optimizer,
        StepPlan(n_steps, rate=lambda step: rate, **plan),
        run_dir=folder,
        saving=saving or Saving(every_s=0.0),
        state={},
        start_step=start_step,
        watch=Watch(should_stop=should_stop or (lambda: False)),
        layout=layout or Layout(),
    )
    return model, result


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def steps_of(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("n_micro", [2, 3, 12])
def test_micro_batches_add_up_to_the_whole_batch(tmp_path, n_micro):
    whole, _ = run(tmp_path / "whole")
    parts, _ = run(tmp_path / "parts", Lines(n_micro))
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    for a, b in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        assert b["loss_nats"] == pytest.approx(a["loss_nats"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)


def test_one_step_is_the_gradient_of_the_mean_clipped_to_the_norm(tmp_path):
    model, _ = run(tmp_path, n_steps=1, clip_norm=0.01)
    (row,) = rows_of(tmp_path)
    (rows,) = Lines().batch(0)[0]
    weight, bias = torch.full((1, 2), 0.3, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss = (F.linear(rows[:, :2], weight, bias)[:, 0] - rows[:, 2] - rows[:, 0]).square().mean()
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert row["loss_nats"] == pytest.approx(loss.item(), rel=1e-6)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert row["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    # the first AdamW step is one rate in the direction of the sign, whatever clipping left of the size
    torch.testing.assert_close(model.weight.detach(), weight.detach() - 0.05 * gradients[0].sign(), rtol=1e-4, atol=0)


def test_every_step_has_one_line_and_the_tokens_add_up(tmp_path):
    _, result = run(tmp_path, n_steps=37)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 38))
    assert [row["n_tokens"] for row in rows] == [12 * step for step in range(1, 38)]
    assert result.status == "finished" and result.tokens == 37 * 12
    assert result.train_loss_nats == pytest.approx(sum(row["loss_nats"] for row in rows[-3:]) / 3)


def test_checkpoints_come_at_their_steps_and_pinned_ones_stay(tmp_path):
    run(tmp_path, saving=Saving(every_steps=4, every_s=0.0, keep=2, at_steps=frozenset({3, 9})))
    assert steps_of(tmp_path) == [3, 9, 16, 20]


def test_time_based_savings_happen(tmp_path):
    run(tmp_path, saving=Saving(every_s=1e-9, keep=100))
    assert steps_of(tmp_path) == list(range(1, 21))


def test_stopping_early_says_so_and_leaves_a_checkpoint_there(tmp_path):
    _, result = run(tmp_path, stop_at=8)
    assert (result.status, result.step, steps_of(tmp_path)) == ("stopped", 8, [8])


@pytest.mark.parametrize("validate_every", [0, 6])
def test_a_stopped_and_resumed_run_is_byte_for_byte_the_undisturbed_one(tmp_path, validate_every):
    whole, result = run(tmp_path / "whole", validate_every=validate_every)
    calls = iter(range(1000))
    _, first = run(tmp_path / "parts", validate_every=validate_every, should_stop=lambda: next(calls) == 6)
    assert (first.status, first.step) == ("interrupted", 7)
    resumed, second = run(tmp_path / "parts", validate_every=validate_every, start=True)
    assert second.status == "finished"
    name = "metrics.jsonl"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert second.train_loss_nats == result.train_loss_nats


def test_validation_comes_on_time_and_not_twice_at_the_end(tmp_path):
    run(tmp_path, validate_every=5)
    assert [row["step"] for row in rows_of(tmp_path) if "validation" in row] == [5, 10, 15]


@pytest.mark.parametrize("resume_at", [None, 3])
def test_a_diverged_run_ends_at_its_first_bad_step_wherever_it_was_resumed(tmp_path, resume_at):
    if resume_at:
        run(tmp_path, n_steps=40, stop_at=resume_at)
    _, result = run(tmp_path, Lines(bad_from=9), n_steps=40, start=True)
    assert (result.status, result.step) == ("diverged", 10)
    rows = rows_of(tmp_path)
    assert len(rows) == 10 and math.isnan(rows[-1]["loss_nats"]) and math.isfinite(rows[-2]["loss_nats"])
    assert steps_of(tmp_path) == ([resume_at] if resume_at else [])


def test_no_checkpoint_is_written_from_a_diverged_model(tmp_path):
    run(tmp_path, Lines(bad_from=9), n_steps=40, saving=Saving(every_steps=2, every_s=0.0, keep=100))
    assert steps_of(tmp_path) == [2, 4, 6, 8]


def test_a_failing_batch_source_is_not_swallowed(tmp_path):
    class Broken(Lines):
        def batch(self, step, rank=0, world=1):
            if step == 5:
                raise FileNotFoundError("the shard is gone")
            return super().batch(step)

    with pytest.raises(FileNotFoundError, match="shard is gone"):
        run(tmp_path, Broken())


class Counted(Lines):
    """Only some rows have a target, unevenly over the micro-batches; one micro-batch has none."""

    def batch(self, step, rank=0, world=1):
        rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(step))
        counted = torch.arange(12) < 5
        return [tuple(pair) for pair in zip(*(t[rank::world].chunk(self.n_micro) for t in (rows, counted)))]

    def divisor(self, micro_batches):
        return torch.stack([counted.sum() for _, counted in micro_batches]).sum()

    def loss_sum(self, model, micro_batch):
        rows, counted = micro_batch
        return ((model(rows[:, :2])[:, 0] - rows[:, 2]).square() * counted).sum()


@pytest.mark.parametrize("n_micro", [2, 3, 12])
def test_a_loss_over_counted_targets_does_not_depend_on_the_split(tmp_path, n_micro):
    whole, _ = run(tmp_path / "whole", Counted())
    parts, _ = run(tmp_path / "parts", Counted(n_micro))
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    ((rows, counted),) = Counted().batch(0)
    left = F.linear(rows[:, :2], torch.full((1, 2), 0.3))[:, 0] - rows[:, 2]
    for name in ("whole", "parts"):
        assert rows_of(tmp_path / name)[0]["loss_nats"] == pytest.approx(left[counted].square().mean().item(), rel=1e-6)


def test_a_layout_gives_its_rank_rows_of_its_own_and_the_part_between_zero_and_clip(tmp_path):
    def of_both_ranks(workload, model, micro_batches):
        """What two processes that sum their gradients compute, in one."""
        asked.append(len(micro_batches[0][0]))
        others = workload.batch(len(asked) - 1, 1, 2)
        return forward_backward(workload, model, micro_batches) + forward_backward(workload, model, others)

    asked: list[int] = []
    whole, _ = run(tmp_path / "whole")
    both, _ = run(tmp_path / "both", layout=Layout(0, 2, of_both_ranks))
    assert asked == [6] * 20
    torch.testing.assert_close(both.weight, whole.weight, rtol=1e-5, atol=1e-6)
    for a, b in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "both"), strict=True):
        assert b["loss_nats"] == pytest.approx(a["loss_nats"], rel=1e-5)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)


def test_hooks_are_told_what_happens_in_order_and_their_figures_stand_in_the_metrics(tmp_path):
    told = []

    class Telling(StepHook):
        n_figures = 2

        def begin(self, step):
            told.append(f"step {step}")

        def micro_batch(self, index):
            told.append(f"micro {index}")

        def validating(self, step):
            told.append(f"validating {step}")

        def finish(self):
            told.append("finish")
            return torch.tensor([len(told), 7.0])

        def figures(self, step, values):
            return {"told": values[0], "seven": values[1]}

    class Silent(StepHook):
        """Watches nothing: the defaults do."""

    workload = Lines(n_micro=2)
    workload.hooks = [Silent(), Telling(), Telling()]
    run(tmp_path, workload, n_steps=2, validate_every=1)
    step = ["step {0}"] * 2 + ["micro 0"] * 2 + ["micro 1"] * 2 + ["finish"] * 2
    assert told == [line.format(0) for line in step] + ["validating 1"] * 2 + [line.format(1) for line in step]
    rows = [row for row in rows_of(tmp_path) if "told" in row]
    assert [(row["told"], row["seven"]) for row in rows] == [(8.0, 7.0), (18.0, 7.0)]


def test_a_batch_that_depends_on_the_weights_is_made_after_the_step_before_it(tmp_path):
    class Seeing(Lines):
        prefetch = False

        def __init__(self, model):
            super().__init__()
            self.model, self.seen = model, []

        def batch(self, step, rank=0, world=1):
            self.seen.append(self.model.weight.detach().clone())
            return super().batch(step)

        def loss_sum(self, model, micro_batch):
            assert torch.equal(model.weight, self.seen[-1])
            return super().loss_sum(model, micro_batch)

    model = torch.nn.Linear(2, 1)
    optimizer = adamw(model, learning_rate=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    workload, plan = Seeing(model), StepPlan(5, rate=lambda step: 0.05)
    train(workload, model, optimizer, plan, run_dir=tmp_path, saving=Saving(every_s=0.0), state={})
    assert len(workload.seen) == 5 and not torch.equal(workload.seen[0], workload.seen[1])
