"""Number formats under sharding: two processes, weights in pieces (FSDP2) or gradients averaged (DDP).

Each rank first computes its own rows with whole weights; the mean of both gradients is what sharding must give back.
Run as a script, this file is one of the ranks.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from isoflop.model.config import ExpertConfig, ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import Format, NumericsSection, PhotonicSection, Rule

DENSE = ModelConfig(
    n_layers=2, d_model=32, n_heads=2, n_kv_heads=2, d_head=16, d_ff=48, vocab_size=64, seq_len=16, init_std=0.1
)
SPARSE = dataclasses.replace(DENSE, experts=ExpertConfig(n_experts=4, n_active=2, d_expert=24))
CASES: dict[str, tuple[ModelConfig, Format, str]] = {
    "bfloat16": (DENSE, "bfloat16", "ste"),
    "fp8_block": (DENSE, "fp8_block", "ste"),
    "photonic ste": (DENSE, "photonic", "ste"),
    "photonic core": (DENSE, "photonic", "core"),
    "photonic dx_core": (DENSE, "photonic", "dx_core"),
    "photonic dfa": (DENSE, "photonic", "dfa"),
    "photonic experts": (SPARSE, "photonic", "ste"),
}
WORLD = 2


class Summed(nn.Module):
    """The loss as the forward of a module: what both kinds of wrapper hook into."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, windows_BT: torch.Tensor) -> torch.Tensor:
        return self.model.loss_sum(windows_BT[:, :-1], windows_BT[:, 1:])


def build(name: str) -> tuple[Summed, NoiseKey]:
    config, format, backward = CASES[name]
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    noise_key = NoiseKey(7, 0)
    section = NumericsSection((Rule("*", format),), photonic=PhotonicSection(backward=backward))  # type: ignore[arg-type]
    assign(model, section, noise_key)
    return Summed(model), noise_key


def step(module: nn.Module, noise_key: NoiseKey, rows_BT: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and whole gradients of one micro-batch, names without what wrappers put before them."""
    noise_key.set(3, 1)
    loss = module(rows_BT)
    loss.backward()
    found = {}
    for name, parameter in module.named_parameters():
        if (gradient := parameter.grad) is not None:
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient  # type: ignore[attr-defined]
            found[name.removeprefix("module.")] = whole.detach().clone()
    return float(loss), found


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest difference of any gradient over the largest value of that gradient."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)


def sharded(module: Summed) -> Summed:
    from torch.distributed.fsdp import fully_shard

    for block in module.model.all_blocks():
        fully_shard(block)
    fully_shard(module)
    return module


def be_a_rank(rank: int, port: int, out: Path, ways: list[str], names: list[str]) -> None:
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    windows_BT = torch.randint(64, (2 * WORLD, 17), generator=torch.Generator().manual_seed(1))
    mine, same = windows_BT.chunk(WORLD)[rank], windows_BT[:2]
    found = {}
    for name in names:
        module, noise_key = build(name)
        loss, wanted = step(module, noise_key, mine)
        for gradient in wanted.values():
            distributed.all_reduce(gradient)
            gradient /= WORLD
        record: dict[str, object] = {"loss": loss, "loss on equal rows": step(*build(name), same)[0]}
        for way in ways:
            module, noise_key = build(name)
            for block in module.model.all_blocks() if "compiled" in way else ():
                block.compile(dynamic=False)
            wrapped = DistributedDataParallel(module) if way == "DDP" else sharded(module)
            its_loss, gradients = step(wrapped, noise_key, mine)
            record[way] = {"loss": its_loss, "distance": distance(gradients, wanted)}
        found[name] = record
    out.write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


def run_ranks(folder: Path, ways: list[str], names: list[str]) -> list[dict[str, dict]]:
    """What each rank found, by case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    files = [folder / f"{rank}.json" for rank in range(WORLD)]
    words = [",".join(ways), ",".join(names)]
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(file), *words], env=environment)
        for rank, file in enumerate(files)
    ]
    assert [process.wait(timeout=240) for process in started] == [0] * WORLD
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict]]:
    return run_ranks(tmp_path_factory.mktemp("ranks"), ["FSDP2", "DDP"], list(CASES))


@pytest.mark.dist
@pytest.mark.parametrize("way", ["FSDP2", "DDP"])
@pytest.mark.parametrize("name", CASES)
def test_sharded_weights_give_the_loss_and_gradients_of_whole_ones(ranks, name, way):
    for found in ranks:
        assert found[name][way]["loss"] == found[name]["loss"]
        assert found[name][way]["distance"] < 1e-6


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_ranks_draw_their_own_noise_and_nothing_else_differs(ranks, name):
    first, second = (found[name]["loss on equal rows"] for found in ranks)
    assert (first != second) == name.startswith("photonic")
    assert first == pytest.approx(second, rel=0.01)


@pytest.mark.dist
@pytest.mark.slow
def test_sharded_and_compiled_is_still_the_same(tmp_path):
    for found in run_ranks(tmp_path, ["FSDP2 compiled"], ["fp8_block", "photonic ste"]):
        for record in found.values():
            assert record["FSDP2 compiled"]["loss"] == pytest.approx(record["loss"], rel=1e-5)
            assert record["FSDP2 compiled"]["distance"] < 3e-3  # a value at the edge of a converter's step may go over


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","), sys.argv[5].split(","))
