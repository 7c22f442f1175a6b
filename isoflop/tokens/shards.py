"""Token shards: one memory-mapped file of integers per split and domain, and the manifest that vouches for them.

In: a corpus folder (`train/DOMAIN.jsonl.zst`, `valid/DOMAIN.jsonl.zst`). Out: a folder with `tokenizer.json`,
`manifest.json` and `SPLIT.DOMAIN.bin`. Each document is stored as BOS, its text tokens, EOS (isoflop.tokens.documents
says what else a training document may become). The manifest counts the text bytes of each shard, so that bits per byte
are exact, and hashes everything; the held-out text also as text, so that two tokenizers know that they are measured on
the same one.
"""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.corpus.blocks import blocks
from isoflop.corpus.read.sources import read_texts
from isoflop.corpus.tables.output_folder import Made, new_folder, read_manifest
from isoflop.corpus.tables.stages import Progress
from isoflop.errors import DataError, undamaged
from isoflop.recipe import NotNegativeInt, Positive, PositiveInt, Processes, to_tree, write_json
from isoflop.run import file_sha256
from isoflop.tokens.bpe import Tokenizer, train_tokenizer
from isoflop.tokens.documents import DocumentOptions, Texts, encode_documents
from isoflop.tokens.documents import check as check_documents
from isoflop.tokens.fast.count import TooVaried
from isoflop.tokens.rules import Rules

log = logging.getLogger(__name__)

CHUNK_CHARS = 1_000_000  # assumption: a fraction of a second of work
MADE = Made("data_sha256", "shards", ("tokenizer.json", "tokenizer_config.json"))
PARALLEL_FROM_BYTES = 10_000_000  # assumption: below this, starting processes costs more than it saves


@dataclass(frozen=True)
class TokenizerOptions:
    """Size and training sample of the tokenizer."""

    vocab_size: PositiveInt = 100_000
    """Ordinary tokens: 256 bytes plus merges. Paper: 100,000."""
    n_reserved: NotNegativeInt = 13
    """Further special tokens, for later stages. Paper: 15 special tokens in all."""
    padded_vocab_size: NotNegativeInt | None = None
    """Rows of the model's embedding and head; left out or 0: vocab_size and special tokens, rounded up to pad_multiple,
    but 102,400 (paper) where it is left out for the paper's vocab_size of 100,000."""
    pad_multiple: PositiveInt = 64
    """Used where padded_vocab_size is left out or 0."""
    sample_mb: Positive = 200.0
    """Text for training the merges, taken evenly from the training documents of all domains; megabytes."""
    min_frequency: PositiveInt = 2
    """A merge must be seen this often."""
    rules: Rules = "v1"
    """Where no merge may cross: v1 is DeepSeek LLM's cuts, v3 is DeepSeek-V3's (digits in threes, punctuation joined
    with line breaks)."""
    fim_tokens: bool = False
    """Three special tokens for fill-in-the-middle after BOS and EOS."""
    chat_tokens: bool = False
    """Two special tokens that mark turns, so that chats are laid out as DeepSeek-V3's; else as DeepSeek LLM's."""


def with_padding(options: TokenizerOptions) -> TokenizerOptions:
    """The options with padded_vocab_size filled in."""
    if options.padded_vocab_size is not None:
        return options
    return replace(options, padded_vocab_size=102_400 if options.vocab_size == 100_000 else 0)


@dataclass(frozen=True)
class TokensRecipe:
    """What `isoflop tokens` reads."""

    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    documents: DocumentOptions = field(default_factory=DocumentOptions)
    reuse_tokenizer: str = ""
    """Folder with a trained tokenizer to use instead of training one."""
    workers: Processes = 0
    """Processes that encode; 0: one per core, at most 16, and none for small inputs. Changes nothing in the result."""


@dataclass(frozen=True)
class Shard:
    """One line of the manifest."""

    split: str
    domain: str
    path: str
    n_tokens: int
    n_bytes: int
    n_documents: int
    sha256: str

    @property
    def bytes_per_text_token(self) -> float:
        """Compression: BOS and EOS, two a document, are not counted."""
        return self.n_bytes / max(self.n_tokens - 2 * self.n_documents, 1)


