"""The last stages: partitions -> frames of every output file -> the corpus folder.

A task writes, for one partition, a compressed file of JSON lines per split and domain; a file of the corpus is those
one after the other, in order of the partitions and so of the keys, compressed as one frame: some readers stop after
the first. Nothing is sorted or held in memory, and the bytes depend on the documents alone.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

from isoflop.corpus.tables.stages import Task
from isoflop.errors import DataError

LEVEL = 3
FRAME_LEVEL = 1
"""Of what is read once more and then removed."""


class Frames:
    """Frames of one partition, one per split and domain; they count and hash what they hold."""

    def __init__(self, folder: Path, partition: int):
        self.folder = folder / f"part-{partition:05d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[tuple[str, str], _Frame] = {}

    def add(self, row: Mapping[str, str]) -> None:
        name = row["split"], row["domain"]
        if name not in self._open:
            self._open[name] = _Frame(self.folder / f"{name[0]}.{name[1]}.zst")
        self._open[name].add(row)

    def close(self) -> list[dict[str, Any]]:
        """Finish the frames; what each holds."""
        return [
            {"split": split, "domain": domain, "path": str(frame.path), **frame.close()}
            for (split, domain), frame in sorted(self._open.items())
        ]


class _Frame:
    def __init__(self, path: Path):
        self.path = path
        self.n_documents = self.n_bytes = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")  # a killed writer may still be at it
        self._file = self._temporary.open("wb")
        self._writer = zstandard.ZstdCompressor(level=FRAME_LEVEL).stream_writer(self._file)

    def add(self, row: Mapping[str, str]) -> None:
        record = {"id": row["origin"], "text": row["text"], "source": row["source"]}
        record |= {"lang": row["lang"], "license": row["license"]}
        self._writer.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.n_documents += 1
        self.n_bytes += len(row["text"].encode())

    def close(self) -> dict[str, Any]:
        self._writer.close()
        self._temporary.replace(self.path)
        return {"n_documents": self.n_documents, "n_bytes": self.n_bytes}


def join_tasks(summaries: list[dict[str, Any]], out: Path) -> list[Task]:
    """A task per file of the corpus."""
    parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for item in (frame for found in summaries for frame in found["frames"]):
        parts[item["split"], item["domain"]].append(item)
    return [
        Task(f"{split}.{domain}", (split, domain, items, out), sum(item["n_bytes"] for item in items))
        for (split, domain), items in sorted(parts.items())
    ]


def join_frames(split: str, domain: str, parts: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Task: one file of the corpus from its frames, and its entry in the manifest."""
    path = f"{split}/{domain}.jsonl.zst"
    (out / split).mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with (out / path).open("wb") as file, zstandard.ZstdCompressor(level=LEVEL).stream_writer(file) as writer:
        for part in parts:
            with Path(part["path"]).open("rb") as source:
                for block in zstandard.ZstdDecompressor().read_to_iter(source, read_size=1 << 20):
                    digest.update(block)
                    writer.write(block)
    return {
        "split": split,
        "domain": domain,
        "path": path,
        "n_documents": sum(part["n_documents"] for part in parts),
        "n_bytes": sum(part["n_bytes"] for part in parts),
        "sha256": digest.hexdigest(),  # of the lines: content, not compression
    }


def require_both_splits(files: list[dict[str, Any]], dropped: Mapping[str, int]) -> None:
    """Raises DataError, with what went by rule, where nothing is left to train or to validate on."""
    for split, way_out in (
        ("train", "loosen the rule that drops most, lower split.valid_fraction, or give more documents"),
        ("valid", 'raise split.valid_fraction, give more documents, or add a source with split = "valid"'),
    ):
        if not any(item["split"] == split and item["n_documents"] for item in files):
            raise DataError(f"sources: no document is left for {split} (dropped by rule: {shown(dropped)}); {way_out}")


def shown(dropped: Mapping[str, int]) -> str:
    """Counts by rule in one line, the largest first."""
    items = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{rule} {count}" for rule, count in items) or "none"
