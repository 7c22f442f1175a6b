"""What deduplicating many dumps together removes beyond each by itself: table 1 of the DeepSeek LLM paper, on slices of
real text.

    python recipes/study/dedup.py [--shared ../shared] [--documents 250] [--out docs/studies/dedup]

How the slices are made. The universe is documents of `../shared/data/pretrain` (pieces of 300 to 1500 characters, no
two alike by more than a tenth of their shingles). A document has a chance p of being in a dump, the same for every
dump, drawn from a beta distribution: some pages are crawled nearly always, most seldom. In a dump it appears once or,
for the documents that mirrors carry, several times; each appearance after the first has up to 3% of its words changed
(a date, a counter). The beta distribution and the number of mirrored copies are fitted to the table, so the
height of the curve is no result. The results are that per-slice deduplication stays where one dump is,
that the joint one follows what the slices were made to hold, and that taking the dumps one after the other against an
index removes nearly the same as all of them at once (a later document can join two that were kept).
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from scipy.optimize import minimize_scalar
from scipy.special import betaln

from isoflop.corpus.dedup.job import Dump, Threads
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.dedup.table import deduplicate_table
from isoflop.corpus.dedup.words import shingle_sets
from isoflop.corpus.tables import partitions as tables
from isoflop.recipe import write_json
from isoflop.run import commit, processor

PAPER = {1: 22.2, 2: 46.7, 6: 55.7, 12: 69.9, 16: 75.7, 22: 76.3, 41: 81.6, 91: 89.8}  # arXiv 2401.02954, table 1
N_PARTITIONS = 4
FIRST = 0.1  # smaller values fit no better and need ever more documents (0.0215 squared misses; 0.0199 at best)
INCREMENTAL = 12  # dumps that are also taken one after the other


def removed_share(a: float, b: float, n_dumps: int, once: float) -> float:
    """Expected share removed: `once` is what one dump loses, p follows Beta(a, b)."""
    distinct = 1 - np.exp(betaln(a, b + n_dumps) - betaln(a, b))
    return 1 - (1 - once) * distinct / (n_dumps * a / (a + b))


def fitted() -> tuple[float, float]:
    """Beta parameters that come close to the table: the first as large as does no harm, for a small universe."""

    def miss(log_b: float) -> float:
        shares = {n: removed_share(FIRST, float(np.exp(log_b)), n, PAPER[1] / 100) for n in PAPER}
        return sum((shares[n] - share / 100) ** 2 for n, share in PAPER.items())

    found: Any = minimize_scalar(miss, bounds=(-4, 5), method="bounded")
    return FIRST, float(np.exp(found.x))


def universe(shared: Path, n: int) -> list[str]:
    """`n` pieces of text that resemble no other."""
    generator = random.Random(0)
    found = []
    for path in sorted((shared / "data/pretrain").glob("*/docs.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            for line in file.read().split("\n")[:-1]:
                text = json.loads(line)["text"]
                starts = range(0, max(1, len(text) - 1500), 20_000)
                found += [text[at : at + generator.randrange(300, 1500)] for at in starts if len(text) >= 300]
    generator.shuffle(found)
    kept, known = [], set[int]()
    for text, shingles in zip(found, shingle_sets(found, 5)):
        values = set(shingles.tolist())
        if len(values) >= 40 and len(values & known) < 0.1 * len(values):
            kept.append(text)
            known |= values
        if len(kept) == n:
            return kept
    raise SystemExit(f"only {len(kept)} of {n} different pieces found; give --documents a smaller number")


def changed(text: str, generator: random.Random) -> str:
    """At most 3% of the words, or of the characters of an unspaced text, exchanged for numbers."""
    parts = text.split(" ") if text.count(" ") > len(text) / 20 else list(text)
    for at in generator.sample(range(len(parts)), generator.randrange(max(1, len(parts) * 3 // 100) + 1)):
        parts[at] = str(generator.randrange(10**4))
    return (" " if len(parts) < len(text) else "").join(parts)


def dumps(texts: list[str], a: float, b: float, n_dumps: int) -> list[list[tuple[str, str]]]:
    """(origin, text) of every dump."""
    generator = random.Random(1)
    chances = [generator.betavariate(a, b) for _ in texts]
    # one document in ten has mirrors; their number makes one dump lose what the first row of the table says
    mirrors = PAPER[1] / (100 - PAPER[1]) * 10
    mirrored = [generator.random() < 0.1 for _ in texts]
    found = []
    for number in range(n_dumps):
        rows = []
        for index, text in enumerate(texts):
            if generator.random() >= chances[index]:
                continue
            copies = 1 + (int(mirrors + generator.random()) if mirrored[index] else 0)
            for copy in range(copies):
                version = changed(text, generator) if number or copy else text
                rows.append((f"{number:03d}/{index}#{copy}", version))
        found.append(rows)
    return found


def removed(folder: Path, rows: list[tuple[str, str]], earlier: list[Dump]) -> tuple[int, Dump]:
    """Documents that a deduplication drops. The older dump is preferred, since its origins are smaller."""
    import pyarrow as pa

    columns = list(zip(*((tables.document_key("d", t), o, o[:3], "d", "", "", t) for o, t in rows)))
    table = pa.table([list(column) for column in columns], schema=tables.document_schema())
    tables.write_run(folder / "run.arrow", table, N_PARTITIONS)
    for partition in range(N_PARTITIONS):
        read = tables.read_runs([folder / "run.arrow"], partition)
        tables.write_partition(folder / "documents", partition, read)
    tables.finish(folder / "documents", N_PARTITIONS)
    found = deduplicate_table(folder / "documents", folder / "work", DedupOptions(), earlier=earlier, run=Threads(2))
    n = sum(rule["n_documents"] for rule in found["rules"].values())
    return n, Dump(folder / "documents", folder / "work")


def study(shared: Path, n_documents: int, folder: Path) -> dict[str, Any]:
    """The record: one row per number of dumps."""
    a, b = fitted()
    made = dumps(universe(shared, round(n_documents * (a + b) / a)), a, b, max(PAPER))
    once = [removed(folder / f"alone-{number}", rows, [])[0] for number, rows in enumerate(made)]
    table = []
    for n_dumps, share in PAPER.items():
        rows = [row for dump in made[:n_dumps] for row in dump]
        truth = 1 - len({origin[4:].split("#")[0] for origin, _ in rows}) / len(rows)
        found, _ = removed(folder / f"joint-{n_dumps}", rows, [])
        row = {"n_dumps": n_dumps, "n_documents": len(rows), "joint_percent": 100 * found / len(rows)}
        row |= {"per_slice_percent": 100 * sum(once[:n_dumps]) / len(rows), "made_percent": 100 * truth}
        table.append({**row, "paper_percent": share})
        print({name: round(value, 1) for name, value in table[-1].items()}, flush=True)
    earlier: list[Dump] = []
    total = 0
    for number, rows in enumerate(made[:INCREMENTAL]):
        n, dump = removed(folder / f"next-{number}", rows, earlier)
        earlier.append(dump)
        total += n
    joint = next(row for row in table if row["n_dumps"] == INCREMENTAL)
    one_by_one = 100 * total / joint["n_documents"]
    print({"n_dumps": INCREMENTAL, "one_by_one_percent": round(one_by_one, 1)})
    record = {"commit": commit(), "processor": processor(), "beta": [a, b], "options": DedupOptions()}
    return {**record, "table": table, "one_by_one": {"n_dumps": INCREMENTAL, "percent": one_by_one}}


def draw(record: dict[str, Any], path: Path) -> None:
    """Share removed against the number of dumps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    rows = record["table"]
    numbers = [row["n_dumps"] for row in rows]
    axes.plot(numbers, [row["joint_percent"] for row in rows], "o-", label="all dumps together")
    axes.plot(numbers, [row["per_slice_percent"] for row in rows], "s-", label="each dump by itself")
    axes.plot(numbers, [row["made_percent"] for row in rows], "k_", markersize=14, label="repeats that were put in")
    axes.plot(numbers, [row["paper_percent"] for row in rows], "x", color="0.4", label="paper (other data)")
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()
    axes.set_xlabel("dumps")
    axes.set_ylabel("documents removed (%)")
    axes.set_ylim(0, 100)
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2].parent / "shared")
    parser.add_argument("--documents", type=int, default=250, help="different documents in a dump, about")
    parser.add_argument("--out", type=Path, default=Path("docs/studies/dedup"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = study(given.shared, given.documents, Path(folder))
    write_json(given.out / "records.json", record)
    draw(record, given.out / "dumps.png")


if __name__ == "__main__":
    main()
