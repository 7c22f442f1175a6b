"""Sources -> a clean corpus folder, in one deterministic pass: read, normalise, cut, filter, split, deduplicate, write.

Out: `train/DOMAIN.jsonl.zst`, `valid/DOMAIN.jsonl.zst`, `quarantine.jsonl` (records that could not be read) and
`manifest.json` (hash, licence and size of every input and output file, and what each rule dropped). The folder is
made under another name and renamed when complete. Documents are split into training and validation as a whole, before
they are cut into pieces; a training piece that nearly equals a validation piece is the one that goes.
"""

import hashlib
import json
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.corpus.clean import CleanOptions, normalise, reason_to_drop
from isoflop.corpus.dedup import DedupOptions, deduplicate, minhash_signatures, shared_lines
from isoflop.corpus.environment import (
    EnvironmentFile,
    EnvironmentOptions,
    choose_held_out,
    environment_versions,
    find_environment_files,
    read_environment_file,
)
from isoflop.corpus.folder import new_folder, read_manifest, require_replaceable
from isoflop.corpus.passkey import PasskeyOptions, passkey_documents
from isoflop.corpus.sources import BadRecord, Document, SourceOptions, find_files, read_file, write_documents
from isoflop.errors import DataError, RecipeError
from isoflop.recipe import to_tree, write_json

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""on_progress(what, done, total): bytes of input files."""

JOB_BYTES = 1_000_000  # assumption: small enough to share out evenly
PARALLEL_FROM_BYTES = 6_000_000  # assumption: below this, starting processes costs more than it saves


@dataclass(frozen=True)
class SplitOptions:
    """Validation share of user sources, and the size of pieces."""

    valid_fraction: float = 0.05
    """Share of the documents of a source with split = "auto" that go to validation, by a hash of their origin."""
    max_piece_kb: float = 50.0
    """Longer documents are cut at paragraph ends; kilobytes."""


@dataclass(frozen=True)
class CorpusRecipe:
    """What `isoflop corpus` reads."""

    sources: tuple[SourceOptions, ...] = ()
    """User files and folders."""
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    clean: CleanOptions = field(default_factory=CleanOptions)
    dedup: DedupOptions = field(default_factory=DedupOptions)
    passkey: tuple[PasskeyOptions, ...] | None = None
    """Passkey documents as further domains; they are made, not read, so no rule drops any of them."""
    workers: int = 0
    """Processes; 0: one per core, at most 8, and none for small inputs. Changes nothing in the result."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    id: str
    n_bytes: int
    source: SourceOptions | None
    environment: EnvironmentFile | None


@dataclass(slots=True)
class _Read:
    documents: list[Document] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    """Per document how it is split: "package", or the `split` of its source."""
    signatures: list[np.ndarray] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)
    inputs: list[dict[str, Any]] = field(default_factory=list)


