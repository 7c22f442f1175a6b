"""How fast a full training step is, against what the same device reaches on plain matrix products in the same run.

    python benchmarks/train_step.py                  three sizes on this CPU
    python benchmarks/train_step.py --device cuda    the 125M and 1.3B classes (vocabulary 102,400, sequence 4,096)

A step is what `isoflop.training.loop.train` does: batch from disk, forward, backward, clipping, AdamW, metrics.
Utilisation = exact FLOPs per token ("causal" convention: 6 x matmul weights + head + half of s x s attention, no
recomputation) x tokens per second / peak; "of ceiling" divides by the best bf16/fp32 product measured here instead.
Before timing, loss and gradients of the step are compared with float64 on the same weights.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from isoflop.model.accounting import flops_per_token
from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ModelConfig, swiglu_width
from isoflop.model.transformer import Transformer
from isoflop.run import commit, processor
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan, train
from isoflop.training.monitor import measured_matmul_flops_per_s, peak_flops_per_s
from isoflop.training.optim import adamw
from isoflop.training.workload import Workload


def config(n_layers: int, d_model: int, n_heads: int, vocab_size: int, seq_len: int, multiple: int = 256):
    return ModelConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_ff=swiglu_width(d_model, multiple),
        vocab_size=vocab_size,
        seq_len=seq_len,
    )


CASES = {
    "cpu": [  # name, shape, sequences of a micro-batch, sequences of a step
        ("0.1M", config(3, 48, 2, 1024, 64, 8), 8, 8),
        ("1M", config(4, 128, 4, 2048, 256, 32), 16, 16),
        ("10M", config(7, 320, 5, 4096, 256, 32), 8, 8),
    ],
    "cuda": [
        ("125M class", config(12, 768, 12, 102_400, 4096), 8, 8),
        ("125M class, 0.5M tokens a step", config(12, 768, 12, 102_400, 4096), 8, 128),
        ("1.3B class", config(24, 2048, 16, 102_400, 4096), 4, 4),
        ("1.3B class, 0.5M tokens a step", config(24, 2048, 16, 102_400, 4096), 4, 128),
    ],
}


class Windows(Workload):
    """The benchmark's workload: random tokens in a memory-mapped file, gathered like real ones."""

    def __init__(self, path: Path, shape: ModelConfig, micro_batch: int, sequences: int):
        self.tokens_per_step = sequences * shape.seq_len
        self._tokens = np.memmap(path, dtype=np.uint32, mode="r")
        self._shape, self._micro_batch, self._sequences = shape, micro_batch, sequences

    def batch(self, step: int, rank: int = 0, world: int = 1):
        span = np.arange(self._shape.seq_len + 1)
        starts = np.random.default_rng(step).integers(0, len(self._tokens) - len(span), self._sequences)
        rows = self._tokens[starts[:, None] + span].astype(np.int64)
        return [(part,) for part in torch.from_numpy(rows).split(self._micro_batch)]

    def loss_sum(self, model, micro_batch):
        assert isinstance(model, Transformer)
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])

    def validate(self, model) -> dict[str, object]:
        return {"loss_nats": float("nan")}


def check_against_float64(device: torch.device, dtype: torch.dtype, compiled: bool) -> dict[str, float]:
    """Relative error of loss and of the gradients of a small model of the same code, ||a - b|| / ||b||."""
    shape = config(2, 256, 4, 20_480, 256)
    model = Transformer(shape, dtype).to(device)
    model.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():  # 0.006 gives near-uniform logits; widen so that errors would show
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    exact = Transformer(shape, torch.float64).double()
    exact.load_state_dict(model.state_dict())
    if compiled:
        for block in model.blocks:
            block.compile(dynamic=False)
    tokens = torch.randint(shape.vocab_size, (4, 257), generator=torch.Generator().manual_seed(2))
    with fastest_kernels(device):
        loss = model.loss_sum(tokens[:, :-1].to(device), tokens[:, 1:].to(device), chunk_tokens=512)
        loss.backward()
    logits = exact.head.weight @ exact(tokens[:, :-1]).flatten(0, 1).T
    reference = torch.nn.functional.cross_entropy(logits.T, tokens[:, 1:].flatten(), reduction="sum")
    reference.backward()
    found, of = ([p.grad for p in m.parameters() if p.grad is not None] for m in (model, exact))
    worst = max(float((a.cpu().double() - b).norm() / b.norm()) for a, b in zip(found, of, strict=True))
    return {"loss": abs(float(loss.detach().cpu()) / float(reference.detach()) - 1), "worst_gradient": worst}


