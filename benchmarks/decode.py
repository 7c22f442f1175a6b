"""How fast the engine decodes, against what a step must read and against `transformers` on the same weights.

    python benchmarks/decode.py                              10M and 100M on this CPU, batch 1 and 8
    python benchmarks/decode.py --device cuda --size 1.3B    one shape on a GPU, batch 1, 8, 32, 128 (at most 9 minutes)
    python benchmarks/decode.py --device cuda --size 7B moe-2.1B --alone --batch 1

The floor of a step is `accounting.decode_bytes` over the read bandwidth measured in the same run (a sum over 1 GiB, the
best of several). Ours and theirs take turns and the best of each counts, so that a busy machine hurts both. Rates are
tokens a second of whole `complete` or `generate` calls, prompts of 16 tokens included; on a GPU, where a prompt costs
as much as many steps, those of the steps alone: the time of a call less that of one for a single token. All are greedy
and ignore the end of text. Before timing, both give the same text. With `--peers` transformers also generates with its
static cache, compiled (which takes half a minute), and by its continuous batching, the heart of `generate_batch`.
"""

import argparse
import contextlib
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from isoflop.model.accounting import count_parameters, decode_bytes
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, swiglu_width
from isoflop.model.pages import PAGE
from isoflop.model.transformer import Transformer
from isoflop.run import commit, now, processor
from isoflop.serving import Engine, EngineOptions, Sampling
from isoflop.serving.memory import needed_bytes

N_PROMPT = 16
Clock = Callable[[], float]


def dense(n_layers: int, d_model: int, n_heads: int, vocab_size: int, seq_len: int, multiple: int = 256) -> ModelConfig:
    return ModelConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_ff=swiglu_width(d_model, multiple),
        vocab_size=vocab_size,
        seq_len=seq_len,
        init_std=0.05,
    )


CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = {
    "10M": dense(7, 320, 5, 4096, 1024, 32),
    "100M": dense(12, 768, 12, 16_384, 1024),
    "1.3B": replace(dense(24, 2048, 16, 102_400, 4096), d_ff=5504),
    "7B": dense(30, 4096, 32, 102_400, 4096),
    "moe-2.1B": replace(  # the shape of benchmarks/train_step.py, with a prediction module
        dense(12, 1280, 10, 102_400, 4096),
        d_head=192,
        d_ff=5120,
        latent=LatentConfig(512, 128, 64, 128),
        experts=ExpertConfig(64, 6, 640, n_shared=2),
        mtp_depth=1,
    ),
}


def read_bytes_per_s(device: torch.device, clock: Clock) -> float:
    """Best of several sums over 1 GiB."""
    data = torch.ones(2**28, device=device)
    return data.nbytes / min(seconds(data.sum, device, clock) for _ in range(6))


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    torch.manual_seed(0)
    with torch.device(device):
        model = Transformer(config, dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, config.init_std)
    return model.eval()


def llama(model: Transformer, dtype: torch.dtype) -> Any:
    """The same weights in transformers' Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    sizes: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.d_head,
        "max_position_embeddings": c.seq_len,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    with torch.device(model.embedding.weight.device):
        theirs: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    width, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    state = {"model.embed_tokens.weight": model.embedding.weight, "lm_head.weight": model.head.weight}
    state["model.norm.weight"] = model.norm.weight
    ours = dict(model.named_parameters())
    for layer in range(c.n_layers):
        q, k, v = ours[f"blocks.{layer}.attention.qkv.weight"].split([width, kv, kv])
        gate, up = ours[f"blocks.{layer}.mlp.gate_up.weight"].chunk(2)
        named = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        named |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": ours[f"blocks.{layer}.mlp.down.weight"]}
        named["self_attn.o_proj"] = ours[f"blocks.{layer}.attention.out.weight"]
        named["input_layernorm"] = ours[f"blocks.{layer}.attention_norm.weight"]
        named["post_attention_layernorm"] = ours[f"blocks.{layer}.mlp_norm.weight"]
        state |= {f"model.layers.{layer}.{name}.weight": weight for name, weight in named.items()}
    theirs.load_state_dict({name: weight.detach().clone() for name, weight in state.items()})
    return theirs.to(dtype).eval()


def their_generate(theirs: Any, prompts_BT: torch.Tensor, **options: Any) -> Callable[[int], torch.Tensor]:
    from transformers import GenerationConfig

    theirs.generation_config = GenerationConfig()  # no end of text
    mask_BT = torch.ones_like(prompts_BT)

    @(torch.no_grad() if options else torch.inference_mode())  # what is compiled takes tensors of ordinary kind
    def run(n_new: int) -> torch.Tensor:
        lengths = {"max_new_tokens": n_new, "min_new_tokens": n_new}
        settings = GenerationConfig(do_sample=False, pad_token_id=0, **lengths, **options)
        return theirs.generate(prompts_BT, attention_mask=mask_BT, generation_config=settings)[:, prompts_BT.shape[1] :]

    return run


def seconds(run: Callable[[], Any], device: torch.device, clock: Clock) -> float:
    _wait(device)
    began = clock()
    run()
    _wait(device)
    return clock() - began


@contextlib.contextmanager
def their_batch(theirs: Any, prompts: list[list[int]]) -> Iterator[Callable[[int], Any]]:
    """Their continuous batching, which takes prompts of any length as our engine does; one manager for all runs."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=-1, pad_token_id=0)
    room = ContinuousBatchingConfig(num_blocks=2 * len(prompts) + 16, max_batch_tokens=max(512, 32 * len(prompts)))
    manager = theirs.init_continuous_batching(generation_config=settings, continuous_batching_config=room)
    manager.warmup()
    manager.start()

    def run(n_new: int) -> list[Any]:
        manager.add_requests(inputs=prompts, max_new_tokens=n_new)
        found, deadline = [], time.monotonic() + 20
        while len(found) < len(prompts):
            if not manager.is_running() or time.monotonic() > deadline:
                raise RuntimeError(f"{len(found)} of {len(prompts)} requests came back")
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found.append(result)
        return found

    try:
        yield run
    finally:
        manager.stop(block=True, timeout=5)