def build_corpus(recipe: CorpusRecipe, out: str | Path, *, on_progress: Progress | None = None) -> dict[str, Any]:
    """Build the corpus and return its manifest. A folder that the same recipe made from the same files is kept.

    Raises:
        DataError: no input, or nothing that can be read, or nothing left for training or validation.
        RecipeError: values that contradict each other.
    """
    out = Path(out)
    if not 0.0 <= recipe.split.valid_fraction < 1.0:
        raise RecipeError(
            f"split.valid_fraction = {recipe.split.valid_fraction} must lie in [0, 1); 0.05 holds out one in twenty"
        )
    files = _find_inputs(recipe)
    recipe_sha256 = _recipe_identity(recipe, files)
    if (out / "manifest.json").is_file():
        found = read_manifest(out, "isoflop corpus RECIPE")
        complete = all((out / item["path"]).is_file() for item in found.get("files", []))
        if complete and found.get("recipe_sha256") == recipe_sha256:
            log.info("%s is up to date: same recipe, same files", out)
            return {**found, "reused": True}
    require_replaceable(out, "corpus_sha256")
    read = _read_all(files, recipe, on_progress)
    if not read.documents:
        raise DataError(
            f"sources: no usable document in {len(files)} files ({len(read.bad)} records could not be read, dropped by "
            f"rule: {_by_rule(read.drops) or 'none'}); first problem: {read.bad[0] if read.bad else 'none'}; "
            "check the paths and text_key"
        )
    splits, held_out = _splits(read, recipe)
    manifest = {
        "recipe_sha256": recipe_sha256,
        "recipe": to_tree(replace(recipe, workers=0)),
        "packages": environment_versions([item.environment for item in files if item.environment]),
        "held_out": sorted(held_out),
        "n_bad_records": len(read.bad),
    }
    kept, manifest["duplicates"] = _deduplicated(read, splits, recipe.dedup)
    manifest["drops"] = _drop_table(read.drops)
    for options in recipe.passkey or ():
        kept += passkey_documents(options)
    with new_folder(out, "corpus_sha256") as work:
        manifest["files"] = list(_write_splits(kept, work))
        _require_both_splits(manifest["files"])
        manifest["corpus_sha256"] = _digest(item["sha256"] for item in manifest["files"])
        manifest["n_documents"] = sum(item["n_documents"] for item in manifest["files"])
        manifest["n_bytes"] = sum(item["n_bytes"] for item in manifest["files"])
        manifest["licenses"] = _licences(kept)
        manifest["inputs"] = read.inputs
        lines = [json.dumps({"origin": bad.origin, "reason": bad.reason}) + "\n" for bad in read.bad]
        (work / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
        write_json(work / "manifest.json", manifest)
    log.info("wrote %s: %d documents, %.1f MB", out, manifest["n_documents"], manifest["n_bytes"] / 1e6)
    return {**manifest, "reused": False}


def cut_pieces(text: str, max_bytes: int) -> list[str]:
    """Cut at paragraph ends into pieces of at most `max_bytes`; joined they are the text.

    Where to cut depends on the paragraph just passed (one in eight may end a piece, by its hash), so two editions of
    a book fall into the same pieces again after they differed, and the near-duplicate search can find them.
    """
    if len(text) * 4 <= max_bytes or len(text.encode()) <= max_bytes:
        return [text]
    pieces, piece, size = [], [], 0
    for paragraph in _paragraphs(text, max_bytes):
        n_bytes = len(paragraph.encode())
        if size + n_bytes > max_bytes:
            pieces.append("".join(piece))
            piece, size = [], 0
        piece.append(paragraph)
        size += n_bytes
        if size > max_bytes // 4 and zlib.crc32(paragraph.strip().encode()) % 8 == 0:
            pieces.append("".join(piece))
            piece, size = [], 0
    if piece:
        pieces.append("".join(piece))
    return pieces


def _find_inputs(recipe: CorpusRecipe) -> list[_File]:
    labels = Counter(source.label for source in recipe.sources)
    repeated = [label for label, count in labels.items() if count > 1]
    if repeated:
        raise RecipeError(f"sources.name = {repeated[0]!r} is used twice; give each source a name of its own")
    files = []
    for source in recipe.sources:
        root = Path(source.path)
        for path in find_files(source):
            relative = path.relative_to(root).as_posix() if root.is_dir() else path.name
            files.append(_File(path, f"{source.label}/{relative}", path.stat().st_size, source, None))
    enabled = not recipe.sources if recipe.environment.enabled is None else recipe.environment.enabled
    if enabled:
        files.extend(
            _File(item.path, item.id, item.n_bytes, None, item) for item in find_environment_files(recipe.environment)
        )
    if not files:
        raise DataError("sources: the recipe names none and environment.enabled = false; add [[sources]] with a path")
    return files


def _recipe_identity(recipe: CorpusRecipe, files: list[_File]) -> str:
    stats = [(item.id, item.n_bytes, item.path.stat().st_mtime_ns) for item in files]
    # `workers` changes nothing in the content
    return _digest([json.dumps(to_tree(replace(recipe, workers=0)), sort_keys=True), json.dumps(stats)])


def _read_all(files: list[_File], recipe: CorpusRecipe, on_progress: Progress | None) -> _Read:
    jobs = list(_jobs(files))
    total, done = sum(item.n_bytes for item in files), 0
    work = partial(_read_job, recipe=recipe)
    workers = recipe.workers or (min(8, cpu_count() or 1) if total >= PARALLEL_FROM_BYTES else 1)
    result = _Read()

    def collect(parts: Iterable[_Read]) -> None:
        nonlocal done
        for job, part in zip(jobs, parts):
            result.documents += part.documents
            result.rules += part.rules
            result.signatures += part.signatures
            result.bad += part.bad
            result.drops.update(part.drops)
            result.inputs += part.inputs
            done += sum(item.n_bytes for item in job)
            if on_progress:
                on_progress("corpus", done, total)

    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            collect(pool.map(work, jobs))
    else:
        collect(map(work, jobs))
    return result


def _jobs(files: list[_File]) -> Iterator[list[_File]]:
    job, size = [], 0
    for item in files:
        job.append(item)
        size += item.n_bytes
        if size >= JOB_BYTES:
            yield job
            job, size = [], 0
    if job:
        yield job


def _read_job(job: list[_File], recipe: CorpusRecipe) -> _Read:
    """Everything that depends on one document alone, so that processes can share the work."""
    result, max_bytes = _Read(), int(recipe.split.max_piece_kb * 1000)
    for item in job:
        with item.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        licence = item.environment.license if item.environment else item.source.license if item.source else ""
        result.inputs.append({"id": item.id, "n_bytes": item.n_bytes, "sha256": sha256, "license": licence})
        rule = item.source.split if item.source else "package"
        for document in _documents(item, result.bad.append):
            text = normalise(document.text, recipe.clean.unicode_form)
            pieces = cut_pieces(text, max_bytes)
            for number, piece in enumerate(pieces):
                reason = reason_to_drop(piece, document.domain, recipe.clean)
                if reason:
                    result.drops[document.domain, reason] += 1
                    continue
                name = f"{document.id}#{number}" if len(pieces) > 1 else document.id
                result.documents.append(replace(document, id=name, text=piece))
                result.rules.append(rule)
    if recipe.dedup.near and result.documents:
        result.signatures.append(minhash_signatures([item.text for item in result.documents], recipe.dedup))
    return result


def _documents(item: _File, on_bad: Callable[[BadRecord], None]) -> Iterator[Document]:
    if item.environment:
        yield from read_environment_file(item.environment, on_bad)
    elif item.source:
        yield from read_file(item.path, item.id, item.source, on_bad)


def _splits(read: _Read, recipe: CorpusRecipe) -> tuple[list[str], set[str]]:
    """Split of each document, and the packages held out."""
    n_bytes: dict[tuple[str, str], int] = defaultdict(int)
    for document, rule in zip(read.documents, read.rules):
        if rule == "package":
            n_bytes[document.source, document.domain] += len(document.text.encode())
    held_out = choose_held_out(n_bytes, recipe.environment.valid_share) if n_bytes else set()
    limit = int(recipe.split.valid_fraction * 2**64)

    def split(document: Document, rule: str) -> str:
        if rule == "package":
            return "valid" if document.source in held_out else "train"
        if rule == "auto":  # by the whole document: all its pieces have the same source
            number = int.from_bytes(hashlib.blake2b(document.source.encode(), digest_size=8).digest(), "big")
            return "valid" if number < limit else "train"
        return rule

    return list(map(split, read.documents, read.rules)), held_out


def _deduplicated(
    read: _Read, splits: list[str], options: DedupOptions
) -> tuple[list[tuple[str, Document]], dict[str, Any]]:
    # validation first: the earliest document of a cluster survives
    order = sorted(range(len(splits)), key=lambda index: splits[index] != "valid")
    signatures = np.concatenate(read.signatures)[order] if options.near else None
    found = deduplicate([read.documents[i] for i in order], options, signatures=signatures)
    kept = [(splits[i], read.documents[i]) for i, keep in zip(order, found.keep) if keep]
    held_out = [document for split, document in kept if split == "valid"]
    shares = shared_lines((document for _, document in kept), held_out)
    quoted = [split == "train" and share > options.max_shared_share for (split, _), share in zip(kept, shares)]
    kept = [item for item, drop in zip(kept, quoted) if not drop]
    leaked = sum(
        splits[i] == "train" and splits[order[cluster]] == "valid"
        for i, cluster, keep in zip(order, found.cluster, found.keep)
        if not keep
    )
    return kept, {
        "exact": found.n_exact,
        "near": found.n_near,
        "of_them_train_like_valid": int(leaked),
        "train_quotes_valid": sum(quoted),
    }


def _write_splits(kept: list[tuple[str, Document]], out: Path) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Document]] = defaultdict(list)
    for split, document in kept:
        groups[split, document.domain].append(document)
    for split, domain in sorted(groups):
        documents, path = groups[split, domain], f"{split}/{domain}.jsonl.zst"
        write_documents(out / path, documents)
        yield {
            "split": split,
            "domain": domain,
            "path": path,
            "n_documents": len(documents),
            "n_bytes": sum(len(document.text.encode()) for document in documents),
            "sha256": _digest(f"{document.id}\0{document.text}" for document in documents),  # content, not compression
        }