def build_tokens(
    corpus: str | Path, out: str | Path, recipe: TokensRecipe, *, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Train (or reuse) a tokenizer, encode the corpus, return the manifest. A finished `out` is used as it is.

    Raises:
        DataError: no corpus there, a vocabulary larger than it supports, a split without documents.
    """
    corpus, out = Path(corpus), Path(out)
    recipe = replace(recipe, tokenizer=with_padding(recipe.tokenizer))
    manifest = read_manifest(corpus, "isoflop corpus build RECIPE")
    if "corpus_sha256" not in manifest or "files" not in manifest:
        raise DataError(f"--corpus {corpus} is not a corpus; give a folder of isoflop corpus build")
    with undamaged(f"{corpus}/manifest.json", DataError, "delete the folder, then: isoflop corpus build RECIPE"):
        files = [dict(item) for item in manifest["files"] if item["n_documents"] > 0]
    made_from: dict[str, Any] = {
        "corpus_sha256": manifest["corpus_sha256"],
        "tokenizer": to_tree(recipe.tokenizer),
        "documents": to_tree(recipe.documents),
    }
    if recipe.reuse_tokenizer:
        made_from["tokenizer"] = {"sha256": Tokenizer.load(recipe.reuse_tokenizer).sha256}
    if (out / "manifest.json").is_file():
        found = read_manifest(out, "isoflop tokens RECIPE")
        complete = all(path.is_file() for path in MADE.files(out, found))
        if complete and _with_defaults(found.get("made_from")) == made_from:
            log.info("%s is up to date: same corpus, same tokenizer options", out)
            if "held_out_sha256" not in found:  # written by an older version
                found["held_out_sha256"] = held_out_sha256(corpus, files)
                write_json(out / "manifest.json", found)
            return {**found, "reused": True}
    with new_folder(out, MADE) as work:
        if recipe.reuse_tokenizer:
            tokenizer = Tokenizer.load(recipe.reuse_tokenizer)
        else:
            tokenizer = _train(corpus, files, recipe.tokenizer, on_progress)
        check_documents(recipe.documents, tokenizer)
        tokenizer.save(work)
        n_bytes = sum(item["n_bytes"] for item in files)
        with _encoder(tokenizer, recipe.documents, work, n_bytes, recipe.workers) as encode:
            shards = list(_write_shards(corpus, files, tokenizer, work, encode, on_progress))
        data_sha256 = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
        result = {
            "tokenizer_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "n_tokenizer_tokens": tokenizer.n_tokens,
            "dtype": _dtype(tokenizer).name,
            "data_sha256": data_sha256,
            "held_out_sha256": held_out_sha256(corpus, files),
            "shards": [asdict(shard) for shard in shards],
            "bytes_per_token": sum(s.n_bytes for s in shards) / sum(s.n_tokens for s in shards),
            "compression": {f"{s.split} {s.domain}": s.bytes_per_text_token for s in shards},
            "made_from": made_from,
        }
        write_json(work / "manifest.json", result)
    log.info("wrote %s: %d tokens", out, sum(shard.n_tokens for shard in shards))
    return {**result, "reused": False}


class TokenSet:
    """A folder of shards, opened. `tokens(split, domain)` is a memory map."""

    def __init__(self, folder: Path, manifest: dict[str, Any], tokenizer: Tokenizer):
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.shards = [Shard(**item) for item in manifest["shards"]]
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.data_sha256: str = manifest["data_sha256"]
        self.held_out_sha256: str | None = manifest.get("held_out_sha256")

    @classmethod
    def open(cls, folder: str | Path, *, tokenizer_sha256: str = "", verify: bool = False) -> "TokenSet":
        """Open and check sizes and the tokenizer's hash; with `verify` also the hash of every shard.

        `tokenizer_sha256` is the one that a recipe was made for; empty accepts any.

        Raises:
            DataError: missing or damaged files, or a recipe for another tokenizer.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "isoflop tokens RECIPE")
        with undamaged(str(folder / "manifest.json"), DataError, "make the tokens again: isoflop tokens RECIPE"):
            return cls._open(folder, manifest, tokenizer_sha256, verify)

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any], tokenizer_sha256: str, verify: bool) -> "TokenSet":
        tokenizer = Tokenizer.load(folder)
        if tokenizer.sha256 != manifest["tokenizer_sha256"]:
            raise DataError(
                f"{folder}/tokenizer.json has hash {tokenizer.sha256[:16]}, the shards were made with "
                f"{manifest['tokenizer_sha256'][:16]}; make them again: isoflop tokens RECIPE"
            )
        if tokenizer_sha256 and tokenizer_sha256 != tokenizer.sha256:
            raise DataError(
                f"data.tokenizer_sha256: a recipe for another tokenizer: expected {tokenizer_sha256[:16]}, found "
                f"{tokenizer.sha256[:16]} in {folder}; point data.tokens to the right folder or plan again"
            )
        tokens = cls(folder, manifest, tokenizer)
        itemsize = np.dtype(manifest["dtype"]).itemsize
        for shard in tokens.shards:
            path = folder / shard.path
            found = path.stat().st_size if path.is_file() else -1
            if found != shard.n_tokens * itemsize:
                raise DataError(
                    f"{path} has {max(found, 0)} bytes, the manifest says {shard.n_tokens * itemsize}; "
                    "make the tokens again: isoflop tokens RECIPE"
                )
            if verify and file_sha256(path) != shard.sha256:
                raise DataError(f"{path} is damaged: hash differs; make the tokens again: isoflop tokens RECIPE")
        return tokens

    def domains(self, split: str) -> list[str]:
        """Names of the domains that have a shard in `split`, in manifest order."""
        return [shard.domain for shard in self.shards if shard.split == split]

    def shard(self, split: str, domain: str) -> Shard:
        """The manifest's entry. Raises DataError for a domain that is not there."""
        for shard in self.shards:
            if (shard.split, shard.domain) == (split, domain):
                return shard
        known = ", ".join(self.domains(split)) or "none"
        raise DataError(f"domain {domain!r} has no {split} shard in {self.folder}; there are: {known}")

    def tokens(self, split: str, domain: str) -> np.ndarray:
        """Memory map of one shard, read only."""
        shard = self.shard(split, domain)
        return np.memmap(self.folder / shard.path, dtype=self.manifest["dtype"], mode="r")

    def n_tokens(self, split: str) -> int:
        """Tokens in all domains of `split`, BOS and EOS included."""
        return sum(shard.n_tokens for shard in self.shards if shard.split == split)