def kernels_of(engine: Engine, prompts: list[list[int]], device: torch.device) -> list[tuple[str, int, float]] | None:
    """Name, launches and microseconds of every kernel of one decoding step; only a GPU has kernels to count."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    for prompt in prompts:
        engine.add(prompt, Sampling(max_tokens=24, temperature=0))
    for _ in range(4):
        engine.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        engine.step()
        torch.cuda.synchronize()
    while not engine.is_finished():
        engine.step()
    found = [
        (event.key, event.count, event.device_time_total)
        for event in profiler.key_averages()
        if event.device_type.name == "CUDA"
    ]
    return sorted(found, key=lambda row: -row[2])


def memory_of(engine: Engine, prompts: list[list[int]], device: torch.device) -> dict[str, int] | None:
    """Peak over the longest prompts that fit and a few steps, and what was forecast; of a GPU, which counts it."""
    if device.type != "cuda":
        return None
    needed = needed_bytes(
        engine.model,
        n_pages=engine.pool.n_pages,
        max_rows=engine.options.max_rows,
        budget=engine.scheduler.budget,
        n_mtp=engine.runner.n_mtp,
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    room = (engine.pool.n_pages - 1) // len(prompts) * PAGE - 8
    n = min(engine.model.config.seq_len - 8, room, max(N_PROMPT, engine.scheduler.budget // len(prompts)))
    engine.complete([(prompt * n)[:n] for prompt in prompts], Sampling(max_tokens=4, temperature=0))
    found = {"forecast_bytes": needed, "peak_bytes": torch.cuda.max_memory_allocated(device)}
    ratio = found["peak_bytes"] / needed
    print(f"memory: {found['peak_bytes'] / 2**30:.2f} GiB at most, {ratio:.1%} of the forecast", flush=True)
    return found


def time_all(
    runs: dict[str, Callable[[int], Any]], n_new: int, n_rounds: int, device: torch.device, clock: Clock
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds for one token and for all of them, of each kind in turn, once warm. A peer that fails is left out."""
    for kind, run in [*runs.items()]:
        try:
            for n in (n_new, 1):  # both shapes are compiled before anything is timed
                began = time.perf_counter()
                run(n)
                if kind != "ours":
                    print(f"    {kind}: first call for {n} tokens {time.perf_counter() - began:.1f} s", flush=True)
        except Exception as error:  # whatever a peer raises costs none of our own figures
            if kind == "ours":
                raise
            _print_failure(kind, error)
            del runs[kind]
    found: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in runs}
    for _ in range(n_rounds):
        for kind, run in runs.items():
            for seen, n in zip(found[kind], (1, n_new), strict=True):
                seen.append(seconds(functools.partial(run, n), device, clock))
    return found


