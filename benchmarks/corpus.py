"""Deduplication of real text beside datatrove: speed, memory, survivors; and memory when the input is 10 times larger.

    python benchmarks/corpus.py --text ../shared/data/pretrain --datatrove ENVIRONMENT/bin/python [--workers 2]
        [--copies 9] [--recipe recipes/corpus/shared.toml] [--every 1] [--work FOLDER] [--json FILE]

With --recipe, that corpus is built first: documents and MB of the text that was read, per second of each stage. Then
deduplication alone. Both sides get the same documents (books cut at line ends to 20,000 characters), split into words
with one space between them, and the same parameters; both take what lies between spaces as words, so what is timed is
shingles, signatures, bands and clusters (and, on our side, exact duplicates and the list of what goes, which datatrove
writes in a fourth stage that is not run here). Ours runs three times: every candidate pair joins, which is what
datatrove does; with the comparison that is our default; and that again while it finds the words by itself, as it does
in `isoflop corpus build`. Then the input grows: `--copies` edited copies of every document (one of every four words
exchanged for a random one), so that their similarity to the original and to each other is below 0.5. Memory is the
proportional set size of all processes together. ENVIRONMENT is any that has datatrove 0.10.1
(pip install "datatrove[io]==0.10.1"); without it, only ours is measured. --every 8 takes an eighth of the pieces, for
a trial. FILE is written after every step and what it holds is not measured again, so a run that was cut off goes on;
inputs are kept in --work.
"""

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from memory import Watched, watch

from isoflop.corpus.dedup.job import Threads
from isoflop.corpus.dedup.near import jaccard
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.dedup.table import deduplicate_table
from isoflop.corpus.dedup.words import shingle_sets, spaced
from isoflop.corpus.tables import partitions as tables
from isoflop.recipe import write_json
from isoflop.run import commit, processor

BANDS, ROWS, WORDS = 14, 8, 5  # datatrove's defaults
N_PARTITIONS = 16  # as in recipes/corpus/shared.toml
PIECE_CHARS = 20_000
EXCHANGED = 4  # one word of so many consecutive ones: no run of more than 6 words stays, so two shingles of eight
MANY = 2_000


