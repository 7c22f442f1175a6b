"""How fast a full training step is, against what the same device reaches on plain matrix products in the same run.

    python benchmarks/train_step.py                  three sizes on this CPU
    python benchmarks/train_step.py --device cuda    steps of 0.5M tokens: dense 1.3B and 125M classes, MoE of 2.1B
    python benchmarks/train_step.py --device cuda --cases 1.3B --formats bfloat16 fp8_block --bound --peer transformers
    python benchmarks/train_step.py --device cuda --cases MoE --formats fp8_rowwise --modules "blocks.*.mlp.experts"

Vocabulary 102,400 and sequences of 4,096 tokens on a GPU. `--bound` times the same products and attention calls with
nothing between them (step_bound.py); `--peer` another system on the same shape (step_peers.py).
A step is what `isoflop.training.loop.train` does: batch from disk, forward, backward, clipping, AdamW, metrics.
Utilisation = exact FLOPs per token ("causal" convention: 6 x matmul weights + head + half of s x s attention, no
recomputation) x tokens per second / peak; "of ceiling" divides by the best bf16/fp32 product measured here instead.
Before timing, loss and gradients of the step are compared with float64 on the same weights.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from isoflop.model.accounting import flops_per_token
from isoflop.model.attention import fastest_kernels
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, swiglu_width
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.section import NumericsSection, Rule
from isoflop.run import commit, processor
from isoflop.training.checkpoint import Saving
from isoflop.training.loop import StepPlan, train
from isoflop.training.monitor import measured_matmul_flops_per_s, peak_flops_per_s
from isoflop.training.optim import adamw
from isoflop.training.pretrain.workload import compiles
from isoflop.training.step_hooks import StepHook
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


MOE = ModelConfig(
    n_layers=12,
    d_model=1280,
    n_heads=10,
    n_kv_heads=10,
    d_head=192,
    d_ff=5120,
    vocab_size=102_400,
    seq_len=4096,
    latent=LatentConfig(512, 128, 64, 128),
    experts=ExpertConfig(64, 6, 640, n_shared=2),
)
CASES = {
    "cpu": [  # name, shape, sequences of a micro-batch, sequences of a step
        ("0.1M", config(3, 48, 2, 1024, 64, 8), 8, 8),
        ("1M", config(4, 128, 4, 2048, 256, 32), 16, 16),
        ("10M", config(7, 320, 5, 4096, 256, 32), 8, 8),
    ],
    "cuda": [
        ("1.3B", dataclasses.replace(config(24, 2048, 16, 102_400, 4096), d_ff=5504), 4, 128),
        ("125M", config(12, 768, 12, 102_400, 4096), 8, 128),
        ("MoE", MOE, 4, 128),
    ],
}


class Clock(StepHook):
    """When each step begins, as the device sees it; the first step holds compiling and capturing too."""

    def __init__(self, device: torch.device):
        self._cuda, self._marks = device.type == "cuda", []

    def begin(self, step: int) -> None:
        if self._cuda:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Since the first mark; waits for the device."""
        if not self._cuda:
            return [mark - self._marks[0] for mark in self._marks]
        torch.cuda.synchronize()
        return [self._marks[0].elapsed_time(mark) / 1e3 for mark in self._marks]


class Windows(Workload):
    """The benchmark's workload: random tokens in a memory-mapped file, gathered like real ones."""

    def __init__(self, path: Path, shape: ModelConfig, micro_batch: int, sequences: int, clock: "Clock"):
        self.clock, self.hooks = clock, [clock]
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


