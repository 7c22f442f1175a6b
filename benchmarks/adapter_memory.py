"""Peak memory of fine-tuning with adapters (LoRA) against its forecast, step by step in eager mode.

    python benchmarks/adapter_memory.py --device cuda [--micro-rows 2] [--rank 16] [--json FILE]

The 1.3B shape with random weights, conversations with the lengths of alpaca_en (benchmarks/align_step.py) packed into
rows of 4,096 tokens, two micro-batches a step. The peak is what the allocator says of three steps; a CPU counts none.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from align_step import drawn_lengths, make_rows

from isoflop.alignment.adapters import add_adapters
from isoflop.alignment.memory import adapter_memory
from isoflop.alignment.recipe import AdapterSection
from isoflop.alignment.sft import Sft
from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.run import commit
from isoflop.training.optim import adamw
from isoflop.training.step import take_step

SHAPES = {
    "cuda": ModelConfig(24, 2048, 16, 16, 128, 5504, 102_400, 4096),
    "cpu": ModelConfig(2, 64, 2, 2, 32, 96, 512, 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--micro-rows", type=int, nargs="+", default=[2])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, shape = torch.device(args.device), SHAPES[args.device]
    dtype, precision = (torch.bfloat16, "bf16") if device.type == "cuda" else (torch.float32, "fp32")
    with torch.device(device):
        model = Transformer(shape, dtype)
    model.initialise(torch.Generator().manual_seed(0))
    section = AdapterSection(rank=args.rank)
    add_adapters(model, section, torch.Generator().manual_seed(1))
    optimizer = adamw(model, learning_rate=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    lengths = drawn_lengths(None, 20_000, shape.seq_len)
    mean = float(np.mean([a + b for a, b in lengths]))
    cases = []
    for micro_rows in args.micro_rows:
        micro_tokens = micro_rows * shape.seq_len
        batch = int(2 * micro_tokens * 0.98 / mean)
        repeated = [lengths[index % len(lengths)] for index in range(batch * args.steps)]
        samples = make_rows(repeated, shape.vocab_size)
        sft = Sft(samples, samples, seq_len=shape.seq_len, batch=batch, seed=0, micro_tokens=micro_tokens)
        forecast = adapter_memory(shape, section, precision=precision, micro_tokens=micro_tokens)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        with fastest_kernels(device):
            for step in range(args.steps):
                began = time.perf_counter()
                take_step(sft, model, optimizer, sft.batch(step), clip_norm=1.0)
                optimizer.zero_grad(set_to_none=True)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        cases.append({"micro_rows": micro_rows, "peak_bytes": peak, "forecast": vars(forecast), "seconds": seconds})
        share = f"{peak / forecast.total_bytes:.1%}" if peak else "no peak of a CPU"
        print(
            f"{micro_rows} rows of {shape.seq_len}, rank {args.rank}: {peak / 2**30:.2f} GiB at most, "
            f"{forecast.total_bytes / 2**30:.2f} forecast ({share}), {min(seconds):.2f} s a step",
            flush=True,
        )
    if args.json:
        head = {"commit": commit(), "torch": torch.__version__, "rank": args.rank}
        args.json.write_text(json.dumps({**head, "cases": cases}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