def pretrain_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(origin, piece) of every document in `*/docs.jsonl.zst`."""
    for path in sorted(folder.glob("*/docs.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for index, line in enumerate(file):
                for number, piece in enumerate(pieces(json.loads(line)["text"])):
                    yield f"{path.parent.name}/{index}#{number}", piece


def pieces(text: str) -> Iterator[str]:
    """Cuts at line ends, or anywhere in a line that is longer."""
    while len(text) > PIECE_CHARS:
        at = text.rfind("\n", 1, PIECE_CHARS) + 1 or PIECE_CHARS
        yield text[:at]
        text = text[at:]
    yield text


def write_input(folder: Path, documents: Iterator[tuple[str, str]], *, copies: int = 0, jsonl: bool = False) -> None:
    """Words of the documents and of edited copies as a table, and as JSON lines in the same order."""
    import pyarrow as pa

    runs, words = [], dict[str, None]()
    generator = np.random.default_rng(0)
    for block in _blocks(documents):
        origins, texts = zip(*block)
        split = [text for words in spaced(texts) for text in words.to_pylist()]
        rows = [(origin, text) for origin, text in zip(origins, split) if text]
        if copies:
            words |= dict.fromkeys(word for _, text in rows for word in text.split(" "))
        vocabulary = np.array(list(words), object)
        for copy in range(copies + 1):
            edited = [(f"{o}+{copy}", _edited(t, vocabulary, generator) if copy else t) for o, t in rows]
            columns = [[tables.document_key("d", text), origin, "s", "d", "", "", text] for origin, text in edited]
            runs.append(folder / "runs" / f"{len(runs)}.arrow")
            table = pa.table([list(column) for column in zip(*columns)], schema=tables.document_schema())
            tables.write_run(runs[-1], table, N_PARTITIONS)
    (folder / "jsonl").mkdir(parents=True, exist_ok=True)
    for partition in range(N_PARTITIONS):
        table = tables.read_runs(runs, partition)
        tables.write_partition(folder / "documents", partition, table)
        if jsonl:
            with open(folder / "jsonl" / f"{partition:05d}.jsonl", "w", encoding="utf-8") as file:
                for origin, text in zip(table.column("origin").to_pylist(), table.column("text").to_pylist()):
                    file.write(json.dumps({"id": origin, "text": text}, ensure_ascii=False) + "\n")
    tables.finish(folder / "documents", N_PARTITIONS)
    shutil.rmtree(folder / "runs")


def _blocks(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    block, size = [], 0
    for document in documents:
        block.append(document)
        size += len(document[1])
        if size > 4_000_000:
            yield block
            block, size = [], 0
    if block:
        yield block


def _edited(text: str, vocabulary: np.ndarray, generator: np.random.Generator) -> str:
    words = np.array(text.split(" "), object)
    starts = np.arange(0, len(words), EXCHANGED)
    at = np.minimum(starts + generator.integers(EXCHANGED, size=len(starts)), len(words) - 1)
    words[at] = vocabulary[generator.integers(len(vocabulary), size=len(at))]
    return " ".join(words)


def ours(documents: Path, work: Path, workers: int, threshold: float, presplit: bool) -> None:
    """One deduplication; prints seconds of its phases as one line of JSON."""
    shutil.rmtree(work, ignore_errors=True)
    seconds: dict[str, float] = {}
    before = [time.perf_counter()]

    def on_progress(phase: str, done: int, total: int) -> None:
        if done == total:
            now = time.perf_counter()
            seconds[phase], before[0] = now - before[0], now

    options = DedupOptions(bands=BANDS, rows=ROWS, shingle_words=WORDS, threshold=threshold, presplit=presplit)
    found = deduplicate_table(documents, work, options, run=Threads(workers), on_progress=on_progress)
    print(json.dumps({"phases": seconds, "found": found}))


def measure_ours(folder: Path, name: str, label: str, workers: int, threshold: float, split: bool = False) -> dict:
    """`ours` in a process of its own."""
    info = tables.open_table(folder / "documents")
    places = [str(folder / "documents"), str(folder / name)]
    command = [sys.executable, __file__, "--ours", *places, "--workers", str(workers), "--threshold", str(threshold)]
    watched = watch([*command, *(["--split"] if split else [])])
    found = json.loads(watched.output)
    return {**row(f"isoflop, {label}", watched, info, sum(found["phases"].values())), **found}


def measure_datatrove(folder: Path, python: str, workers: int) -> dict:
    """The same by datatrove."""
    shutil.rmtree(folder / "datatrove", ignore_errors=True)
    script = Path(__file__).with_name("corpus_datatrove.py")
    command = [python, str(script), str(folder / "jsonl"), str(folder / "datatrove")]
    watched = watch([*command, *map(str, (workers, BANDS, ROWS, WORDS))], quiet=True)
    seconds = json.loads(watched.output.splitlines()[-1])
    info = tables.open_table(folder / "documents")
    return {**row("datatrove", watched, info, sum(seconds.values())), "phases": seconds}


def our_drops(folder: Path, name: str) -> dict[str, str]:
    """Origin -> origin of the survivor."""
    drops = {}
    for partition in range(N_PARTITIONS):
        rows = tables.read_partition(folder / name / "drops", partition, ["origin", "survivor"])
        drops |= dict(zip(rows.column("origin").to_pylist(), rows.column("survivor").to_pylist()))
    return drops


def their_drops(folder: Path) -> dict[str, str]:
    """The same of datatrove's clusters, which leave the choice open: the smallest origin survives, as in ours."""
    clusters: dict[int, list[str]] = {}
    for path in sorted((folder / "datatrove" / "clusters").glob("*.clusters")):
        partition = int(path.name.split(".")[0])
        origins = tables.read_partition(folder / "documents", partition, ["origin"]).column("origin").to_pylist()
        for row, cluster in struct.iter_unpack("<II", path.read_bytes()):
            clusters.setdefault(cluster, []).append(origins[row])
    return {origin: min(found) for found in clusters.values() for origin in found if origin != min(found)}


