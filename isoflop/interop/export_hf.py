"""A run -> a Hugging Face folder: config, generation config, tokenizer, shards with their index, parity report.

The weights stream: rows are read from the checkpoint, reordered, cast and written, so memory grows by a few chunks
whatever the size of the model. The folder appears under its name when it is complete.
"""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isoflop.errors import CheckpointError, RecipeError, undamaged
from isoflop.interop import tokenizer as tokenizer_files
from isoflop.interop.formats import ARCHITECTURES, FP8_BLOCK, check_fits, derived_format, to_config
from isoflop.interop.fp8 import dequantise, n_blocks, quantise
from isoflop.interop.layout import INDEX, ROUTER_BIAS, SCALES, Piece, Target, copies, layout, to_theirs
from isoflop.interop.parity import compare
from isoflop.interop.tensors import TensorFile, TensorWriter, chunks, new_folder
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree, read_tree, write_json
from isoflop.run import commit, now
from isoflop.training import checkpoint
from isoflop.training.load_run import require_tokenizer_of, tokenizer_sha256_of

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Source:
    """The weights of a run at one step."""

    run: Path
    checkpoint: Path
    config: ModelConfig
    weights: TensorFile
    scales: TensorFile | None
    """Of an FP8 import, as long as its weights are untouched."""
    tokenizer: Path | None
    tokens: Path | None
    """Tokens folder that the run was trained on, where it still exists."""


def open_run(run: Path, *, step: int | None = None, tokenizer: Path | None = None) -> Source:
    """Find and check what a run folder holds.

    Raises:
        CheckpointError: no recipe, no undamaged checkpoint, or one that the recipe contradicts.
    """
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise CheckpointError(f"{recipe} does not exist; give the folder of isoflop train or isoflop import")
    tree = read_tree(recipe)
    if "model" not in tree:
        raise CheckpointError(f"{recipe} has no [model]: {run} is no run of a language model")
    config = from_tree(tree["model"], ModelConfig, "model.")
    if step is None:
        found = checkpoint.newest(run / "checkpoints")
        if found is None:
            raise CheckpointError(f"{run / 'checkpoints'} holds no checkpoint; let the run save one first")
    else:
        found = run / "checkpoints" / checkpoint.name_of(step)
        if problem := checkpoint.damage(found):
            there = ", ".join(map(str, checkpoint.saved(found.parent)))
            raise CheckpointError(f"--step {step}: {problem}; there are steps {there or 'none'}")
    weights = TensorFile(found / "model.safetensors")
    wanted = {target.name: target.shape for target in layout(config, _any_format(config)) if target.name}
    for name, shape in wanted.items():
        if name not in weights.entries or weights.entries[name].shape != shape:
            held = list(weights.entries[name].shape) if name in weights.entries else "nothing"
            raise CheckpointError(f"{found}: {name} should be {list(shape)} by {recipe}, the checkpoint has {held}")
    tokens = Path(tree["data"]["tokens"]) if tree.get("data", {}).get("tokens") else None
    places = [tokenizer] if tokenizer else [run / "tokenizer", *([tokens] if tokens else [])]
    held = next((place for place in places if tokenizer_files.find(place)), None)
    if tokenizer and held is None:
        raise CheckpointError(f"--tokenizer {tokenizer} holds no {tokenizer_files.MAIN}")
    if held:  # a run of older versions keeps none: the folder that its recipe names must still be the same
        way_out = "give the right one: --tokenizer DIR"
        require_tokenizer_of(run, tokenizer_files.sha256_of(held), held, way_out)
    if tokens and tokenizer_sha256_of(run) not in ("", tokenizer_files.sha256_of(tokens)):
        log.warning("%s was built anew since %s was trained: the parity report takes other text", tokens, run)
        tokens = None
    scales = None
    if (run / SCALES).is_file():
        scales = TensorFile(run / SCALES)
        state = json.loads((found / "state.json").read_text(encoding="utf-8"))
        if scales.metadata.get("model_sha256") != state["sha256"]["model.safetensors"]:
            scales = None
    return Source(run, found, config, weights, scales, held, tokens if tokens and tokens.is_dir() else None)


