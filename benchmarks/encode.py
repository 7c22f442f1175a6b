"""How fast text becomes tokens: this package against other encoders on the same text and tokenizer, ids compared.

    isoflop corpus recipes/corpus/shared.toml --out runs/corpus-shared
    python benchmarks/encode.py --corpus runs/corpus-shared                       all of its training text
    python benchmarks/encode.py --corpus runs/corpus-shared --mb 8 --rules v1     a quick look

Each encoder gets the same documents in the same batches of a million characters, one thread, once, from a fresh start:
nothing is remembered from before. Loading and building tables is timed apart. The library (`tokenizers`, without
offsets) is the reference for ids and speed. Others take part where they are installed: tiktoken (our ranks, our cuts as
one regular expression), and gigatoken, tokie, kitoken, snaptokens with our `tokenizer.json`. Where an encoder cannot
take the tokenizer, or gives other ids, that is what its row says.
"""

import os

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.corpus.read.sources import read_texts
from isoflop.run import commit, processor
from isoflop.tokens.bpe import Tokenizer, train_tokenizer
from isoflop.tokens.fast.encoder import Encoder, _crossed_borders
from isoflop.tokens.rules import CJK_V3, PIECES, Rules

Encode = Callable[[list[str]], list[Any]]
PUBLISHED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
"""The third cut of the rules v3 in the spelling of the released tokenizer.json: libraries recognise it as it stands."""
_BREAKS = rf"\p{{N}}{CJK_V3}"  # the first two cuts end a run for the third
_REST = rf"[^\s\p{{L}}\p{{M}}\p{{P}}\p{{S}}{_BREAKS}]"
V3_AS_ONE = "|".join(
    (
        r"\p{N}{1,3}",
        f"[{CJK_V3}]+",
        r"[!-/:-@\[-`{-~][A-Za-z]+",
        rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}{_BREAKS}]?[\p{{L}}\p{{M}}&&[^{CJK_V3}]]+",
        rf" ?[\p{{P}}\p{{S}}&&[^{CJK_V3}]]+[\r\n]*",
        r"\s*[\r\n]+",
        rf"\s+(?![^\s{_BREAKS}])",
        r"\s+",
        rf"{_REST}+(?={_REST}[\p{{L}}\p{{M}}&&[^{CJK_V3}]])",
        f"{_REST}+",
    )
)


def batches(corpus: Path, mb: float) -> list[list[str]]:
    """Documents of all training domains, thinned to `mb` megabytes, in batches as `isoflop tokens` makes them."""
    manifest = json.loads((corpus / "manifest.json").read_text())
    files = [item for item in manifest["files"] if item["split"] == "train"]
    share = min(1.0, mb * 1e6 / sum(item["n_bytes"] for item in files))
    found: list[list[str]] = []
    for item in files:
        batch, size, kept = [], 0, 0.0
        for text in read_texts(corpus / item["path"]):
            kept += share
            if kept < 1.0:
                continue
            kept -= 1.0
            batch.append(text)
            size += len(text)
            if size >= 1_000_000:
                found.append(batch)
                batch, size = [], 0
        found.append(batch)
    return [batch for batch in found if batch]


def this_package(folder: Path, rules: str) -> Encode:
    encode = Tokenizer.load(folder).encode_batch
    encode(["a \u4e2d"])  # tables
    return encode


def this_package_with_tiktoken(folder: Path, rules: str) -> Encode:
    merge = tiktoken_ranks(folder)._core_bpe.encode_single_piece
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.rules
    encoder = Encoder(
        tokenizer.rules,
        lambda pieces: [merge(piece) for piece in pieces],
        tokenizer.encode,
        _crossed_borders(tokenizer._bytes_of_id),
    )
    encoder.encode(["a \u4e2d"])
    return encoder.encode


def library(folder: Path, rules: str) -> Encode:
    backend = Tokenizer.load(folder)._backend
    return lambda texts: [item.ids for item in backend.encode_batch_fast(texts, add_special_tokens=False)]


