"""The first two stages: files -> runs of documents, normalised and cut into pieces; runs -> the table of documents.

Reading is shared out by files, a few MB to a task; what can't be read is set aside with its origin. The table then
gathers the rows of each partition out of all runs, so its files depend on the documents alone and not on the order in
which they were found. To the columns of `tables.DOCUMENT_COLUMNS` it adds

    split      "train" or "valid": decided for whole sources, before anything is compared
    priority   the smallest (priority, origin) of equal or nearly equal documents survives; validation is negative
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoflop.corpus.document import BadRecord, Document, SourceOptions
from isoflop.corpus.read.clean import normalise
from isoflop.corpus.read.environment import (
    EnvironmentFile,
    EnvironmentOptions,
    find_environment_files,
    read_environment_file,
)
from isoflop.corpus.read.pieces import cut_pieces
from isoflop.corpus.read.sources import find_files, read_file
from isoflop.corpus.read.split import SplitRule
from isoflop.corpus.report.tally import Tally
from isoflop.corpus.tables.partitions import document_key, document_schema, read_runs, write_partition, write_run
from isoflop.corpus.tables.stages import Task, fingerprint
from isoflop.errors import DataError, RecipeError
from isoflop.run import file_sha256

TASK_BYTES = 4_000_000  # assumption: small enough to share out evenly
RUN_BYTES = 24_000_000  # assumption: text of one run; what a reading process holds at once


@dataclass(frozen=True)
class ReadOptions:
    """What of a recipe decides how files become documents."""

    unicode_form: str
    max_piece_kb: float
    n_partitions: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file and how to read it."""

    path: Path
    id: str
    n_bytes: int
    source: SourceOptions | None
    environment: EnvironmentFile | None

    @property
    def license(self) -> str:
        found = self.environment or self.source
        return found.license if found else ""


def find_inputs(
    sources: Iterable[SourceOptions], environment: EnvironmentOptions, on_bad: Callable[[BadRecord], None]
) -> list[InputFile]:
    """All files, sorted by id, whatever order the recipe and the disk have them in.

    Raises:
        RecipeError: a name used twice. DataError: a path that is missing or empty, or nothing to read at all.
    """
    sources = list(sources)
    labels = Counter(source.label for source in sources)
    repeated = sorted(label for label, count in labels.items() if count > 1)
    if repeated:
        raise RecipeError(f"sources.name = {repeated[0]!r} is used twice; give each source a name of its own")
    files = []
    for source in sources:
        root = Path(source.path)
        for path in find_files(source, on_bad):
            relative = path.relative_to(root).as_posix() if root.is_dir() else path.name
            files.append(InputFile(path, f"{source.label}/{relative}", path.stat().st_size, source, None))
    if not sources if environment.enabled is None else environment.enabled:
        found = find_environment_files(environment)
        same = sorted(set(labels) & {item.id.partition("/")[0] for item in found})
        if same:
            raise RecipeError(f"sources.name = {same[0]!r} is also a package of the environment; give another name")
        files.extend(InputFile(item.path, item.id, item.n_bytes, None, item) for item in found)
    if not files:
        raise DataError("sources: the recipe names none and environment.enabled = false; add [[sources]] with a path")
    return sorted(files, key=lambda item: item.id)


def read_tasks(files: list[InputFile], folder: Path, options: ReadOptions) -> list[Task]:
    """Files shared out to tasks of a few MB, each named after its files."""
    tasks, group, size = [], [], 0
    for item in files:
        group.append(item)
        size += item.n_bytes
        if size >= TASK_BYTES or item is files[-1]:
            name = fingerprint([one.id for one in group])
            tasks.append(Task(name, (group, folder, name, options), size))
            group, size = [], 0
    return tasks