def differences(folder: Path, mine: dict[str, str], theirs: dict[str, str]) -> dict:
    """Who drops what the other keeps, and how similar it is to the document that it was dropped for."""
    texts = {}
    for partition in range(N_PARTITIONS):
        rows = tables.read_partition(folder / "documents", partition, ["origin", "text"])
        texts |= dict(zip(rows.column("origin").to_pylist(), rows.column("text").to_pylist()))
    found: dict = {"both": len(mine.keys() & theirs.keys())}
    for name, here, there in (("only_ours", mine, theirs), ("only_datatrove", theirs, mine)):
        rest = sorted(here.keys() - there.keys())
        short = [origin for origin in rest if texts[origin].count(" ") < WORDS - 1]
        longer = [origin for origin in rest if texts[origin].count(" ") >= WORDS - 1]
        sets = list(shingle_sets([texts[o] for origin in longer for o in (origin, here[origin])], WORDS))
        similar = [jaccard(left, right) for left, right in zip(sets[::2], sets[1::2])]
        found[name] = {"n": len(rest), f"shorter_than_{WORDS}_words": len(short)}
        found[name]["similarity_quantiles"] = (
            np.quantile(similar, [0, 0.1, 0.5, 0.9, 1]).round(3).tolist() if similar else None
        )
    return found


def most_similar(folder: Path) -> dict:
    """Similarity of edited copies to each other and to their original, of the documents of one partition."""
    groups: dict[str, list[str]] = {}
    for partition in range(N_PARTITIONS):
        rows = tables.read_partition(folder / "documents", partition, ["origin", "text"])
        for origin, text in zip(rows.column("origin").to_pylist(), rows.column("text").to_pylist()):
            name = origin.rpartition("+")[0]
            if hash_of(name) < MANY / 100_000:
                groups.setdefault(name, []).append(text)
    similar = []
    for texts in groups.values():
        sets = list(shingle_sets(texts, WORDS))
        similar += [jaccard(sets[i], sets[j]) for i in range(len(sets)) for j in range(i)]
    quantiles = np.quantile(similar, [0.5, 0.9, 0.99, 1]).round(4).tolist()
    return {"n_pairs": len(similar), "quantiles_50_90_99_100": quantiles}


def hash_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int(tables.document_key("", name)[:8], 16) / 2**32


