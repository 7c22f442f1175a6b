"""What a number format costs a training step of a small model.

    python benchmarks/step_formats.py                  1M parameters on this CPU, float32
    python benchmarks/step_formats.py --device cuda    20M, bfloat16, blocks compiled, with and without CUDA graphs

A step is what `isoflop.training.loop.train` does. Runs of two lengths are timed; the difference of their times over
that of their steps leaves out what a start costs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig, swiglu_width
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule
from isoflop.recipe import write_json
from isoflop.run import commit, processor
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan, train
from isoflop.training.optim import adamw
from isoflop.training.saturation import watch_clipping
from isoflop.training.step_hooks import NoiseHook
from isoflop.training.workload import Workload

SHAPES = {  # layers, d_model, heads, vocabulary, sequence; sequences a step; steps of the short and the long run
    "cpu": ((4, 128, 2, 2048, 256), 16, (3, 13)),
    "cuda": ((8, 448, 7, 8192, 1024), 16, (20, 220)),
}
FORMATS = {
    "as activations": None,
    "fp8_block": NumericsSection((Rule("blocks.*", "fp8_block"),)),
    "photonic": NumericsSection((Rule("blocks.*", "photonic"),)),
    "photonic, gradients on the core": NumericsSection(
        (Rule("blocks.*", "photonic"),), photonic=PhotonicSection(backward="core")
    ),
}


class Noise(Workload):
    """The benchmark's workload: random tokens from memory."""

    def __init__(self, shape: ModelConfig, sequences: int):
        self.tokens_per_step = sequences * shape.seq_len
        self._tokens = torch.randint(shape.vocab_size, (sequences, shape.seq_len + 1))

    def batch(self, step: int, rank: int = 0, world: int = 1):
        return [(self._tokens.roll(step, 0),)]

    def loss_sum(self, model, micro_batch):
        assert isinstance(model, Transformer)
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])

    def validate(self, model) -> dict[str, object]:
        return {"loss_nats": float("nan")}


def step_ms(section: NumericsSection | None, device: torch.device, graph: bool) -> float:
    (n_layers, d_model, n_heads, vocab_size, seq_len), sequences, lengths = SHAPES[device.type]
    d_ff = swiglu_width(d_model, 32)
    shape = ModelConfig(n_layers, d_model, n_heads, n_heads, d_model // n_heads, d_ff, vocab_size, seq_len)
    torch.manual_seed(0)
    model, noise_key = (
        Transformer(shape, torch.bfloat16 if device.type == "cuda" else torch.float32).to(device),
        NoiseKey(0),
    )
    model.initialise(torch.Generator().manual_seed(0))
    if section is not None:
        assign(model, section, noise_key)
    if device.type == "cuda":
        for block in model.blocks:
            block.compile(dynamic=False)
    workload, seconds = Noise(shape, sequences), []
    workload.hooks = [*watch_clipping(model), NoiseHook(noise_key)]
    for n_steps in (3, *lengths):  # the first is warm-up
        optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        with tempfile.TemporaryDirectory() as folder, fastest_kernels(device):
            began = time.perf_counter()
            train(
                workload,
                model,
                optimizer,
                StepPlan(n_steps, rate=lambda step: 1e-4, graph=graph),
                run_dir=Path(folder),
                saving=Saving(every_s=0, at_end=False),
                state={},
            )
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return (seconds[2] - seconds[1]) / (lengths[1] - lengths[0]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="times the first of them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, commit {commit()}, {SHAPES[device.type]}")
    rows: dict[str, dict[str, float]] = {}
    for label in options.formats:
        ways = {"step by step": False, "as a CUDA graph": True} if cuda else {"step by step": False}
        rows[label] = {way: step_ms(FORMATS[label], device, graph) for way, graph in ways.items()}
        first = rows[options.formats[0]]
        said = ", ".join(f"{way} {ms:.2f} ms ({ms / first[way]:.2f})" for way, ms in rows[label].items())
        print(f"  {label:34s} {said}")
    if options.json:
        write_json(options.json, {"device": name, "commit": commit(), "step_ms": rows})


if __name__ == "__main__":
    main()
