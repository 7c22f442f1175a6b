"""SFT over two processes: gradients added up over ranks are those of one process. As a script, this file is a rank."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alignment_samples import make_samples
from interop_models import FAMILIES, build
from torch import distributed

from isoflop.alignment.sample_terms import SampleTerms
from isoflop.alignment.sft import Sft
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection
from isoflop.training.step import forward_backward

WORLD = 2
HERE = Path(__file__).parent
CONFIGS = {"dense": FAMILIES["gqa"], "mixed": replace(FAMILIES["v3"], n_layers=2, mtp_depth=1, yarn=None)}


def one_step(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Loss, gradients and biases after the hooks of one step."""
    model, rows = build(CONFIGS[name]), make_samples([40, 9, 77, 23, 15, 60, 31], seed=3)
    hook = None
    if model.config.experts:
        hook = SampleTerms(model, BalanceSection(sequence_loss=0.01), MtpSection(), moves_bias=True)
    workload = Sft(rows, rows, seq_len=96, batch=7, seed=2, micro_tokens=192 if world > 1 else 96, terms=hook)
    loss = forward_backward(workload, model, workload.batch(0, rank, world))
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss}
    if world > 1:
        for tensor in found.values():
            distributed.all_reduce(tensor)  # sums: the divisor is that of all ranks already
    if hook is not None:
        found["statistics"] = hook.finish()
        found |= {f"bias {index}": router.bias for index, router in enumerate(model.routers())}
    return {key: tensor.detach().clone() for key, tensor in found.items()}


@pytest.mark.dist
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_compute_what_one_does(name, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, name, str(tmp_path)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "interop"), *sys.path]),
                "RANK": str(rank),
                "WORLD_SIZE": str(WORLD),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(WORLD)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * WORLD
    expected = one_step(name, 0, 1)
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
        largest = max(v.abs().max() for k, v in expected.items() if k in dict(build(CONFIGS[name]).named_parameters()))
        for key, value in expected.items():
            assert (found[key] - value).abs().max() <= 1e-5 * largest, key


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.save(one_step(sys.argv[1], distributed.get_rank(), WORLD), Path(sys.argv[2]) / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