def read_files(files: list[InputFile], folder: Path, name: str, options: ReadOptions) -> dict[str, Any]:
    """Task: read files, write runs `NAME-NUMBER.arrow`, summarise what came in."""
    import pyarrow as pa

    tally, bad, inputs = Tally(), list[BadRecord](), list[dict[str, Any]]()
    packages: Counter[tuple[str, str]] = Counter()
    runs, rows, size = [], list[dict[str, str]](), 0

    def flush() -> None:
        path = folder / f"{name}-{len(runs)}.arrow"
        write_run(path, pa.Table.from_pylist(rows, schema=document_schema()), options.n_partitions)
        runs.append(path.name)
        rows.clear()

    for item in files:
        try:
            sha256 = file_sha256(item.path)
        except OSError as error:
            bad.append(BadRecord(item.id, f"can't be read: {error.strerror or error}"))
            continue
        inputs.append({"id": item.id, "n_bytes": item.n_bytes, "sha256": sha256, "license": item.license})
        for document in _documents(item, bad.append):
            for row in _rows(document, options):
                text_bytes = len(row["text"].encode())
                rows.append(row)
                size += text_bytes
                tally.keep(row, text_bytes)
                if item.environment:
                    packages[row["source"], row["domain"]] += text_bytes
                if size >= RUN_BYTES:
                    flush()
                    size = 0
    if rows or not runs:
        flush()
    with (folder / f"{name}.quarantine.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(map(quarantine_line, bad))
    return {
        "runs": runs,
        "inputs": inputs,
        "n_bad": sum(not record.kept for record in bad),
        "n_repaired": sum(record.kept for record in bad),
        "bad": [[record.origin, record.reason] for record in bad if not record.kept][:5],
        "packages": [[source, domain, count] for (source, domain), count in sorted(packages.items())],
        "tally": tally.plain(),
    }


def gather(partition: int, runs: list[Path], folder: Path, rule: SplitRule, sample: float) -> dict[str, Any]:
    """Task: one partition of the table of documents, out of all runs; of training documents only a sample."""
    import pyarrow as pa

    tally, rows = Tally(), read_runs(runs, partition)
    splits, priorities = rule.splits_and_priorities(rows)
    rows = rows.append_column("split", pa.array(splits, pa.string()))
    rows = rows.append_column("priority", pa.array(priorities, pa.int32()))
    if sample < 1.0:
        limit = f"{int(sample * 2**32):08x}"  # keys are hashes: those below it are as good as drawn at random
        taken = [s == "valid" or k < limit for s, k in zip(splits, rows["key"].to_pylist(), strict=True)]
        rows = rows.filter(pa.array(taken, pa.bool_()))
        for row in rows.select(["domain", "lang", "text"]).to_pylist():
            tally.keep(row, len(row["text"].encode()))
    write_partition(folder, partition, rows)
    return {"n_rows": rows.num_rows, "tally": tally.plain()}


def write_quarantine(path: Path, found: list[BadRecord], folder: Path, tasks: list[Task]) -> None:
    """All records that were set aside or repaired: those of the folders, then in the order of the files."""
    with path.open("wb") as out:
        out.writelines(quarantine_line(record).encode() for record in sorted(found, key=lambda record: record.origin))
        for task in tasks:
            with (folder / f"{task.name}.quarantine.jsonl").open("rb") as part:
                shutil.copyfileobj(part, out)


def quarantine_line(record: BadRecord) -> str:
    found = {"origin": record.origin, "reason": record.reason, "n_bytes": record.n_bytes, "repaired": record.kept}
    return json.dumps(found, ensure_ascii=False) + "\n"


def _documents(item: InputFile, on_bad: Callable[[BadRecord], None]) -> Iterator[Document]:
    if item.environment:
        yield from read_environment_file(item.environment, on_bad)
    elif item.source:
        yield from read_file(item.path, item.id, item.source, on_bad)


def _rows(document: Document, options: ReadOptions) -> Iterator[dict[str, str]]:
    pieces = cut_pieces(normalise(document.text, options.unicode_form), int(options.max_piece_kb * 1000))
    for number, piece in enumerate(pieces):
        named = replace(document, id=f"{document.id}#{number}") if len(pieces) > 1 else document
        yield {
            "key": document_key(document.domain, piece),
            "origin": named.id,
            "source": document.source,
            "domain": document.domain,
            "lang": document.lang,
            "license": document.license,
            "text": piece,
        }