def measure(case: tuple, format: str, device: torch.device, args) -> dict:
    name, shape, micro_batch, sequences = case
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        model = Transformer(shape, dtype)
        model.initialise(torch.Generator(device).manual_seed(0))
    if format not in ("bfloat16", "float32"):
        assign(model, NumericsSection((Rule(args.modules, format),)))  # type: ignore[arg-type]
    if args.compile == "on" or (args.compile == "auto" and compiles(model)):
        for block in model.blocks:
            block.compile(dynamic=False)
    optimizer = adamw(model, learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        np.random.default_rng(0).integers(0, shape.vocab_size, 20_000_000, dtype=np.uint32).tofile(path)
        workload = Windows(path, shape, micro_batch, sequences, Clock(device))

        steps, n_steps = args.steps, args.warmup + args.steps * args.repeats
        began = time.perf_counter()
        with fastest_kernels(device):
            result = train(
                workload,
                model,
                optimizer,
                StepPlan(n_steps, rate=lambda step: 1e-4),
                run_dir=Path(folder),
                saving=Saving(every_s=0, at_end=False),
                state={},
            )
        workload.clock.begin(n_steps)
        seconds_at = workload.clock.seconds()
        data_wait_share = result.data_wait_s / (time.perf_counter() - began)
        compile_s = seconds_at[args.warmup]
        marks = [seconds_at[args.warmup + steps * repeat] for repeat in range(args.repeats + 1)]
        seconds, syncs = [(last - first) / steps for first, last in itertools.pairwise(marks)], 0
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
        "format": format,
        "compile": args.compile,
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
        "data_wait_share": data_wait_share,
        "synchronisations_per_step": syncs,
        "first_steps_s": compile_s,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }
    return row


def _forget(device: torch.device) -> None:
    """Give the memory of the case before back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones, at least 1")
    parser.add_argument("--steps", type=int, help="timed steps of a repeat (20 on a CPU, 2 on a GPU)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", help="names of shapes, default all")
    parser.add_argument("--formats", nargs="+", help="of the blocks' products, default that of the activations")
    parser.add_argument("--modules", default="blocks.*", help="layers that take a format, default %(default)s")
    parser.add_argument("--sequences", type=int, help="of a step, default as the case has it")
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"), help="torch.compile of blocks")
    parser.add_argument("--bound", action="store_true", help="time the bare products and attention calls too")
    parser.add_argument("--peer", choices=("transformers",), help="time another system too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    args.steps = args.steps or (20 if args.device == "cpu" else 2)
    formats = args.formats or ["bfloat16" if args.device == "cuda" else "float32"]
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    errors = check_against_float64(device, dtype, compiled=args.compile == "on")
    where = torch.cuda.get_device_name() if args.device == "cuda" else processor()
    print(f"{where}, torch {torch.__version__}, commit {commit()}; against float64: {errors}", flush=True)
    rows = []
    cases = [case for case in CASES[args.device] if not args.cases or case[0] in args.cases]
    if args.sequences:
        cases = [(*case[:3], args.sequences) for case in cases]
    for case, format in [(case, format) for case in cases for format in [*formats, *others(args)]]:
        _forget(device)
        if format in ("bound", "transformers"):
            row = other(case, format)
            rows.append(row)
            print(f"{case[0]} {format:16} {row['tokens_per_s']:12,.0f} tokens/s", flush=True)
            continue
        row = measure(case, format, device, args)
        rows.append(row)
        print(
            f"{row['name']} {format:16} {row['tokens_per_s']:12,.0f} tokens/s  {row['step_ms']:9.1f} ms  "
            f"{row['tflops_per_s_causal']:8.3f} TFLOP/s  {row['utilisation_causal']:6.1%} of peak  "
            f"{row['of_ceiling']:6.1%} of the measured {row['ceiling_tflops_per_s']:.3g} TFLOP/s  "
            f"data wait {row['data_wait_share']:.2%}, {row['synchronisations_per_step']} syncs",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps({"device": where, "errors": errors, "rows": rows}, indent=1))


def others(args) -> list[str]:
    """What is timed beside our own formats."""
    return (["bound"] if args.bound else []) + ([args.peer] if args.peer else [])


def other(case: tuple, which: str) -> dict:
    """One row of step_bound.py or step_peers.py, which only a GPU has."""
    name, shape, micro_batch, sequences = case
    if which == "bound":
        from step_bound import bound_tokens_per_s

        return {"name": name, "format": which, "tokens_per_s": bound_tokens_per_s(shape, micro_batch, sequences)}
    from step_peers import transformers_tokens_per_s

    return {"name": name, "format": which, "tokens_per_s": transformers_tokens_per_s(shape, micro_batch, sequences)}


if __name__ == "__main__":
    main()
