"""Which items of a benchmark stand in the training text, as the corpus filter would find them, and the rest's scores.

In: items with the strings of their rows, and training text: folders of `isoflop corpus build` and `isoflop tokens`, run
folders, which name what they were trained on, or plain text. Out: True, False or None for each item, where None says
that all its texts are too short to be looked for. Whoever decontaminates a corpus and whoever measures what is left
use one code, `isoflop.corpus.filter.decontaminate`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.corpus.document import BadRecord, SourceOptions
from isoflop.corpus.filter.decontaminate import (
    BenchmarkOptions,
    DecontaminateOptions,
    index_texts,
    overlap,
    read_benchmark,
)
from isoflop.corpus.filter.quality import blocks_of
from isoflop.corpus.read.sources import find_files, kind_of, read_file, read_texts
from isoflop.corpus.tables.output_folder import read_manifest
from isoflop.errors import DataError
from isoflop.evaluation.grade import Graded, summarise
from isoflop.evaluation.recipe import ContaminationSection
from isoflop.evaluation.tasks.task import Item
from isoflop.recipe import read_tree
from isoflop.tokens.shards import TokenSet

KEY = "contamination.train_text"
AT_ONCE = 1 << 24
"""Tokens of a shard that are searched for document borders together."""


@dataclass(frozen=True)
class Marks:
    """What was found for all tasks."""

    by_task: Mapping[str, Sequence[bool | None]]
    """Of each item: in the training text, not in it, or too short to be looked for."""
    text: Sequence[Mapping[str, Any]]
    """What was read: {path, kind, n_documents, n_chars, n_bad}."""


@dataclass
class TrainText:
    """One piece of training text; what was read of it is counted while it is read."""

    path: Path
    kind: str
    """corpus, tokens or text."""
    n_documents: int = 0
    n_chars: int = 0
    n_bad: int = 0
    """Records of a text that could not be read."""

    def documents(self) -> Iterator[str]:
        """Its training documents.

        Raises:
            DataError: damaged, or no document in it.
        """
        read = {"corpus": self._corpus, "tokens": self._tokens, "text": self._text}[self.kind]
        for text in read():
            self.n_documents += 1
            self.n_chars += len(text)
            yield text
        if not self.n_documents:
            raise DataError(f"{KEY}: {self.path} has no training document; give the text that the run was trained on")

    def as_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("n_documents", "n_chars", "n_bad")}
        return {"path": str(self.path.resolve()), "kind": self.kind, **counts}

    def _corpus(self) -> Iterator[str]:
        for item in read_manifest(self.path, "isoflop corpus build RECIPE")["files"]:
            if item["split"] == "train":
                yield from read_texts(self.path / item["path"])

    def _tokens(self) -> Iterator[str]:
        tokens = TokenSet.open(self.path)
        for domain in tokens.domains("train"):
            for ids in _split(tokens.tokens("train", domain), tokens.tokenizer.bos_id):
                yield tokens.tokenizer.decode_bytes(ids.tolist()).decode("utf-8", "replace")

    def _text(self) -> Iterator[str]:
        source = SourceOptions(str(self.path))

        def on_bad(bad: BadRecord) -> None:
            self.n_bad += not bad.kept

        for path in find_files(source, on_bad):
            if kind_of(path) in ("json", "jsonl", "csv"):
                try:
                    yield from _strings(path)
                except DataError as error:
                    raise DataError(str(error).replace("decontaminate.benchmarks", KEY)) from error
            else:
                yield from (one.text for one in read_file(path, str(path), source, on_bad))


def _strings(path: Path) -> Iterator[str]:
    """What stands under `text`; where nothing does, as in conversations, every string."""
    texts = read_benchmark(BenchmarkOptions("", str(path), ("text",)))
    first = next(texts, None)
    if first is None:
        yield from read_benchmark(BenchmarkOptions("", str(path)))
        return
    yield first
    yield from texts


def _split(ids: np.ndarray, begin_id: int) -> Iterator[np.ndarray]:
    """Documents of a shard: each begins with `begin_id`."""
    start = 0
    for first in range(0, len(ids), AT_ONCE):
        for begin in (first + np.flatnonzero(ids[first : first + AT_ONCE] == begin_id)).tolist():
            if begin > start:
                yield ids[start:begin]
            start = begin
    if start < len(ids):
        yield ids[start:]


def find_text(paths: Sequence[str | Path]) -> list[TrainText]:
    """What these paths stand for, each piece once; a run stands for what it and the run it began with were trained on.

    Raises:
        DataError: a path that is not there, or a run that does not say what it was trained on.
    """
    found: dict[Path, TrainText] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{KEY} = {str(path)!r} does not exist; give a corpus, tokens or run folder, or text")
        if (path / "recipe.toml").is_file():
            pieces = find_text(_trained_on(path))
        elif (path / "manifest.json").is_file():
            manifest = read_manifest(path, "isoflop corpus build RECIPE")
            kind = "tokens" if "shards" in manifest else "corpus" if "corpus_sha256" in manifest else "text"
            pieces = [TrainText(path, kind)]
        else:
            pieces = [TrainText(path, "text")]
        for piece in pieces:
            found.setdefault(piece.path.resolve(), piece)
    return list(found.values())


def _trained_on(run: Path) -> list[str]:
    tree = read_tree(run / "recipe.toml")
    data, initial = tree.get("data", {}), tree.get("initial", {})
    base = initial.get("run") or (Path(initial["checkpoint"]).parents[1] if "checkpoint" in initial else "")
    train = data.get("train", [])
    paths = [str(path) for path in (data.get("tokens"), *([train] if isinstance(train, str) else train), base) if path]
    if not paths:
        raise DataError(f"{KEY}: {run} does not say what it was trained on (an imported one?); name its text itself")
    return paths


def mark(
    tasks: Mapping[str, Sequence[Item]],
    section: ContaminationSection,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Marks:
    """Look for the texts of all items in the training text; one run in common marks an item.

    Raises:
        DataError: training text that is missing, damaged or empty.
        KeyboardInterrupt: it was asked to stop.
    """
    pieces = find_text(section.train_text)
    s = section
    options = DecontaminateOptions(n_words=s.n_words, n_chars=s.n_chars, min_words=s.min_words, min_chars=s.min_chars)
    places: dict[str, int] = {}
    for items in tasks.values():
        for item in items:
            for text in item.texts:
                places.setdefault(text, len(places))
    benchmarks, (numbers,) = index_texts([("items", list(places))], options)
    is_found = np.zeros(sum(benchmarks.n_texts), dtype=bool)
    for at, piece in enumerate(pieces):
        for block in blocks_of(piece.documents()):
            is_found[overlap(block, benchmarks).texts] = True
            if on_progress:
                on_progress(f"training text: {piece.path.name}, {piece.n_chars / 1e6:,.1f} MB", at, len(pieces))
            if should_stop():
                raise KeyboardInterrupt

    def one(item: Item) -> bool | None:
        known = numbers[[places[text] for text in item.texts]] if item.texts else np.empty(0, dtype=np.int64)
        known = known[known >= 0]
        return bool(is_found[known].any()) if len(known) else None

    by_task = {name: [one(item) for item in items] for name, items in tasks.items()}
    return Marks(by_task, [piece.as_dict() for piece in pieces])


def clean_scores(
    items: Sequence[Item], graded: Sequence[Graded | None], marks: Sequence[bool | None]
) -> dict[str, Any]:
    """{n_contaminated, share, n_too_short, clean: {METRIC: {value, low, high, n}}} of one task.

    `clean` has the items that were looked for and not found; `share` is of those that were looked for.
    """
    n_contaminated, n_too_short = sum(m is True for m in marks), sum(m is None for m in marks)
    n_looked_for = len(items) - n_too_short
    kept = [(item, one) for item, one, m in zip(items, graded, marks, strict=True) if m is False]
    found = summarise([item for item, _ in kept], [one for _, one in kept])
    return {
        "n_contaminated": n_contaminated,
        "share": n_contaminated / n_looked_for if n_looked_for else None,
        "n_too_short": n_too_short,
        "clean": {metric: interval._asdict() for metric, interval in found.items()},
    }
