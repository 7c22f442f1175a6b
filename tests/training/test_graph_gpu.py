"""A replayed step computes what an eager step computes."""

import pytest
import torch

from isoflop.model.transformer import Transformer
from isoflop.scaling.shapes import shape
from isoflop.training.graph import GraphedStep, can_capture
from isoflop.training.loop import _step
from isoflop.training.optim import adamw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Repeat:
    tokens_per_step = 4 * 64

    def loss_sum(self, model, micro_batch):
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])


def steps(graphed: bool, warm: int = 0) -> tuple[list[float], torch.Tensor]:
    model = Transformer(shape(64, vocab_size=512, seq_len=64), torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batches = [(torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)),) for i in range(12)]
    assert can_capture(model, optimizer, [tuple(t.cuda() for t in batches[0])])
    losses = []
    for index, batch in enumerate(batches[:warm]):
        losses.append(float(_step(Repeat(), model, optimizer, [batch], 1e-3 * (index + 1), 1.0)[0]))
    replay = GraphedStep(Repeat(), model, optimizer, batches[0], 1.0) if graphed else None
    for index, batch in enumerate(batches[warm:], start=warm):
        rate = 1e-3 * (index + 1)
        pinned = tuple(t.pin_memory() for t in batch)
        values = replay(pinned, rate) if replay else _step(Repeat(), model, optimizer, [batch], rate, 1.0)
        losses.append(float(values[0]))
    return losses, model.embedding.weight.detach().cpu()


@pytest.mark.parametrize("warm", [0, 3])
def test_graphed_steps_equal_eager_steps(warm):
    eager, eager_weight = steps(graphed=False)
    replayed, weight = steps(graphed=True, warm=warm)
    assert replayed == pytest.approx(eager, rel=2e-3)
    error = float((weight - eager_weight).norm() / eager_weight.norm())
    assert error < 2e-2, error