def tiktoken_ranks(folder: Path) -> Any:
    tokenizer = Tokenizer.load(folder)
    ranks = {data: index for index, data in enumerate(tokenizer._bytes_of_id) if data}
    pattern = PIECES if tokenizer.rules == "v1" else V3_AS_ONE
    return importlib.import_module("tiktoken").Encoding(
        "ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )


def tiktoken(folder: Path, rules: str) -> Encode:
    encoding = tiktoken_ranks(folder)
    return lambda texts: [encoding.encode_ordinary(text) for text in texts]


def gigatoken(folder: Path, rules: str) -> Encode:
    module = importlib.import_module("gigatoken")
    content = json.loads((folder / "tokenizer.json").read_text())
    if rules == "v3":
        content["pre_tokenizer"]["pretokenizers"][2]["pattern"]["Regex"] = PUBLISHED
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        return module.Tokenizer(file.name).encode_batch


def tokie(folder: Path, rules: str) -> Encode:
    found = importlib.import_module("tokie").Tokenizer.from_json(str(folder / "tokenizer.json"))
    return lambda texts: [found.encode(text, add_special_tokens=False).ids for text in texts]


def kitoken(folder: Path, rules: str) -> Encode:
    found = importlib.import_module("kitoken").Kitoken.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [found.encode(text, False) for text in texts]


def snaptokens(folder: Path, rules: str) -> Encode:
    found = importlib.import_module("snaptokens").Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [found.encode(text) for text in texts]


ENCODERS = {
    "tokenizers": library,
    "isoflop": this_package,
    "isoflop, unknown pieces by tiktoken": this_package_with_tiktoken,
    "tiktoken": tiktoken,
    "gigatoken": gigatoken,
    "tokie": tokie,
    "kitoken": kitoken,
    "snaptokens": snaptokens,
}


def measure(name: str, folder: Path, rules: str, text: list[list[str]], expected: list[np.ndarray]) -> dict[str, Any]:
    """One row. `expected` is filled by the first encoder and compared with by the others."""
    package = name.split(",")[0]
    row: dict[str, Any] = {"encoder": name, "rules": rules}
    try:
        row["version"] = version(package)
        begin = time.perf_counter()
        encode = ENCODERS[name](folder, rules)
        row["load_s"] = time.perf_counter() - begin
    except (ImportError, RuntimeError, ValueError, AttributeError, OSError) as error:
        return {**row, "refused": f"{type(error).__name__}: {str(error)[:80]}"}
    wall, cpu, different, n_tokens = 0.0, 0.0, 0, 0
    is_reference = not expected
    place = 0
    for batch in text:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        found = encode(batch)
        wall, cpu = wall + time.perf_counter() - begin, cpu + time.process_time() - begin_cpu
        for ids in found:
            ids = np.asarray(ids, dtype=np.uint32)
            n_tokens += len(ids)
            if is_reference:
                expected.append(ids)
            else:
                different += not np.array_equal(ids, expected[place])
            place += 1
    n_bytes = sum(len(item.encode()) for item in chain.from_iterable(text))
    row |= {"mb_per_s": n_bytes / wall / 1e6, "mb_per_cpu_s": n_bytes / cpu / 1e6, "wall_s": wall, "n_tokens": n_tokens}
    return row | {"n_documents": place, "different_documents": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by isoflop corpus")
    parser.add_argument("--mb", type=float, default=1e6, help="megabytes of text; default: all training text")
    parser.add_argument("--rules", choices=("v1", "v3"), help="only these; default: both")
    parser.add_argument("--tokenizer", type=Path, help="folder of a trained tokenizer; default: train 32,000 on 20 MB")
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), help="default: all that are installed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = batches(args.corpus, args.mb)
    n_bytes = sum(len(item.encode()) for item in chain.from_iterable(text))
    print(f"{n_bytes / 1e6:.1f} MB, {sum(map(len, text))} documents; {processor()}, one thread; commit {commit()}")
    rows = []
    every: list[Rules] = ["v1", "v3"]
    for rules in [args.rules] if args.rules else every:
        with tempfile.TemporaryDirectory() as work:
            folder = args.tokenizer or Path(work)
            if not args.tokenizer:
                sample = chain.from_iterable(batches(args.corpus, 20.0))
                train_tokenizer(sample, 32_000, rules=rules).save(folder)
            expected: list[np.ndarray] = []
            names = ["tokenizers", *(name for name in args.encoders if name != "tokenizers")]
            for name in names:
                row = measure(name, folder, rules, text, expected)
                rows.append(row)
                if "refused" in row:
                    print(f"  {rules} {name}: {row['refused']}", flush=True)
                    continue
                reference = next(item for item in rows if item["rules"] == rules)
                times = row["times_tokenizers"] = row["mb_per_s"] / reference["mb_per_s"]
                same = "same ids" if not row["different_documents"] else f"{row['different_documents']} texts differ"
                speed = f"{row['mb_per_s']:.1f} MB/s, {row['mb_per_cpu_s']:.1f} a CPU second"
                print(f"  {rules} {name} {row['version']}: {speed}, {times:.1f}x, {same}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"commit": commit(), "processor": processor(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
