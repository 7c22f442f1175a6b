"""On a GPU: batched Muon equals torch.optim.Muon, nothing waits for the device, and a graph replays its steps."""

import pytest
import torch
from on_gpu import waiting_for_the_device_is_an_error

from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.error import relative_error
from isoflop.training.cuda_graph import GraphedStep, can_capture
from isoflop.training.muon import MuonWithAdamW, muon
from isoflop.training.step import take_step
from isoflop.training.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_batched_steps_are_those_of_torch_optim_muon():
    shapes = [(96, 64), (96, 64), (64, 160)]
    weights = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    rest = torch.nn.Parameter(torch.zeros(8, device="cuda"))
    adamw = torch.optim.AdamW([rest], lr=0.01, fused=True)
    ours = MuonWithAdamW(weights, adamw, learning_rate=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon(copies, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [weight.detach().clone() for weight in weights]
    for _ in range(3):
        for weight, copy in zip(weights, copies, strict=True):
            weight.grad = torch.randn_like(weight)
            copy.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    for weight, copy, start in zip(weights, copies, before, strict=True):
        moved = (copy - start).detach()  # of the way gone, what bf16 products of other sizes round differently
        assert relative_error(weight.detach() - start, moved) < 1e-2
        assert relative_error(weight.detach(), copy.detach()) < 1e-4


class Repeat(Workload):
    tokens_per_step = 4 * 64
    hooks = ()

    def loss_sum(self, model, micro_batch):
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])


def losses(graphed: bool) -> list[float]:
    model = Transformer(ModelConfig(2, 64, 4, 4, 16, 192, 512, 64, init_std=0.05), torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = muon(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batches = [(torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)).cuda(),) for i in range(8)]
    assert can_capture(Repeat(), model, optimizer, batches[:1])
    replay = GraphedStep(Repeat(), model, optimizer, batches[:1], 1.0) if graphed else None
    found = []
    for index, batch in enumerate(batches):
        rate = 1e-3 * (index + 1)
        for group in optimizer.param_groups if replay is None else ():
            group["lr"] = rate
        values = replay([batch], rate) if replay else take_step(Repeat(), model, optimizer, [batch], clip_norm=1.0)
        if replay is None:
            optimizer.zero_grad(set_to_none=True)
        found.append(float(values[0]))
    with waiting_for_the_device_is_an_error():
        optimizer.step()
    return found


def test_replayed_steps_equal_eager_ones():
    assert losses(graphed=True) == pytest.approx(losses(graphed=False), rel=3e-3)