def measure(name: str, batch: int, bandwidth: float, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    gc.collect()  # the model before this one
    config, dtype = SIZES[name], getattr(torch, args.dtype)
    model = build(config, dtype, device)
    generator = torch.Generator().manual_seed(1)
    prompts_BT = torch.randint(config.vocab_size, (batch, N_PROMPT), generator=generator)
    prompts, n_new = prompts_BT.tolist(), args.new_tokens
    options = EngineOptions(max_rows=batch, prefix_reuse=False, draft=args.draft, cache_bytes=args.cache_gib << 30)
    engine = Engine(model, None, options)
    memory = memory_of(engine, prompts, device)
    theirs = llama(model, dtype) if config.latent is None and config.experts is None and not args.alone else None
    greedy = [Sampling(max_tokens=n, temperature=0) for n in range(n_new + 1)]
    runs: dict[str, Callable[[int], Any]] = {"ours": lambda n: engine.complete(prompts, greedy[n])}
    if theirs is not None:
        runs["transformers"] = their_generate(theirs, prompts_BT.to(device))
        if "static" in args.peers:
            runs["static"] = their_generate(theirs, prompts_BT.to(device), cache_implementation="static")
    same = None
    if theirs is not None:
        texts = torch.tensor([one.ids for one in runs["ours"](n_new)])
        same = (texts == runs["transformers"](n_new).cpu()).float().mean().item()
    clock, on_gpu = CLOCKS[args.clock], device.type == "cuda"
    timed = time_all(runs, n_new, args.rounds, device, clock)
    if theirs is not None and "generate_batch" in args.peers:  # last, as it changes their model's attention
        try:
            with their_batch(theirs, prompts) as run:
                timed |= time_all({"generate_batch": run}, n_new, args.rounds, device, clock)
        except Exception as error:  # its manager starts threads and graphs of its own
            print(
                f"    generate_batch failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True
            )
    rates = {
        kind: batch * (n_new - on_gpu) / (min(times) - on_gpu * min(firsts)) for kind, (firsts, times) in timed.items()
    }
    kernels = kernels_of(engine, prompts, device)
    context = N_PROMPT + n_new // 2
    floor_s = decode_bytes(config, batch, context, "bf16" if dtype == torch.bfloat16 else "fp32") / bandwidth
    found = {
        "size": name,
        "n_params": count_parameters(config).n_params_total,
        "batch": batch,
        "dtype": args.dtype,
        "tokens_per_s": rates,
        "first_token_s": {kind: min(firsts) for kind, (firsts, _) in timed.items()},
        "spread": {kind: statistics.median(times) / min(times) - 1 for kind, (_, times) in timed.items()},
        "share_of_floor": rates["ours"] * floor_s / batch,
        "floor_tokens_per_s": batch / floor_s,
        "times_transformers": rates["ours"] / rates["transformers"] if "transformers" in rates else None,
        "equal_tokens": same,
        "their_attention": None if theirs is None else theirs.config._attn_implementation,
        "acceptance": engine.stats.acceptance or None,
        "kernels_a_layer": sum(row[1] for row in kernels) / config.n_layers if kernels else None,
        "kernels": kernels,
        "memory": memory,
    }
    against = f", {found['times_transformers']:.2f} x transformers" if found["times_transformers"] else ""
    print(
        f"{name:>8s} batch {batch:3d}: {rates['ours']:9.1f} tokens/s, {found['share_of_floor']:.0%} of the floor"
        + against
        + (f", equal tokens {same:.3f}" if same is not None else "")
        + "".join(f", {kind} {rate:.1f}" for kind, rate in rates.items() if kind != "ours")
        + (f" ({found['their_attention']})" if theirs is not None else ""),
        flush=True,
    )
    if kernels:
        total, step_us = sum(row[2] for row in kernels), 1e6 * batch / rates["ours"]
        print(f"    {found['kernels_a_layer']:.1f} kernels a layer; {total:.0f} us of kernels, {step_us:.0f} a step")
        for key, count, took in kernels[:14]:
            print(f"    {took:8.1f} us {count:5d} x {key[:90]}")
    return found


def _print_failure(kind: str, error: Exception) -> None:
    print(f"    {kind} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, nargs="+", help="default: 10M and 100M, on a GPU 1.3B")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 1 and 8, on a GPU 1, 8, 32 and 128")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32, on a GPU bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1, on a machine in use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--draft", choices=["none", "mtp", "lookup"], default="none")
    parser.add_argument("--cache-gib", type=int, default=0, help="memory for pages; on a GPU 16")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--peers", choices=["static", "generate_batch"], nargs="*", default=[])
    parser.add_argument("--json", help="write what was measured")
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    args.cache_gib = args.cache_gib or (16 if on_gpu else 0)
    args.dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
    torch.set_num_threads(args.threads)
    bandwidth = read_bytes_per_s(device, CLOCKS[args.clock])
    where = torch.cuda.get_device_name(device) if on_gpu else f"{processor()}, {args.threads} threads"
    where += ", CPU time" if args.clock == "cpu" else ""
    print(f"{where}: reads {bandwidth / 1e9:.1f} GB/s, torch {torch.__version__}, {args.dtype}", flush=True)
    found = [
        measure(name, batch, bandwidth, device, args)
        for name in args.size or (["1.3B"] if on_gpu else ["10M", "100M"])
        for batch in args.batch or ([1, 8, 32, 128] if on_gpu else [1, 8])
    ]
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            head = {"device": where, "read_bytes_per_s": bandwidth, "commit": commit(), "measured_at": now()}
            json.dump({**head, "cases": found}, file, indent=1)


if __name__ == "__main__":
    main()
