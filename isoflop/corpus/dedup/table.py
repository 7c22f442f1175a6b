"""Deduplicate a table of documents: exact, near, lines, passages; what goes and why is a table too.

In: a folder of documents (tables/partitions.py), which may have the columns `priority` (of a group of duplicates the
smallest (priority, origin) survives) and `split` (see dedup_lines). Out, in the work folder:

    drops/     key, origin, rule, survivor, detail, n_bytes: one row per document that goes
    cuts/      key, origin, row, start, stop: byte spans that are cut out of documents that stay

`survivors` applies both. Every phase is made of tasks that write one file each under its final name, so the same call
goes on where a killed one was. With `earlier` dumps only documents of the new one are compared and dropped, against
all that the earlier ones had: which they are is what one run over everything would say, as long as it prefers the
older dump. Their folders must be kept; the work folder of a dump is its part of the index.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.corpus.dedup import exact as dedup_exact
from isoflop.corpus.dedup import lines as dedup_lines
from isoflop.corpus.dedup import near as dedup_near
from isoflop.corpus.dedup import passages as dedup_passages
from isoflop.corpus.dedup.job import Dump, Job, Run, Threads, column, row_of
from isoflop.corpus.dedup.options import DedupOptions, check_options
from isoflop.corpus.tables.partitions import finish, open_table, partition_path, read_partition, write_partition
from isoflop.corpus.tables.stages import Progress
from isoflop.errors import DataError
from isoflop.recipe import to_tree, write_json

if TYPE_CHECKING:
    import pyarrow as pa


def deduplicate_table(
    documents: Path,
    work: Path,
    options: DedupOptions,
    *,
    earlier: Sequence[Dump] = (),
    run: Run | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Find what to drop and to cut; returns counts of documents and bytes by rule. Results don't depend on `run`.

    Raises:
        RecipeError: options that contradict each other.
        DataError: `work` holds another deduplication, an earlier dump was made with other options or partitions, or
            Daft is not installed.
    """
    check_options(options)
    run = run or Threads()
    info = open_table(documents)
    job = Job((*earlier, Dump(documents, work)), info.n_partitions, options)
    _claim(job, info.sha256)
    for phase, function, count in _phases(job):
        for done, _ in enumerate(run(function, [(job, index) for index in range(count)]), 1):
            if on_progress:
                on_progress(phase, done, count)
        if phase == "pairs":  # the one step that is not cut up; its comparisons are
            dedup_near.write_clusters(job, run)
    for name in ("drops", "cuts"):
        finish(work / name, job.n_partitions)
    found = summary(job)
    write_json(work / "summary.json", found)
    return found


def survivors(documents: Path, work: Path, partition: int) -> "pa.Table":
    """The rows of a partition that stay, with their cuts made."""
    import pyarrow as pa

    rows = read_partition(documents, partition)
    drops = read_partition(work / "drops", partition, ["row"])
    cuts = read_partition(work / "cuts", partition)
    keep = np.ones(rows.num_rows, bool)
    keep[column(drops, "row")] = False
    if cuts.num_rows:
        texts = rows.column("text").to_pylist()
        row, start, stop = (column(cuts, name) for name in ("row", "start", "stop"))
        for one in np.unique(row).tolist():
            here = row == one
            texts[one] = cut(texts[one], start[here].tolist(), stop[here].tolist())
        where = rows.schema.get_field_index("text")
        rows = rows.set_column(where, rows.schema.field(where), pa.array(texts, rows.schema.field(where).type))
    return rows.filter(pa.array(keep))


def cut(text: str, starts: Sequence[int], stops: Sequence[int]) -> str:
    """`text` without these spans of its UTF-8 bytes."""
    data, parts, last = text.encode(), [], 0
    for start, stop in zip(starts, stops, strict=True):
        parts.append(data[last:start])
        last = stop
    return b"".join([*parts, data[last:]]).decode()


def write_drops(job: Job, partition: int) -> None:
    """Task per partition: the tables `drops` and `cuts`."""
    import pyarrow as pa

    if partition_path(job.work / "cuts", partition).is_file():
        return
    rows, _ = job.ranked(partition)
    lengths = np.load(job.path("exact/lengths.npy", partition))
    reasons: dict[int, tuple[str, str, float]] = {}
    for search in ("exact", "near") if job.options.near else ("exact",):
        drops = job.drops(search, partition)
        detail = np.ones(drops.num_rows)
        if search == "near":
            pairs = np.stack([column(drops, "document"), column(drops, "survivor")], axis=1)
            detail = dedup_near.estimated_similarity(job, pairs)
        origins = drops.column("survivor_origin").to_pylist()
        for row, origin, value in zip(row_of(column(drops, "document")).tolist(), origins, detail.tolist()):
            reasons[row] = (f"{search}_duplicate", origin, value)
    row, start, stop = _spans(job, partition, lengths, reasons)

    def located(row: np.ndarray) -> dict[str, Any]:
        named = {name: rows.column(name).take(pa.array(row)).combine_chunks() for name in ("key", "origin")}
        return {**named, "row": pa.array(row)}

    order = np.array(sorted(reasons), np.int64)
    columns = {
        **located(order),
        "rule": pa.array([reasons[row][0] for row in order], "string"),
        "survivor": pa.array([reasons[row][1] for row in order], "string"),
        "detail": pa.array([reasons[row][2] for row in order], "float64"),
        "n_bytes": pa.array(lengths[order]),
    }
    write_partition(job.work / "drops", partition, pa.table(columns))
    columns = {**located(row), "start": pa.array(start), "stop": pa.array(stop)}
    write_partition(job.work / "cuts", partition, pa.table(columns))


