"""A finished run, found on disk: its sizes, its newest checkpoint, the model it holds, the tokenizer it knows.

A run keeps its own tokenizer, since a tokens folder may be built anew under the same name. Wherever a path of a run is
followed again, the tokenizer that lies there is compared with the one that the run knows by hash.
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.section import NumericsSection
from isoflop.recipe import Tree, from_tree, read_tree
from isoflop.training import checkpoint


class Trained(NamedTuple):
    """What a run folder holds."""

    run: Path
    config: ModelConfig
    checkpoint: Path
    tokens: str
    """Tokens folder it was trained on; empty for an imported one."""
    numerics: NumericsSection | None = None
    """Number formats that it was trained with in the end."""


def find_trained(run: Path) -> Trained:
    """Newest undamaged checkpoint of a run folder and the sizes it was trained with.

    Raises:
        CheckpointError: no recipe or no checkpoint there, or not the weights of a model that predicts tokens.
    """
    tree = require_model(run)
    config, tokens = read_sizes(run / "recipe.toml")
    formats = tree.get("numerics")
    numerics = from_tree(formats, NumericsSection, "numerics.") if formats else None
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    if numerics is not None and numerics.plain_share():
        state = json.loads((found / "state.json").read_text(encoding="utf-8"))
        first = numerics.plain_from(state["n_steps"])
        numerics = None if first is not None and state["step"] >= first else numerics
    return Trained(run, config, found, tokens, numerics)


def require_model(run: Path) -> Tree:
    """The recipe of a run that has weights, before any of them are read. Raises CheckpointError as `find_trained`."""
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise CheckpointError(f"{run} has no recipe.toml; give the folder of isoflop train, extend or import")
    tree = read_tree(recipe)
    if "reward" in tree:
        raise CheckpointError(f"{run} holds a reward model, which writes no text; give the run of a language model")
    if "adapter" in tree:
        merged = run / "merged"
        way_out = f"give {merged}" if merged.is_dir() else "let it finish with adapter.merge = true and give its merged"
        raise CheckpointError(f"{run} holds adapters without their base; {way_out}")
    if not checkpoint.saved(run / "checkpoints"):
        raise CheckpointError(f"{run}/checkpoints holds no checkpoint; let the run save one first")
    return tree


def read_sizes(recipe: Path) -> tuple[ModelConfig, str]:
    """[model] and data.tokens of a pretrain recipe. Raises RecipeError."""
    tree = read_tree(recipe)
    if "model" not in tree:
        raise RecipeError(f"recipe {recipe} has no [model] section; give a pretrain recipe or the folder of a run")
    data = tree.get("data") or {}
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {recipe}: data = {data!r:.80} must be a section with keys; restore the file")
    return from_tree(tree["model"], ModelConfig, "model."), str(data.get("tokens", ""))


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def keep_tokenizer(tokens: Path, run: Path) -> None:
    """Put the tokenizer of a tokens folder into `run`/tokenizer, where it is not there yet."""
    kept = run / "tokenizer"
    kept.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if not (kept / name).exists():
            shutil.copyfile(tokens / name, kept / name)


def tokenizer_sha256_of(run: Path) -> str:
    """Hash of the tokenizer that a run was trained with, by its own copy, its result or its recipe; empty: unknown."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((run / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
        if sha256 := str(found.get("tokenizer_sha256", "")):
            return sha256
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((run / "result.json").read_text(encoding="utf-8"))["tokenizer_sha256"])
    with contextlib.suppress(RecipeError, KeyError, TypeError):
        return str(read_tree(run / "recipe.toml")["data"]["tokenizer_sha256"])
    return ""


def require_tokenizer_of(run: Path, found: str, folder: str | Path, way_out: str) -> None:
    """Raises CheckpointError where the tokenizer `found` in `folder` is not the one that `run` was trained with."""
    trained = tokenizer_sha256_of(run)
    if trained and found != trained:
        raise CheckpointError(
            f"{folder} holds the tokenizer {found[:12] or 'of other software'}, {run} was trained with {trained[:12]}: "
            f"the folder was built anew, or is another one of that name; {way_out}"
        )


def load_model(
    trained: Trained, *, device: torch.device, dtype: torch.dtype = torch.float32, seq_len: int = 0
) -> Transformer:
    """The trained model, ready to be asked, its products in the formats that it was trained with.

    With `seq_len` its rotary table reaches further than it was trained for.
    """
    config = dataclasses.replace(trained.config, seq_len=max(seq_len, trained.config.seq_len))
    model = Transformer(config, dtype).to(device)
    checkpoint.load(trained.checkpoint, model, None)
    if trained.numerics is not None:
        assign(model, trained.numerics)
    return model.eval()
