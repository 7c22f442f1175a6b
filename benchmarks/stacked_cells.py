"""What cells of a sweep cost when several of one shape are trained as one program.

    python benchmarks/stacked_cells.py                  a small cell on this CPU
    python benchmarks/stacked_cells.py --device cuda    the d 160 x 6 cell, bfloat16, steps as CUDA graphs

Runs of two lengths are timed; the difference of their times over that of their steps leaves out what a start costs.
`--profile` lists the kernels that a step of the last stack spends its time in (CUDA only; times of the profiler).
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from step_formats import Noise

from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig, swiglu_width
from isoflop.model.transformer import Transformer
from isoflop.run import commit, processor
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan
from isoflop.training.monitor import NOBODY
from isoflop.training.optim import adamw
from isoflop.training.stack import Member, train_stacked

CELLS = {  # layers, d_model, heads, vocabulary, sequence; sequences a step; steps of the short and the long run
    "cpu": ((3, 48, 2, 1024, 64), 16, (3, 23)),
    "cuda": ((6, 160, 5, 4096, 128), 57, (20, 320)),
}


def seconds(n_members: int, n_steps: int, device: torch.device) -> float:
    """Of one stack of so many members from its start to its end."""
    (n_layers, d_model, n_heads, vocab_size, seq_len), sequences, _ = CELLS[device.type]
    d_ff, dtype = swiglu_width(d_model, 32), torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = ModelConfig(n_layers, d_model, n_heads, n_heads, d_model // n_heads, d_ff, vocab_size, seq_len)
    plan, saving = StepPlan(n_steps, rate=lambda step: 1e-3), Saving(every_s=0, at_end=False)
    with tempfile.TemporaryDirectory() as folder, fastest_kernels(device):
        members = []
        for seed in range(n_members):
            torch.manual_seed(seed)
            model = Transformer(shape, dtype).to(device)
            model.initialise(torch.Generator().manual_seed(seed))
            optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
            own = Path(folder) / str(seed)
            members.append(Member(Noise(shape, sequences), model, optimizer, plan, own, saving, {}, NOBODY))
        began = time.perf_counter()
        train_stacked(members, start_step=0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def profile(n_members: int, n_steps: int, device: torch.device) -> None:
    """Kernels by time, microseconds a step; capturing and its warm-up are in, so steps must be many."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        seconds(n_members, n_steps, device)
    kernels = sorted(found.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    total = sum(kernel.self_device_time_total for kernel in kernels)
    print(f"{total / n_steps:10.1f} us a step, {sum(k.count for k in kernels) / n_steps:.0f} kernels")
    for kernel in kernels[:45]:
        print(f"{kernel.self_device_time_total / n_steps:10.1f} us {kernel.count / n_steps:7.1f} x {kernel.key[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    shape, sequences, (short, long) = CELLS[options.device]
    print(f"{where}, torch {torch.__version__}, commit {commit()}, {shape}, {sequences * shape[-1]} tokens a step")
    seconds(options.members[0], 3, device)
    for n in options.members:
        step_s = (seconds(n, long, device) - seconds(n, short, device)) / (long - short)
        print(f"{n} at once: {step_s * 1e3:8.3f} ms a step, {step_s / n * 1e3:8.3f} a member", flush=True)
    if options.profile:
        profile(options.members[-1], 100, device)


if __name__ == "__main__":
    main()
