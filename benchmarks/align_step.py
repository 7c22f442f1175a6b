"""How fast SFT and DPO steps are, against pre-training of the same shape in the same run.

    python benchmarks/align_step.py --device cuda [--lengths FILE]

Samples have the lengths of alpaca_en (FILE: a JSON list of [prompt, answer] token counts; without it a log-normal draw
with its median and spread), packed into rows of the shape's context; padding is not counted as tokens. DPO counts the
tokens of both sides once, its reference is cached, or live with --live. The head is the full vocabulary's in all.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from isoflop.alignment.dpo import Dpo
from isoflop.alignment.packing import n_positions
from isoflop.alignment.pairs import Pairs
from isoflop.alignment.recipe import DpoSection
from isoflop.alignment.samples import PairRows
from isoflop.alignment.sft import Sft
from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig, swiglu_width
from isoflop.model.transformer import Transformer
from isoflop.run import commit, processor
from isoflop.tokens.chat import Row
from isoflop.training.optim import adamw
from isoflop.training.step import take_step
from isoflop.training.workload import Workload

SHAPES = {
    "cuda": ModelConfig(12, 768, 12, 12, 64, swiglu_width(768, 256), 102_400, 4096),
    "cpu": ModelConfig(4, 128, 2, 2, 64, swiglu_width(128, 32), 2048, 256),
}


class Windows(Workload):
    """Pre-training: full rows of random tokens."""

    def __init__(self, shape: ModelConfig, rows: int, micro_batch: int):
        self.tokens_per_step = rows * shape.seq_len
        self._shape, self._rows, self._micro_batch = shape, rows, micro_batch

    def batch(self, step: int, rank: int = 0, world: int = 1):
        drawn = np.random.default_rng(step).integers(0, self._shape.vocab_size, (self._rows, self._shape.seq_len + 1))
        return [(part,) for part in torch.from_numpy(drawn).split(self._micro_batch)]

    def validate(self, model) -> dict[str, object]:
        return {}

    def loss_sum(self, model, micro_batch):
        assert isinstance(model, Transformer)
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])


def drawn_lengths(path: Path | None, n: int, limit: int) -> list[tuple[int, int]]:
    if path is not None:
        held = json.loads(path.read_text(encoding="utf-8"))
        return [(a, b) for a, b in held if a + b < limit][:n]
    generator = np.random.default_rng(0)
    prompts, answers = np.exp(generator.normal(3.0, 0.5, n)), np.exp(generator.normal(3.6, 1.0, n))
    return [(int(a) + 2, int(b) + 2) for a, b in zip(prompts, answers) if a + b + 4 < limit]


def make_rows(lengths: list[tuple[int, int]], vocab_size: int, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    return [Row(generator.integers(0, vocab_size, a + b).astype(np.int32), np.arange(a + b) >= a) for a, b in lengths]


def tokens_per_s(workload: Workload, shape: ModelConfig, args: argparse.Namespace, n_tokens: list[int]) -> float:
    """Median over steps; tokens of a step without padding over its time. Batches are made beforehand."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Transformer(shape, dtype).to(device)
    model.initialise(torch.Generator().manual_seed(0))
    if args.compile:
        for block in model.all_blocks():
            block.compile(dynamic=False)
    optimizer = adamw(model, learning_rate=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batches = [workload.batch(step) for step in range(args.warmup + args.steps)]
    speeds = []
    with fastest_kernels(device):
        for step, batch in enumerate(batches):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            take_step(workload, model, optimizer, batch, clip_norm=1.0)
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step >= args.warmup:
                speeds.append(n_tokens[step] / (time.perf_counter() - began))
    return float(np.median(speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="of 4,096 tokens per step; default 32 (cpu: 8)")
    parser.add_argument("--micro-rows", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shape = SHAPES[args.device.partition(":")[0]]
    rows = args.rows or (32 if args.device != "cpu" else 8)
    n_steps = args.warmup + args.steps
    lengths = drawn_lengths(args.lengths, 20_000, shape.seq_len)
    mean = float(np.mean([a + b for a, b in lengths]))
    batch = int(rows * shape.seq_len * 0.98 / mean)
    repeated = [lengths[index % len(lengths)] for index in range(batch * n_steps)]
    samples = make_rows(repeated, shape.vocab_size)
    options = {"seq_len": shape.seq_len, "seed": 0, "micro_tokens": args.micro_rows * shape.seq_len}
    windows = Windows(shape, rows, args.micro_rows)
    found = {"pretrain": tokens_per_s(windows, shape, args, [windows.tokens_per_step] * n_steps)}
    sft = Sft(samples, samples, batch=batch, **options)
    counts = [sum(n_positions(row) for row in sft.samples(step)) for step in range(n_steps)]
    found["sft"] = tokens_per_s(sft, shape, args, counts)
    fills = [counts[s] / sum(part[0].numel() for part in sft.batch(s)) for s in range(args.warmup, n_steps)]
    pairs = [PairRows(a, b) for a, b in zip(samples[::2], samples[1::2])]
    made = Pairs(pairs, batch=batch // 2, **options)
    device = torch.device(args.device)
    cached = {
        f"{which}.{side}": torch.zeros(len(pairs)) for which in ("train", "valid") for side in ("chosen", "rejected")
    }
    dpo = Dpo(made, made, DpoSection(), device, cached=cached)
    pair_counts = [
        sum(n_positions(row) for group in made.groups(s) for i in group[3].tolist() for row in pairs[i])
        for s in range(n_steps)
    ]
    found["dpo"] = tokens_per_s(dpo, shape, args, pair_counts)
    report = {
        **{f"{name}_tokens_per_s": value for name, value in found.items()},
        "sft_share_of_pretrain": found["sft"] / found["pretrain"],
        "dpo_share_of_pretrain": found["dpo"] / found["pretrain"],
        "rows_filled": float(np.mean(fills)),
        "mean_sample_tokens": mean,
        "samples_per_step": batch,
        "device": torch.cuda.get_device_name() if args.device != "cpu" else processor(),
        "compile": args.compile,
        "torch": torch.__version__,
        "commit": commit(),
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
