"""On a GPU: stacked runs, replayed as a graph, against the same runs one by one."""

import json

import pytest
import torch
from torch.nn import functional as F

from isoflop.model.config import ModelConfig
from isoflop.model.stacked import StackedTransformer, weight_gradient
from isoflop.model.transformer import Transformer
from isoflop.numerics.error import relative_error
from isoflop.numerics.joined import normed
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan, train
from isoflop.training.monitor import NOBODY
from isoflop.training.optim import adamw
from isoflop.training.stack import Member, train_stacked
from isoflop.training.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPE = ModelConfig(2, 64, 4, 4, 16, 192, 512, 64, init_std=0.05)


class Draws(Workload):
    tokens_per_step = 4 * 64

    def __init__(self, seed: int, n_micro: int):
        self.seed, self.n_micro = seed, n_micro

    def batch(self, step, rank=0, world=1):
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        return [(part,) for part in torch.randint(512, (4, 65), generator=generator).chunk(self.n_micro)]

    def loss_sum(self, model, micro_batch):
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])


def member(folder, seed, rate, n_micro):
    model = Transformer(SHAPE, torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(seed))
    optimizer = adamw(model, learning_rate=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    plan = StepPlan(8, rate=lambda step: rate * (1 - step / 8))
    return Member(Draws(seed, n_micro), model, optimizer, plan, folder, Saving(every_s=0.0), {}, NOBODY)


def losses_of(folder):
    return [json.loads(line)["loss_nats"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("n_micro", [1, 2])  # a graph; step by step
def test_stacked_runs_learn_as_separate_ones(tmp_path, n_micro):
    settings = ((0, 1e-3), (1, 1e-3), (1, 3e-3))
    stacked = [member(tmp_path / f"s{i}", seed, rate, n_micro) for i, (seed, rate) in enumerate(settings)]
    train_stacked(stacked, start_step=0)
    for index, (seed, rate) in enumerate(settings):
        one = member(tmp_path / f"a{index}", seed, rate, n_micro)
        train(one.workload, one.model, one.optimizer, one.plan, run_dir=one.run_dir, saving=one.saving, state={})
        assert losses_of(tmp_path / f"s{index}") == pytest.approx(losses_of(tmp_path / f"a{index}"), rel=3e-3)
        for weight, other in zip(one.model.parameters(), stacked[index].model.parameters(), strict=True):
            assert relative_error(other.detach(), weight.detach()) < 3e-2


def test_gradients_of_a_stack_are_those_of_its_members_in_float64():
    models = []
    for seed in range(3):
        models.append(Transformer(SHAPE, torch.bfloat16).cuda())
        models[-1].initialise(torch.Generator().manual_seed(seed))
    exact = []
    for model in models:
        exact.append(Transformer(SHAPE, torch.float64).double())
        exact[-1].load_state_dict(model.state_dict())
    rows = torch.randint(512, (6, 65), generator=torch.Generator().manual_seed(9))
    stack = StackedTransformer(models)
    stack.loss_sum(rows[:, :-1].cuda(), rows[:, 1:].cuda()).sum().backward()
    for model, reference, own in zip(models, exact, rows.split(2), strict=True):
        reference.loss_sum(own[:, :-1], own[:, 1:]).backward()
        for weight, other in zip(model.parameters(), reference.parameters(), strict=True):
            assert weight.grad is not None and relative_error(weight.grad.cpu(), other.grad) < 4e-2


@pytest.mark.parametrize("n_parts", [1, 4])
def test_a_gradient_of_weights_is_the_same_in_parts_of_the_rows(n_parts):
    generator = torch.Generator("cuda").manual_seed(0)
    d_y, x = (torch.randn(2, 2048, n, device="cuda", generator=generator).bfloat16() for n in (96, 160))
    found = weight_gradient(d_y, x, n_parts)
    assert found.dtype == torch.float32
    assert relative_error(found, torch.einsum("srn,srk->snk", d_y.double(), x.double())) < 1e-5


@pytest.mark.parametrize("n_rows", [7, 400])
def test_norms_of_a_stack_have_weights_of_their_own(n_rows):
    draw = lambda *shape: torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(len(shape)))
    x, update, weight = draw(3 * n_rows, 160).bfloat16(), draw(3 * n_rows, 160).bfloat16(), draw(3, 160) + 2
    leaves = [t.clone().requires_grad_() for t in (x, update, weight)]
    exact = [t.double().requires_grad_() for t in (x, update, weight)]
    total, out = normed(*leaves, 1e-6)
    ((total + 2 * out).float() * 0.5).sum().backward()
    wide = exact[0] + exact[1]
    unit = F.rms_norm(wide, (160,), None, 1e-6).view(3, n_rows, 160)
    expected = (unit * exact[2][:, None]).view(-1, 160)
    ((wide + 2 * expected) * 0.5).sum().backward()
    assert relative_error(out, expected) < 6e-3
    for leaf, reference in zip(leaves, exact, strict=True):
        assert relative_error(leaf.grad, reference.grad) < 6e-3