def measure(name: str, shape: ModelConfig, micro_batch: int, sequences: int, device: torch.device, args) -> dict:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    model = Transformer(shape, dtype).to(device)
    if device.type == "cuda":
        torch.nn.init.normal_(model.embedding.weight, std=0.006)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.006)
        for block in model.blocks:
            block.compile(dynamic=False)
    else:
        model.initialise(torch.Generator().manual_seed(0))
    optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        np.random.default_rng(0).integers(0, shape.vocab_size, 20_000_000, dtype=np.uint32).tofile(path)
        workload = Windows(path, shape, micro_batch, sequences)

        def run(first: int, last: int, folder_name: str):
            _wait(device)
            began = time.perf_counter()
            with fastest_kernels(device):
                result = train(
                    workload,
                    model,
                    optimizer,
                    StepPlan(last, rate=lambda step: 1e-4),
                    run_dir=Path(folder) / folder_name,
                    saving=Saving(every_s=0, at_end=False),
                    state={},
                    start_step=first,
                )
            _wait(device)
            return time.perf_counter() - began, result

        compile_s, _ = run(0, args.warmup, "warmup")
        steps = max(3, round(args.tokens / workload.tokens_per_step)) if device.type == "cuda" else args.steps
        seconds, syncs, waits = [], 0, []
        for repeat in range(args.repeats):
            first = args.warmup + repeat * steps
            elapsed, result = run(first, first + steps, f"run{repeat}")
            seconds.append(elapsed / steps)
            waits.append(result.data_wait_s / elapsed)
        if device.type == "cuda":  # not timed: every hidden wait for the device would show here
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model.train()
                for micro in workload.batch(0)[:1]:
                    moved = tuple(t.pin_memory().to(device, non_blocking=True) for t in micro)
                    with fastest_kernels(device):
                        (workload.loss_sum(model, moved) / workload.tokens_per_step).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                syncs = sum("synchroniz" in str(w.message) for w in caught)
            torch.cuda.set_sync_debug_mode("default")
    step_s = float(np.median(seconds))
    tokens_per_s = workload.tokens_per_step / step_s
    causal = flops_per_token(shape, "causal") * tokens_per_s
    peak, peak_source = peak_flops_per_s(device, dtype)
    size = 8192 if device.type == "cuda" else 1024
    ceiling = measured_matmul_flops_per_s(device, dtype, size, seconds=1.0)
    row = {
        "name": name,
        "tokens_per_step": workload.tokens_per_step,
        "micro_batch": micro_batch,
        "step_ms": step_s * 1e3,
        "step_ms_min_max": [min(seconds) * 1e3, max(seconds) * 1e3],
        "tokens_per_s": tokens_per_s,
        "tflops_per_s_causal": causal / 1e12,
        "utilisation_causal": causal / peak,
        "utilisation_full": flops_per_token(shape, "exact") * tokens_per_s / peak,
        "peak": peak_source,
        "ceiling_tflops_per_s": ceiling / 1e12,
        "of_ceiling": causal / ceiling,
        "data_wait_share": max(waits),
        "synchronisations_per_step": syncs,
        "first_steps_s": compile_s,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return row


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a repeat on a CPU")
    parser.add_argument("--tokens", type=float, default=6e5, help="timed tokens of a repeat on a GPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    errors = check_against_float64(device, dtype, compiled=args.device == "cuda")
    where = torch.cuda.get_device_name() if args.device == "cuda" else processor()
    print(f"{where}, torch {torch.__version__}, commit {commit()}; against float64: {errors}", flush=True)
    rows = []
    for case in CASES[args.device]:
        row = measure(*case, device, args)
        rows.append(row)
        print(
            f"{row['name']:32} {row['tokens_per_s']:12,.0f} tokens/s  {row['step_ms']:9.1f} ms  "
            f"{row['tflops_per_s_causal']:8.3f} TFLOP/s  {row['utilisation_causal']:6.1%} of peak  "
            f"{row['of_ceiling']:6.1%} of the measured {row['ceiling_tflops_per_s']:.3g} TFLOP/s  "
            f"data wait {row['data_wait_share']:.2%}, {row['synchronisations_per_step']} syncs",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps({"device": where, "errors": errors, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