def row(name: str, watched: Watched, info: tables.TableInfo, seconds: float | None = None) -> dict:
    """One line of the table that is printed. `seconds`: of the work alone, without starting the interpreter."""
    seconds = watched.seconds if seconds is None else seconds
    found = {"name": name, "seconds": round(seconds, 2), "documents_per_s": round(info.n_rows / seconds)}
    found["mb_per_s"] = round(info.n_text_bytes / 1e6 / seconds, 2)
    found["cpu_seconds"] = round(watched.cpu_seconds, 2)
    found["peak_pss_gb"] = round(watched.peak_pss_bytes / 1e9, 3)
    print("  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    return found


def build_stages(recipe: Path, out: Path, workers: int) -> dict:
    """`isoflop corpus build`, from nothing: what each stage took."""
    for folder in (out, out.with_name(f".{out.name}.stages")):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "isoflop", "corpus", "build", str(recipe), "--out", str(out)]
    watched = watch([*command, f"workers={workers}"])
    stages = json.loads((out / "build.json").read_text(encoding="utf-8"))["stages"]
    funnel = json.loads((out / "report.json").read_text(encoding="utf-8"))["stages"]
    n_documents = {stage["name"]: sum(kept[2] for kept in stage["kept"]) for stage in funnel}
    n_read = n_documents["read"]
    n_bytes = sum(kept[3] for kept in funnel[0]["kept"])
    found = {"seconds": watched.seconds, "peak_pss_gb": watched.peak_pss_bytes / 1e9, "n_documents": n_read}
    for name, stage in stages.items():
        rate = {"seconds": stage["seconds"], "documents_per_s": n_read / max(1e-3, stage["seconds"])}
        found[name] = {**rate, "mb_per_s": n_bytes / 1e6 / max(1e-3, stage["seconds"])}
        print(f"{name:12s}", {key: round(value, 2) for key, value in found[name].items()}, flush=True)
    print({key: found[key] for key in ("seconds", "peak_pss_gb", "n_documents")})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--datatrove", help="Python of an environment with datatrove")
    parser.add_argument("--recipe", type=Path, help="build this corpus first")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--every", type=int, default=1, help="take each of so many pieces, for a trial")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ours", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threshold", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--split", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        documents, work = options.ours
        ours(documents, work, options.workers, options.threshold, not options.split)
        return
    if options.text is None:
        parser.error("--text names the folder with */docs.jsonl.zst")
    folder = options.work or Path(tempfile.mkdtemp())
    measure(options, folder)
    if not options.work:
        shutil.rmtree(folder)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Every step that `options.json` does not hold yet."""
    os.environ["LOGURU_LEVEL"] = "ERROR"  # datatrove writes pages of statistics
    about = {"commit": commit(), "processor": processor(), "cores": os.cpu_count(), "workers": options.workers}
    about |= {"bands": BANDS, "rows": ROWS, "words": WORDS, "partitions": N_PARTITIONS, "every": options.every}
    record = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    if {name: record.get(name) for name in about} != about:
        record = dict(about)

    def step(name: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if name not in record:
            record[name] = function(*given, **named)
            if options.json:
                write_json(options.json, record)
        return record[name]

    if options.recipe:
        step("stages", build_stages, options.recipe, folder / "corpus", options.workers)
    one, many = folder / "one", folder / "many"
    if not (one / "documents" / "table.json").is_file():
        write_input(one, islice(pretrain_texts(options.text), 0, None, options.every), jsonl=True)
    info = tables.open_table(one / "documents")
    step("input", lambda: {"n_documents": info.n_rows, "n_text_bytes": info.n_text_bytes})
    print(f"{info.n_rows} documents, {info.n_text_bytes / 1e6:.1f} MB of words", flush=True)
    mine = step("candidates", measure_ours, one, "candidates", "candidates", options.workers, 0.0)
    compared = step("compared", measure_ours, one, "compared", "compared", options.workers, 0.7)
    step("split", measure_ours, one, "split", "compared, words by itself", options.workers, 0.7, split=True)
    if options.datatrove:
        theirs = step("datatrove", measure_datatrove, one, options.datatrove, options.workers)
        ratios = {
            "candidates": theirs["seconds"] / mine["seconds"],
            "compared": theirs["seconds"] / compared["seconds"],
            "split": theirs["seconds"] / record["split"]["seconds"],
            "candidates_cpu": theirs["cpu_seconds"] / mine["cpu_seconds"],
        }
        print(step("times_faster", lambda: {name: round(ratio, 1) for name, ratio in ratios.items()}))
        print(step("survivors", lambda: differences(one, our_drops(one, "candidates"), their_drops(one))), flush=True)
    if options.copies and "similarity_of_copies" not in record:
        if not (many / "documents" / "table.json").is_file():
            shutil.rmtree(many, ignore_errors=True)
            write_input(many, islice(pretrain_texts(options.text), 0, None, options.every), copies=options.copies)
        label = f"compared, {options.copies + 1} times the input"
        step("many", measure_ours, many, "compared", label, options.workers, 0.7)
        print(step("similarity_of_copies", most_similar, many))
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