def held_out_sha256(corpus: Path, files: list[dict[str, Any]]) -> str:
    """SHA-256 of the held-out documents as a set: neither domains, their order nor the tokenizer enter."""
    paths = [corpus / item["path"] for item in files if item["split"] == "valid"]
    digests = sorted(hashlib.sha256(text.encode()).digest() for path in paths for text in read_texts(path))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _train(
    corpus: Path, files: list[dict[str, Any]], options: TokenizerOptions, on_progress: Progress | None
) -> Tokenizer:
    files = [item for item in files if item["split"] == "train"]
    total = sum(item["n_bytes"] for item in files)
    share = min(1.0, options.sample_mb * 1e6 / max(total, 1))
    while True:
        log.info("training %d tokens on %.1f MB", options.vocab_size, total * share / 1e6)
        try:
            return train_tokenizer(
                _sample(corpus, files, share, on_progress),
                options.vocab_size,
                n_reserved=options.n_reserved,
                padded_vocab_size=options.padded_vocab_size or 0,
                pad_multiple=options.pad_multiple,
                min_frequency=options.min_frequency,
                rules=options.rules,
                fim_tokens=options.fim_tokens,
                chat_tokens=options.chat_tokens,
                on_progress=partial(on_progress, "merges") if on_progress else None,
            )
        except TooVaried as error:
            share /= 2
            log.warning("%s: training on half the sample, %.1f MB", error, total * share / 1e6)