def export_run(
    run: Path,
    out: Path,
    *,
    format: str = "",
    dtype: Dtype = "auto",
    fp8: bool = False,
    shard_mib: int = 512,
    drop_mtp: bool = False,
    step: int | None = None,
    tokenizer: Path | None = None,
    parity: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write the folder `out` of a run's newest checkpoint (or of `step`) and the parity report; returns what both say.

    `dtype` auto keeps that of the checkpoint: float32 for a run, the original one for an import. `fp8` quantises the
    matrices that the released FP8 checkpoints do. `drop_mtp` leaves the prediction modules out.

    Raises:
        CheckpointError: a run without a usable checkpoint, an `out` that exists, a folder transformers cannot read.
        RecipeError: a model that the format cannot say.
    """
    source = open_run(run, step=step, tokenizer=tokenizer)
    config = replace(source.config, mtp_depth=0) if drop_mtp else source.config
    found = _write_folder(source, out, config, format or derived_format(config), dtype, fp8, shard_mib)
    if parity:
        found["parity"] = compare(out, run_model=run_model(source, drop_mtp), tokens=source.tokens, device=device)
    return found


def _write_folder(
    source: Source, out: Path, config: ModelConfig, format: str, dtype: Dtype, fp8: bool, shard_mib: int
) -> dict[str, Any]:
    check_fits(config, format)
    if shard_mib < 1:
        raise RecipeError(f"--shard-mib {shard_mib} must be at least 1; 512 is the default")
    with new_folder(out) as work:
        if source.tokenizer is None:
            log.warning("%s has no tokenizer: the folder gets none; give --tokenizer DIR", source.run)
        shards = _shards(config, format, source, dtype, fp8, shard_mib << 20)
        total = _write_weights(source, shards, work)
        main_dtype = source.weights.entries["embedding.weight"].dtype if dtype == "auto" else getattr(torch, dtype)
        bos, eos = tokenizer_files.special_ids(source.tokenizer) if source.tokenizer else _imported_ids(source.run)
        tree = to_config(config, format, bos=bos, eos=eos, dtype=str(main_dtype).removeprefix("torch."))
        if fp8:
            tree["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            }
        write_json(work / "config.json", tree)
        stop = tokenizer_files.stop_ids(source.tokenizer, eos) if source.tokenizer else eos
        write_json(work / "generation_config.json", {"bos_token_id": bos, "eos_token_id": stop, "do_sample": False})
        if source.tokenizer:
            tokenizer_files.write(source.tokenizer, work, seq_len=config.seq_len)
    state = json.loads((source.checkpoint / "state.json").read_text(encoding="utf-8"))
    return {
        "folder": str(out),
        "architecture": ARCHITECTURES[format],
        "shards": len(shards),
        "total_bytes": total,
        "fp8": fp8,
        "dtype": tree["torch_dtype"],
        "tokenizer": source.tokenizer is not None,
        "step": state["step"],
        "commit": commit(),
        "written_at": now(),
    }


@dataclass(frozen=True)
class _Item:
    """One tensor of a shard."""

    target: Target
    piece: Piece
    dtype: torch.dtype
    """Of the values, E4M3 when it is quantised."""

    def plan(self) -> Iterator[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
        yield self.piece.name, (self.dtype, self.piece.shape)
        if self.dtype == torch.float8_e4m3fn:
            blocks = (n_blocks(self.piece.shape[0]), n_blocks(self.piece.shape[1]))
            yield f"{self.piece.name}_scale_inv", (torch.float32, blocks)

    def n_bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for _, (dtype, shape) in self.plan())


def _shards(config: ModelConfig, format: str, source: Source, dtype: Dtype, fp8: bool, limit: int) -> list[list[_Item]]:
    repeated = copies(config)
    shards: list[list[_Item]] = [[]]
    size = 0
    targets = layout(config, format)
    for target in [*targets, *(replace(t, pieces=repeated[t.name]) for t in targets if repeated.get(t.name))]:
        held = source.weights.entries[target.name or "embedding.weight"].dtype
        for piece in target.pieces:
            # selection biases are float32 in every release: a step of the balancer is 0.001
            if piece.name.endswith(ROUTER_BIAS):
                asked = held if target.name else torch.float32
            else:
                asked = held if dtype == "auto" else getattr(torch, dtype)
            item = _Item(target, piece, torch.float8_e4m3fn if fp8 and piece.fp8 else asked)
            if shards[-1] and size + item.n_bytes() > limit:
                shards.append([])
                size = 0
            shards[-1].append(item)
            size += item.n_bytes()
    return shards


def _write_weights(source: Source, shards: list[list[_Item]], folder: Path) -> int:
    weight_map, total = {}, 0
    for number, items in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        plan = dict(pair for item in items for pair in item.plan())
        with TensorWriter(folder / name, plan, {"format": "pt"}) as writer:
            for item in items:
                _write_item(source, item, writer)
        weight_map.update(dict.fromkeys(plan, name))
        total += sum(item.n_bytes() for item in items)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return total


def _write_item(source: Source, item: _Item, writer: TensorWriter) -> None:
    piece = item.piece
    if item.dtype != torch.float8_e4m3fn:
        for rows in _rows(source.weights, item.target, piece):
            writer.write(rows.to(item.dtype), piece.name)
        return
    name, first, parts = f"{piece.name}_scale_inv", 0, []
    known = source.scales.tensor(name) if source.scales and name in source.scales.entries else None
    for rows in _rows(source.weights, item.target, piece, multiple=FP8_BLOCK):
        rows = rows.to(torch.float32)
        here = None if known is None else known[first : first + n_blocks(rows.shape[0])]
        codes, scales = quantise(rows, here)
        if here is not None and not torch.equal(dequantise(codes, scales), rows):
            codes, scales = quantise(rows)
        writer.write(codes, piece.name)
        parts.append(scales)
        first += n_blocks(rows.shape[0])
    writer.write(torch.cat(parts), name)


def _rows(weights: TensorFile, target: Target, piece: Piece, multiple: int = 1) -> Iterator[Tensor]:
    """The rows of a piece, in their order and in portions."""
    columns = piece.shape[-1] if len(piece.shape) > 1 else 1
    if piece.rotary:
        multiple = math.lcm(multiple, piece.rotary.period)
    for first, last in chunks(piece.n_rows, 4 * columns, multiple):
        if target.name:
            rows = weights.rows(target.name, piece.first_row + first, piece.first_row + last)
        else:
            rows = torch.zeros(last - first, columns)
        rows = to_theirs(rows, piece.rotary)
        yield rows if piece.factor == 1.0 else rows * piece.factor


def run_model(source: Source, drop_mtp: bool = False) -> Transformer:
    """The model of a run in float32, for the parity report."""
    model = Transformer(replace(source.config, mtp_depth=0) if drop_mtp else source.config)
    state = model.state_dict()
    for name, value in state.items():
        value.copy_(source.weights.tensor(name))
    return model.eval()


def _any_format(config: ModelConfig) -> str:
    """The format whose layout names every tensor of ours."""
    return "deepseek_v3" if config.experts and config.experts.selection_bias else "llama"


def _imported_ids(run: Path) -> tuple[int | None, int | None]:
    """What the config of an import said."""
    path = run / "import.json"
    if not path.is_file():
        return None, None
    with undamaged(str(path), CheckpointError, "import the folder again"):
        tree = json.loads(path.read_text(encoding="utf-8"))["config"]
        return tree.get("bos_token_id"), tree.get("eos_token_id")
