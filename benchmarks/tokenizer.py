"""Time and peak memory of training a tokenizer and of the whole `isoflop tokens`, beside the library's trainer.

    isoflop corpus recipes/corpus/shared.toml --out runs/corpus-shared
    python benchmarks/tokenizer.py --corpus runs/corpus-shared                     all training text, 32,000 tokens
    python benchmarks/tokenizer.py --corpus runs/corpus-shared --mb 10 --library   a tenth, with the library beside it

Each case is a process of its own; its memory is the sum of the proportional set sizes (PSS) of it and its children,
looked up twice a second. `--library` also trains with the library's trainer, which wants some 27 bytes of memory
per byte of text here, and says whether it found the same merges.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compression import sample

from isoflop.run import commit, processor

CASES = ("isoflop", "library", "tokens")


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants; 0 for one that has ended."""
    total = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(pss_bytes(int(child)) for child in (task / "children").read_text().split())
    except (OSError, StopIteration):
        pass
    return total


def run_case(case: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--corpus", str(args.corpus), "--mb", str(args.mb), "--case", case]
    command += ["--vocab", str(args.vocab), "--rules", args.rules, "--workers", str(args.workers)]
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, pss_bytes(process.pid))
            time.sleep(0.5)
        assert process.stdout is not None
        found = json.loads(process.stdout.read().splitlines()[-1])
    return {"case": case, "wall_s": time.perf_counter() - begin, "peak_pss_gb": peak / 1e9, **found}


def case(args: argparse.Namespace) -> dict[str, Any]:
    begin = time.process_time()
    if args.case == "tokens":
        from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens

        options = TokenizerOptions(
            vocab_size=args.vocab, n_reserved=0, padded_vocab_size=0, sample_mb=args.mb, rules=args.rules
        )
        with tempfile.TemporaryDirectory() as work:
            found = build_tokens(args.corpus, Path(work) / "tokens", TokensRecipe(options, workers=args.workers))
        return {"cpu_s": time.process_time() - begin, "compression": found["compression"], "data": found["data_sha256"]}
    if args.case == "isoflop":
        from isoflop.tokens.bpe import train_tokenizer

        model = json.loads(train_tokenizer(sample(args.corpus, args.mb), args.vocab, rules=args.rules).to_json())[
            "model"
        ]
    else:
        from tokenizers import pre_tokenizers, trainers

        from isoflop.tokens.bpe import _untrained

        backend = _untrained(args.rules)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=args.vocab, min_frequency=2, show_progress=False, initial_alphabet=alphabet
        )
        backend.train_from_iterator(sample(args.corpus, args.mb), trainer)
        model = json.loads(backend.to_str())["model"]
    identity = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
    return {"cpu_s": time.process_time() - begin, "n_merges": len(model["merges"]), "model_sha256": identity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by isoflop corpus")
    parser.add_argument("--mb", type=float, default=1e6, help="megabytes to train on; default: all training text")
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--rules", choices=("v1", "v3"), default="v1")
    parser.add_argument("--workers", type=int, default=1, help="processes that encode, for the whole command")
    parser.add_argument("--library", action="store_true", help="also with the library's trainer")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(case(args)))
        return
    n_bytes = sum(len(text.encode()) for text in sample(args.corpus, args.mb))
    print(f"{n_bytes / 1e6:.1f} MB, {args.vocab} tokens, {args.rules}; {processor()}; commit {commit()}", flush=True)
    rows = []
    for name in CASES if args.library else ("isoflop", "tokens"):
        rows.append(run_case(name, args))
        row = rows[-1]
        print(
            f"  {name}: {row['wall_s']:.0f} s, {row['cpu_s']:.0f} CPU s, peak {row['peak_pss_gb']:.2f} GB PSS",
            flush=True,
        )
    models = [row["model_sha256"] for row in rows if "model_sha256" in row]
    if len(models) == 2:
        print("  the library finds the same model" if models[0] == models[1] else "  THE MODELS DIFFER")
    if args.json:
        args.json.write_text(json.dumps({"commit": commit(), "processor": processor(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