def _sample(corpus: Path, files: list[dict[str, Any]], share: float, on_progress: Progress | None) -> Iterator[str]:
    total, done = sum(item["n_bytes"] for item in files), 0
    for item in files:
        kept = 0.0
        for text in read_texts(corpus / item["path"]):
            kept += share
            if kept >= 1.0:  # every 1/share-th document: even and the same every time
                kept -= 1.0
                yield text
        done += item["n_bytes"]
        if on_progress:
            on_progress("tokenizer sample", done, total)


def _write_shards(
    corpus: Path,
    files: list[dict[str, Any]],
    tokenizer: Tokenizer,
    out: Path,
    encode: Callable[[Iterator[Texts]], Iterator[np.ndarray]],
    on_progress: Progress | None,
) -> Iterator[Shard]:
    total, done = sum(item["n_bytes"] for item in files), 0
    for item in files:
        path, digest = f"{item['split']}.{item['domain']}.bin", hashlib.sha256()
        n_tokens = n_bytes = n_documents = 0
        with (out / path).open("wb") as file:
            texts = read_texts(corpus / item["path"])
            for block in encode(_chunks(texts, item["split"], item["domain"])):
                file.write(block.tobytes())
                digest.update(block.tobytes())
                n_tokens += len(block)
                n_documents += int((block == tokenizer.bos_id).sum())
                n_bytes += int(tokenizer.token_bytes[block].sum())
                if on_progress:
                    on_progress("tokens", done + n_bytes, total)
        if n_bytes != item["n_bytes"]:
            raise DataError(
                f"{corpus / item['path']} has {n_bytes} bytes of text, its manifest says {item['n_bytes']}; "
                "build the corpus again: isoflop corpus build RECIPE"
            )
        done += n_bytes
        yield Shard(item["split"], item["domain"], path, n_tokens, n_bytes, n_documents, digest.hexdigest())


@contextmanager
def _encoder(
    tokenizer: Tokenizer, options: DocumentOptions, folder: Path, n_bytes: int, workers: int
) -> Iterator[Callable[[Iterator[Texts]], Iterator[np.ndarray]]]:
    """Texts -> arrays of tokens, in order; by several processes where there is much to do."""
    n = workers or (min(16, cpu_count() or 1) if n_bytes >= PARALLEL_FROM_BYTES else 1)
    if n == 1:
        yield partial(map, partial(_encode, tokenizer, options))
        return
    pool = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_start_worker)

    def in_order(chunks: Iterator[Texts]) -> Iterator[np.ndarray]:
        pending: deque[Future[np.ndarray]] = deque()
        for chunk in chunks:
            pending.append(pool.submit(_encode_in_worker, str(folder), options, chunk))
            if len(pending) > 2 * n:  # bounds the memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    with pool:
        yield in_order


def _encode(tokenizer: Tokenizer, options: DocumentOptions, documents: Texts) -> np.ndarray:
    return encode_documents(tokenizer, options, documents).astype(_dtype(tokenizer))


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already


@lru_cache(maxsize=1)
def _load(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)  # once per worker process; it remembers the pieces it has encoded


def _encode_in_worker(folder: str, options: DocumentOptions, documents: Texts) -> np.ndarray:
    return _encode(_load(folder), options, documents)


def _chunks(texts: Iterator[str], split: str, domain: str) -> Iterator[Texts]:
    first = 0
    for chunk in blocks(texts, len, CHUNK_CHARS):
        yield Texts(split, domain, first, chunk)
        first += len(chunk)


def _with_defaults(made_from: Any) -> Any:
    """What an older manifest says, with the keys that it could not know yet."""
    if not isinstance(made_from, dict):
        return made_from
    tokenizer = made_from.get("tokenizer", {})
    if "sha256" not in tokenizer:
        tokenizer = {**to_tree(with_padding(TokenizerOptions())), **tokenizer}
    return {"documents": to_tree(DocumentOptions()), **made_from, "tokenizer": tokenizer}


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 65_536 else np.uint32)