def summary(job: Job) -> dict[str, Any]:
    """Counts of the finished tables."""
    found: dict[str, Any] = {"n_documents": 0, "rules": {}, "n_cut_documents": 0, "n_cut_bytes": 0}
    for partition in range(job.n_partitions):
        drops = read_partition(job.work / "drops", partition, ["rule", "n_bytes"])
        found["n_documents"] += read_partition(job.dumps[-1].documents, partition, ["key"]).num_rows
        for rule, n_bytes in zip(drops.column("rule").to_pylist(), drops.column("n_bytes").to_pylist()):
            counts = found["rules"].setdefault(rule, {"n_documents": 0, "n_bytes": 0})
            counts["n_documents"] += 1
            counts["n_bytes"] += n_bytes
        cuts = read_partition(job.work / "cuts", partition, ["row", "start", "stop"])
        found["n_cut_documents"] += len(np.unique(column(cuts, "row")))
        found["n_cut_bytes"] += int((column(cuts, "stop") - column(cuts, "start")).sum())
    found["rules"] = dict(sorted(found["rules"].items()))
    return found


def _phases(job: Job) -> list[tuple[str, Callable[..., Any], int]]:
    n, options = job.n_partitions, job.options
    phases: list[tuple[str, Callable[..., Any], int]] = [
        ("fingerprints", dedup_exact.write_fingerprints, n),
        ("exact", dedup_exact.choose_exact, n),
    ]
    if options.near:
        phases += [
            ("signatures", dedup_near.write_signatures, n),
            ("pairs", dedup_near.write_pairs, n),
            ("members", dedup_near.write_members, job.n_parts),
            ("near", dedup_near.choose_near, n),
        ]
    if _needs_lines(job):
        phases += [("lines", dedup_lines.write_lines, n), ("repeated lines", dedup_lines.write_repeated_lines, n)]
    if options.min_passage_bytes:
        phases += [
            ("seeds", dedup_passages.write_seeds, n),
            ("repeated seeds", dedup_passages.write_repeated_seeds, n),
            ("passages", dedup_passages.write_passages, job.n_parts),
            ("repeats", dedup_passages.write_repeats, n),
        ]
    return [*phases, ("drops", write_drops, n)]


def _needs_lines(job: Job) -> bool:
    return job.options.max_line_copies > 0 or ("split" in job.names(0) and job.options.max_shared_share < 1.0)


def _spans(
    job: Job, partition: int, lengths: np.ndarray, reasons: dict[int, tuple[str, str, float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What to cut out of which row; rows that lose too much are added to `reasons` and left whole."""
    found = [(np.empty(0, np.int64),) * 3]
    if _needs_lines(job):
        found.append(dedup_lines.late_lines(job, partition))
        shared = dedup_lines.shared_bytes(job, partition, len(lengths))
        for row in np.flatnonzero(shared).tolist():
            share = int(shared[row]) / max(1, int(lengths[row]))
            if share > job.options.max_shared_share:
                reasons[row] = ("shared_with_validation", "", share)
    if job.options.min_passage_bytes:
        found.append(dedup_passages.repeated_spans(job, partition))
    row, start, stop = dedup_passages.merged(*(np.concatenate(values) for values in zip(*found)))
    keep = np.ones(len(row), bool)
    texts = job.documents(partition, ["text"]).column("text") if len(row) else []
    for one in np.unique(row).tolist():
        here = np.flatnonzero(row == one)
        data = texts[one].as_py().encode()
        if one not in reasons:
            stop[here] = np.minimum(stop[here], len(data))  # the last line of a text has no line end
            for at in here.tolist():
                start[at], stop[at] = _whole_characters(data, int(start[at]), int(stop[at]))
            if not cut(data.decode(), start[here].tolist(), stop[here].tolist()).strip():
                reasons[one] = ("repeated_passages", "", 1.0)
        keep[here] = one not in reasons
    keep &= stop > start
    return row[keep], start[keep], stop[keep]


def _whole_characters(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Shrink a span until it begins and ends between characters."""
    while start < stop and data[start] & 0xC0 == 0x80:
        start += 1
    while stop > start and stop < len(data) and data[stop] & 0xC0 == 0x80:
        stop -= 1
    return start, stop


def _claim(job: Job, sha256: str) -> None:
    """Write or check what the work folder is for: its files must never meet those of another deduplication."""
    asked = {"options": to_tree(job.options), "n_partitions": job.n_partitions}
    before = []
    for age, dump in enumerate(job.dumps[:-1]):
        path = dump.work / "job.json"
        known = json.loads(path.read_text(encoding="utf-8")) if (dump.work / "summary.json").is_file() else {}
        if {name: known.get(name) for name in asked} != asked or len(known.get("dumps", [])) != age + 1:
            raise DataError(
                f"earlier[{age}] = {dump.work} was not finished, not with the same options and {job.n_partitions} "
                f"partitions, or not after {age} others; give dumps in the order in which they were deduplicated"
            )
        before.append(known["dumps"][-1])
    asked["dumps"] = [*before, sha256]
    path = job.work / "job.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != asked:
        raise DataError(f"{job.work} holds another deduplication (other documents or options); give an empty folder")
    write_json(path, asked)
