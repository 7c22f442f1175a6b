"""How fast options are scored, against lm-eval with `transformers`: same weights, same requests, same scores.

    python benchmarks/evaluate.py --data DIR                                    10M on this CPU
    python benchmarks/evaluate.py --data DIR --device cuda --size 1.3b          random weights on a GPU

Requests are token ids, prepared once for both: the first HellaSwag items, and whole subjects of 5-shot MMLU, nothing of
which is cut. Theirs is `HFLM._loglikelihood_tokens`, ours `isoflop.evaluation.likelihood.score`, each from requests to
scores. They take turns; the best round of each counts, in processor seconds on a CPU, which other work on the machine
does not change much, and in seconds of wall clock on a GPU. Needs lm-eval 0.4.13 and transformers. Prints one JSON.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from isoflop.evaluation.collect import option_texts
from isoflop.evaluation.likelihood import fit, score
from isoflop.evaluation.prompts import Prompts
from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.task import Choice
from isoflop.interop.export_hf import export_run
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import write_recipe
from isoflop.run import commit, processor
from isoflop.tokens.bpe import Tokenizer, train_tokenizer
from isoflop.training import checkpoint
from isoflop.training.optim import adamw

SIZES = {
    "10m": ModelConfig(8, 256, 8, 8, 32, 704, 8192, 2048),  # 6.4M in blocks
    "10m-wide": ModelConfig(
        6, 160, 5, 5, 32, 448, 24576, 2048
    ),  # 1.9M in blocks, as small models of large vocabularies
    "1.3b": ModelConfig(24, 2048, 16, 16, 128, 5504, 102400, 2048, init_std=0.02),
}
Request = tuple[tuple[str, str], list[int], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder of official files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--items", type=int, default=1000, help="of HellaSwag")
    parser.add_argument("--subjects", type=int, default=10, help="of MMLU")
    parser.add_argument("--per-subject", type=int, default=0, help="questions of each; 0: all")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a batch of lm-eval's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", choices=("ours", "theirs"), help="for profiling")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    config = SIZES[given.size]
    hellaswag = task("hellaswag").read(given.data, 0).items
    tokenizer = train_tokenizer(
        (text for item in hellaswag if isinstance(item, Choice) for pair in option_texts(item) for text in pair),
        vocab_size=8190,
        padded_vocab_size=config.vocab_size,
    )
    sets = {"hellaswag": requests_of(hellaswag[: given.items], tokenizer), "mmlu": requests_of(mmlu(given), tokenizer)}
    with tempfile.TemporaryDirectory() as folder:
        model, peer = models(config, tokenizer, Path(folder), given)
    found = {name: compare(model, peer, requests, given) for name, requests in sets.items() if requests}
    name = torch.cuda.get_device_name() if given.device == "cuda" else f"{processor()}, {torch.get_num_threads()} used"
    options = {key: str(value) for key, value in vars(given).items() if key != "data"}
    print(json.dumps({"commit": commit(), "device": name, "torch": torch.__version__, "options": options, **found}))


def mmlu(given: argparse.Namespace) -> list[Any]:
    by_subject: dict[str, list[Any]] = {}
    for item in task("mmlu").read(given.data, 5).items:
        by_subject.setdefault(item.group, []).append(item)
    some = [items[: given.per_subject or None] for items in by_subject.values()]
    return [item for items in some[: given.subjects] for item in items]


def requests_of(items: Sequence[Any], tokenizer: Tokenizer) -> list[Request]:
    """As lm-eval prepares them."""
    texts = [pair for item in items for pair in option_texts(item)]
    ids = Prompts(tokenizer).pairs(texts)
    return [(text, context, rest) for text, (context, rest) in zip(texts, ids, strict=True)]


def models(config: ModelConfig, tokenizer: Tokenizer, folder: Path, given: argparse.Namespace) -> tuple[Any, Any]:
    """Random weights, and lm-eval's backend with the same ones."""
    model = Transformer(config, getattr(torch, given.dtype))
    model.initialise(torch.Generator().manual_seed(0))
    peer = None
    if given.only != "ours":
        optimizer = adamw(model, learning_rate=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        checkpoint.save(folder / "run" / "checkpoints", step=0, model=model, optimizer=optimizer, state={})
        write_recipe(folder / "run" / "recipe.toml", {"model": config})
        tokenizer.save(folder / "run" / "tokenizer")
        export_run(folder / "run", folder / "hf", parity=False)
        peer = importlib.import_module("lm_eval.models.huggingface").HFLM(
            pretrained=str(folder / "hf"), dtype=given.dtype, device=given.device, batch_size=given.batch
        )
    model = model.to(given.device).eval()
    model.cast_once()
    return model, peer


def compare(model: Any, peer: Any, requests: list[Request], given: argparse.Namespace) -> dict[str, Any]:
    longest = max(len(context) + len(rest) for _, context, rest in requests)
    assert longest <= model.config.seq_len + 1, f"{longest} tokens are cut"

    def ours() -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for one in score(model, [fit(context, rest, model.config.seq_len)[0] for _, context, rest in requests]):
            scores[one.number] = (one.nats, one.is_greedy)
        return scores

    def theirs() -> list[tuple[float, bool]]:
        return peer._loglikelihood_tokens(requests, disable_tqdm=True)

    runs = {name: run for name, run in (("ours", ours), ("theirs", theirs)) if given.only in (None, name)}
    cuda, scores, seconds = given.device == "cuda", {}, {name: [] for name in runs}
    if cuda:  # the first kernels are chosen
        for run in runs.values():
            run()
    for _ in range(given.rounds):
        for name, run in runs.items():
            seconds[name].append(clocked(run, scores, name, cuda))
    found: dict[str, Any] = {
        "n_requests": len(requests),
        "n_tokens": sum(len(context) + len(rest) - 1 for _, context, rest in requests),
        "longest": longest,
        "seconds": seconds,
    }
    if len(runs) == 2:
        pairs = list(zip(scores["ours"], scores["theirs"], strict=True))
        found["worst_difference"] = max(abs(a - b) / max(1, abs(b)) for (a, _), (b, _) in pairs)
        found["greedy_differs"] = sum(a != b for (_, a), (_, b) in pairs)
        clock = "wall_s" if cuda else "cpu_s"
        best = {name: min(one[clock] for one in each) for name, each in seconds.items()}
        found["times_as_fast"] = best["theirs"] / best["ours"]
    return found


def clocked(run: Callable[[], Any], scores: dict[str, Any], name: str, cuda: bool) -> dict[str, float]:
    began, began_cpu = time.perf_counter(), time.process_time()
    scores[name] = run()
    if cuda:
        torch.cuda.synchronize()
    return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}


if __name__ == "__main__":
    main()