def _require_both_splits(files: list[dict[str, Any]]) -> None:
    for split, way_out in (
        ("train", "lower split.valid_fraction, or give more documents"),
        ("valid", 'raise split.valid_fraction, give more documents, or add a source with split = "valid"'),
    ):
        if not any(item["split"] == split for item in files):
            raise DataError(f"sources: no document is left for {split}; {way_out}")


def _paragraphs(
    text: str, max_bytes: int, separators: tuple[str, ...] = ("\n\n", "\n", ". ", "\u3002")
) -> Iterator[str]:
    """Paragraphs with the blank line after them; what is longer than `max_bytes` is cut at line or sentence ends."""
    if not separators:
        step = max(1, max_bytes // 4)  # a character has at most four bytes
        yield from (text[start : start + step] for start in range(0, len(text), step))
        return
    first, *others = separators
    *parts, last = text.split(first)
    for part in [part + first for part in parts] + [last] * bool(last):
        if len(part.encode()) <= max_bytes:
            yield part
        else:
            yield from _paragraphs(part, max_bytes, tuple(others))


def _by_rule(drops: Counter[tuple[str, str]]) -> str:
    counts: Counter[str] = Counter()
    for (_, rule), count in drops.items():
        counts[rule] += count
    return ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items()))


def _drop_table(drops: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = defaultdict(dict)
    for (domain, rule), count in sorted(drops.items()):
        table[domain][rule] = count
    return dict(table)


def _licences(kept: list[tuple[str, Document]]) -> dict[str, int]:
    return dict(sorted(Counter(document.license or "not stated" for _, document in kept).items()))


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()
