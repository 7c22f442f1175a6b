"""What a new kind of training costs: a workload (batches and a loss) and a job. `toy_runs.py KIND FOLDER` runs one."""

import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan
from isoflop.training.optim import adamw
from isoflop.training.run import Built, Job, run
from isoflop.training.workload import Workload


class Masked(Workload):
    """Lines through points, of which a random part has a target: the loss is divided by their number."""

    tokens_per_step = 12

    def batch(self, step, rank=0, world=1):
        time.sleep(0.006)  # long enough to be killed, and for progress to be shown
        rows_RN = torch.randn(12, 3, generator=torch.Generator().manual_seed(step))[rank::world]
        return [(part, part[:, 2] > 0) for part in rows_RN.split(5)]

    def divisor(self, micro_batches):
        return torch.stack([counted.sum() for _, counted in micro_batches]).sum().clamp(min=1)

    def loss_sum(self, model, micro_batch):
        rows_RN, counted_R = micro_batch
        return ((model(rows_RN[:, :2])[:, 0] - rows_RN[:, 2]).square() * counted_R).sum()

    def validate(self, model):
        return {"loss_nats": float(model.weight.detach().square().sum())}


class Policy(Masked):
    """Answers drawn from the weights as they are, weighed by how near they come to a number each group is after."""

    prefetch = False

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def batch(self, step, rank=0, world=1):
        (rows_RN, _), *_ = super().batch(step, rank, world)
        mean_R1 = self.model(rows_RN[:, :2])
        drawn_RQ = mean_R1 + torch.randn(len(rows_RN), 8, generator=torch.Generator().manual_seed(10**6 + step))
        reward_RQ = -(drawn_RQ - 3).square()
        return [(rows_RN[:, :2], drawn_RQ, reward_RQ - reward_RQ.mean(1, keepdim=True), mean_R1)]

    def divisor(self, micro_batches):
        return micro_batches[0][1].numel()

    def loss_sum(self, model, micro_batch):
        x_RN, drawn_RQ, advantage_RQ, mean_R1 = micro_batch
        assert torch.equal(model(x_RN), mean_R1), "drawn from the very weights that are trained"
        return (advantage_RQ * F.mse_loss(model(x_RN).expand_as(drawn_RQ), drawn_RQ, reduction="none")).sum() / 2


class Toy(Job):
    def __init__(self, kind):
        self.identity, self.kind = {"kind": kind, "n_steps": 150}, kind
        self.plan = StepPlan(150, rate=lambda step: 0.02, validate_every=100)
        self.saving = Saving(every_steps=10, every_s=0.0)

    def build(self):
        model = torch.nn.Linear(2, 1)
        workload = Policy(model) if self.kind == "policy" else Masked()
        return Built(workload, model, adamw(model, learning_rate=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0))

    def initialise(self, model):
        torch.nn.init.constant_(model.weight, 0.3)
        torch.nn.init.constant_(model.bias, 0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Toy(sys.argv[1]), Path(sys.argv[2]))
