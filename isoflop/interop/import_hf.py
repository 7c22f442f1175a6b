"""A Hugging Face folder -> a run folder: recipe.toml, a checkpoint of step 0, the tokenizer, import.json.

Everything is checked against config.json before the first value is read: the index, every file's header, every name,
shape and dtype. Then the weights stream into the checkpoint, in the number format they came in (FP8 becomes float32,
its scales are kept for the way back), so that an export gives the same bits again.
"""

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import CheckpointError, undamaged
from isoflop.interop import tokenizer as tokenizer_files
from isoflop.interop.formats import ARCHITECTURES, FP8_BLOCK, from_config
from isoflop.interop.fp8 import dequantise, n_blocks
from isoflop.interop.layout import INDEX, SCALES, Piece, Target, copies, layout, to_ours
from isoflop.interop.tensors import Entry, TensorFile, TensorWriter, chunks, new_folder
from isoflop.recipe import write_json, write_recipe
from isoflop.run import commit, now
from isoflop.training import checkpoint

log = logging.getLogger(__name__)

SINGLE = "model.safetensors"
_READABLE = (torch.float32, torch.bfloat16, torch.float16)
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tables that old checkpoints store; they follow from the config."""
MAX_NAMED = 3
"""Tensors that one message lists."""


class Folder:
    """A Hugging Face folder, checked: `config`, and `rows` of any tensor wherever it lies."""

    def __init__(self, path: Path):
        """Raises CheckpointError with all that makes the folder unusable, before a value is read."""
        self.path = path
        self.tree = tokenizer_files.read_table(path / "config.json", "give a folder in the Hugging Face format")
        with undamaged(str(path / "config.json"), CheckpointError, "get the file again"):
            self.format, self.config = from_config(self.tree)
        self._files, self.ignored = _open(path)
        self.entries: dict[str, Entry] = {}
        self._home: dict[str, TensorFile] = {}
        for file in self._files.values():
            for name, entry in file.entries.items():
                if name in self._home:
                    raise CheckpointError(f"{name} is in {self._home[name].path} and in {file.path}; keep one of them")
                self.entries[name], self._home[name] = entry, file
        self.quantised = _is_fp8(self.tree)
        self._leave_out_absent_modules()
        self.targets = self._targets()
        self.named = [target for target in self.targets if target.name]
        self.repeated = [piece for pieces in copies(self.config).values() for piece in pieces]
        self._check()

    def rows(self, piece: Piece) -> Iterator[Tensor]:
        """Its rows in the order of theirs, in portions; FP8 as the float32 values it stands for."""
        entry = self.entries[piece.name]
        coded = entry.dtype == torch.float8_e4m3fn
        scales = self.tensor(f"{piece.name}_scale_inv") if coded else torch.empty(0)
        row_bytes = entry.n_columns * (4 if coded else entry.dtype.itemsize)
        multiple = math.lcm(piece.rotary.period if piece.rotary else 1, FP8_BLOCK if coded else 1)
        for first, last in chunks(entry.n_rows, row_bytes, multiple):
            rows = self._home[piece.name].rows(piece.name, first, last)
            yield dequantise(rows, scales[first // FP8_BLOCK :][: n_blocks(last - first)]) if coded else rows

    def tensor(self, name: str) -> Tensor:
        """A small tensor as it is stored."""
        return self._home[name].tensor(name)

    def weights(self) -> Iterator[tuple[str, tuple[int, ...], Iterator[Tensor]]]:
        """Name and shape of every tensor of ours, and its rows in our order, in portions."""
        for target in self.named:
            yield target.name, target.shape, self._rows_of(target)

    def dtype(self, target: Target) -> torch.dtype:
        """What a tensor of ours is stored in: the widest of its pieces; FP8 becomes float32."""
        kinds = {self.entries[piece.name].dtype for piece in target.pieces}
        if len(kinds) == 1 and torch.float8_e4m3fn not in kinds:
            return kinds.pop()
        return torch.float32

    def _rows_of(self, target: Target) -> Iterator[Tensor]:
        dtype = self.dtype(target)
        for piece in target.pieces:
            for rows in self.rows(piece):
                rows = to_ours(rows, piece.rotary).to(dtype)
                yield rows if piece.factor == 1.0 else rows / piece.factor

    def _leave_out_absent_modules(self) -> None:
        """transformers drops prediction modules when it saves, and leaves their number in the config."""
        first, depth = self.config.n_layers, self.config.mtp_depth
        if depth and self._highest(r"") == first:
            self.config = replace(self.config, mtp_depth=0)
            log.warning(
                "%s states num_nextn_predict_layers = %d and its files hold none (transformers saves no prediction "
                "modules): imported without",
                self.path / "config.json",
                depth,
            )

    def _targets(self) -> list[Target]:
        """Tensors of ours and what they are made of. Tied matrices are one matrix under either name."""
        targets = layout(self.config, self.format)
        (embedding,) = next(target.pieces for target in targets if target.name == "embedding.weight")
        (head,) = next(target.pieces for target in targets if target.name == "head.weight")
        if not self.tree.get("tie_word_embeddings"):
            return targets
        both = embedding.name in self.entries and head.name in self.entries
        log.warning(
            "%s ties head and embedding; %s",
            self.path,
            "the files hold both, which are taken as they are" if both else "here they become two equal matrices",
        )
        if head.name not in self.entries:
            return [replace(t, pieces=(embedding,)) if t.name == "head.weight" else t for t in targets]
        if embedding.name not in self.entries:
            return [replace(t, pieces=(head,)) if t.name == "embedding.weight" else t for t in targets]
        return targets

    def _check(self) -> None:
        wanted = {piece.name: piece for target in self.targets for piece in target.pieces}
        optional = {piece.name: piece for piece in self.repeated if piece.name in self.entries}
        scales = set()
        for name, piece in {**wanted, **optional}.items():
            if name in self.entries:
                scales |= self._check_one(piece, self.entries[name])
        known = wanted.keys() | optional.keys() | scales
        missing = [name for name in wanted if name not in self.entries]
        extra = [name for name in self.entries if name not in known and not _DERIVED.search(name)]
        if not missing and not extra:
            return
        for key, expected, found in self._counts():
            if found != expected:
                raise CheckpointError(
                    f"{self.path / 'config.json'} contradicts the tensors: {key} = {expected}, the files hold {found}; "
                    f"one of the two is not of this model"
                )
        if missing:
            raise CheckpointError(
                f"{self.path} lacks {len(missing)} of {len(wanted)} tensors, {_some(missing)}; get the missing shards"
            )
        raise CheckpointError(
            f"{self.path} holds {len(extra)} tensors that a {ARCHITECTURES[self.format]} of this config does not have, "
            f"{_some(extra)}; remove them, or correct config.json"
        )

    def _check_one(self, piece: Piece, entry: Entry) -> set[str]:
        where = self._home[piece.name].path
        if entry.shape != piece.shape:
            raise CheckpointError(
                f"{where}: {piece.name} has shape {list(entry.shape)}, config.json asks for {list(piece.shape)}; "
                f"one of the two is not of this model"
            )
        if entry.dtype != torch.float8_e4m3fn:
            if entry.dtype not in _READABLE:
                kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _READABLE)
                raise CheckpointError(f"{where}: {piece.name} has dtype {entry.dtype}; weights can be {kinds} or FP8")
            return set()
        scale = f"{piece.name}_scale_inv"
        if not self.quantised:
            raise CheckpointError(
                f"{where}: {piece.name} is FP8, but config.json has no quantization_config that says so; add it"
            )
        if not piece.fp8:
            raise CheckpointError(f"{where}: {piece.name} is FP8; embedding, head, router, norms and eh_proj cannot be")
        if scale not in self.entries:
            raise CheckpointError(f"{where}: {piece.name} is FP8 and {scale} is missing; get the missing shards")
        found, blocks = self.entries[scale], (n_blocks(piece.shape[0]), n_blocks(piece.shape[1]))
        if found.shape != blocks or found.dtype != torch.float32:
            raise CheckpointError(
                f"{self._home[scale].path}: {scale} is {list(found.shape)} {found.dtype}; for {list(piece.shape)} in "
                f"blocks of {FP8_BLOCK} it must be {list(blocks)} torch.float32"
            )
        return {scale}

    def _counts(self) -> Iterator[tuple[str, int, int]]:
        """Numbers that config.json and the names of the tensors both state."""
        extra = self.config.mtp_depth
        yield "num_hidden_layers (and num_nextn_predict_layers)", self.config.n_layers + extra, self._highest(r"")
        if self.config.experts:
            key = "num_experts" if self.format == "qwen2_moe" else "n_routed_experts"
            yield key, self.config.experts.n_experts, self._highest(r"\d+\.mlp\.experts\.")

    def _highest(self, between: str) -> int:
        pattern = re.compile(rf"model\.layers\.{between}(\d+)\.")
        return 1 + max((int(m[1]) for m in map(pattern.match, self.entries) if m), default=-1)


def import_folder(folder: Path, out: Path) -> dict[str, Any]:
    """Make the run folder `out` and return what import.json holds.

    Raises:
        CheckpointError: a folder that can't be used, or an `out` that exists. Nothing is left behind then.
    """
    opened = Folder(folder)
    with new_folder(out) as work:
        found = _write(opened, work)
    return {**found, "folder": str(out)}


def _write(opened: Folder, work: Path) -> dict[str, Any]:
    _check_copies(opened)
    _check_zeros(opened)
    has_tokenizer = tokenizer_files.find(opened.path) is not None
    if has_tokenizer:  # before the weights: what can be wrong is cheaper to find here
        (work / "tokenizer").mkdir()
        tokenizer_files.bring_in(opened.path, work / "tokenizer")
    sha256 = ""

    def write_model(path: Path) -> str:
        nonlocal sha256
        plan = {target.name: (opened.dtype(target), target.shape) for target in opened.named}
        with TensorWriter(path, plan, {"format": "pt"}) as writer:
            for name, _, portions in opened.weights():
                for rows in portions:
                    writer.write(rows, name)
        sha256 = writer.sha256
        return sha256

    checkpoint.adopt(work / "checkpoints", write_model, state={"imported": opened.path.name})
    scales = [name for name in opened.entries if name.endswith("_scale_inv")]
    if scales:
        plan = {name: (torch.float32, opened.entries[name].shape) for name in scales}
        with TensorWriter(work / SCALES, plan, {"model_sha256": sha256}) as writer:
            for name in scales:
                writer.write(opened.tensor(name), name)
    write_recipe(work / "recipe.toml", {"model": opened.config}, header=f"sizes of {opened.path.name}, imported")
    found = {
        "architecture": ARCHITECTURES[opened.format],
        "source": opened.path.name,
        "tensors": len(opened.entries),
        "fp8": opened.quantised,
        "tokenizer": has_tokenizer,
        "files_not_read": opened.ignored,
        "weights_sha256": sha256,
        "imported_at": now(),
        "commit": commit(),
        "config": opened.tree,
    }
    write_json(work / "import.json", found)
    return found


def _check_copies(opened: Folder) -> None:
    """A prediction layer repeats embedding and head; a difference would be lost, so it is refused."""
    for original, repeated in copies(opened.config).items():
        (first,) = next(target.pieces for target in opened.targets if target.name == original)
        for piece in repeated:
            if piece.name not in opened.entries:
                continue
            for ours, theirs in zip(opened.rows(first), opened.rows(piece), strict=True):
                if not torch.equal(ours, theirs):
                    raise CheckpointError(
                        f"{opened.path}: {piece.name} differs from {first.name}; isoflop shares them as DeepSeek-V3 "
                        f"does, and would lose one"
                    )


def _check_zeros(opened: Folder) -> None:
    """What our model has not must be zeros, or it would be lost."""
    for piece in (piece for target in opened.targets if not target.name for piece in target.pieces):
        if any(bool(rows.any()) for rows in opened.rows(piece)):
            raise CheckpointError(
                f"{opened.path}: {piece.name} is not zeros; isoflop has no such weights, so only folders where they do "
                f"nothing can be imported"
            )


def _open(path: Path) -> tuple[dict[str, TensorFile], list[str]]:
    """The weight files that count, and the names of those that don't: the one place where this is decided.

    As in transformers: model.safetensors if it is there, else the files that the index names. Nothing else is read.
    """
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} holds an adapter beside its weights (adapter_config.json), which transformers would add to them; "
            f"merge it into the weights first, or remove its files"
        )
    with undamaged(str(path), CheckpointError, "get its index again"):
        found = _counting(path)
    unread = sorted({file.name for file in path.glob("*.safetensors*")} - {Path(name).name for name in found} - {INDEX})
    if INDEX in _beside(path) and list(found) == [SINGLE]:
        unread.append(INDEX)
    if unread:
        log.warning("%s: read are %s, as transformers does; not read: %s", path, _some(list(found)), _some(unread))
    return found, unread


def _counting(path: Path) -> dict[str, TensorFile]:
    """The weight files of a folder by name. Raises CheckpointError for an index that does not describe them."""
    if (path / SINGLE).is_file():
        return {SINGLE: TensorFile(path / SINGLE)}
    index = path / INDEX
    if not index.is_file():
        others = f" (there are {', '.join(beside)})" if (beside := _beside(path)) else ""
        raise CheckpointError(
            f"{path} has neither {INDEX} nor {SINGLE}; weights are read from safetensors only{others}"
        )
    weight_map = tokenizer_files.read_table(index, "get the file again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; get the file again")
    files = {}
    for name in dict.fromkeys(weight_map.values()):
        inside = isinstance(name, str) and name and not name.startswith(("/", "\\")) and "\\" not in name
        if not inside or ".." in PurePosixPath(name).parts or ":" in name:
            raise CheckpointError(f"{index} names {name!r}, which is not a file inside the folder; refused")
        files[name] = TensorFile(path / name)
    for name, file in weight_map.items():
        if name not in files[file].entries:
            raise CheckpointError(f"{index} says that {name} is in {file}, which does not hold it; get both again")
    return files


def _beside(path: Path) -> list[str]:
    """Names of files that look like weights."""
    endings = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf", ".bin.index.json")
    return sorted(file.name for file in path.iterdir() if file.name.endswith(endings))


def _is_fp8(tree: dict[str, Any]) -> bool:
    section = tree.get("quantization_config")
    if section is None:
        return False
    wanted = {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK], "fmt": "e4m3"}
    for key, value in wanted.items():
        found = section.get(key, value if key == "fmt" else None) if isinstance(section, dict) else None
        if found != value:
            raise CheckpointError(f"config.json: quantization_config.{key} = {found!r}; only {value!r} can be imported")
    return True


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
