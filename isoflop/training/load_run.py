"""A finished run, found on disk: its sizes, its newest checkpoint, and the model it holds."""

import dataclasses
import tomllib
from pathlib import Path
from typing import NamedTuple

import torch

from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.section import NumericsSection
from isoflop.recipe import from_tree
from isoflop.training import checkpoint


class Trained(NamedTuple):
    """What a run folder holds."""

    run: Path
    config: ModelConfig
    checkpoint: Path
    tokens: str
    """Tokens folder it was trained on; empty for an imported one."""
    numerics: NumericsSection | None = None
    """Number formats that it was trained with."""


def find_trained(run: Path) -> Trained:
    """Newest undamaged checkpoint of a run folder and the sizes it was trained with.

    Raises:
        CheckpointError: no recipe or no checkpoint there.
    """
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise CheckpointError(f"{run} has no recipe.toml; give the folder of isoflop train, extend or import")
    config, tokens = read_sizes(recipe)
    formats = tomllib.loads(recipe.read_text(encoding="utf-8")).get("numerics")
    numerics = from_tree(formats, NumericsSection, "numerics.") if formats else None
    found = checkpoint.newest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run}/checkpoints holds no checkpoint; let the run save one first")
    return Trained(run, config, found, tokens, numerics)


def read_sizes(recipe: Path) -> tuple[ModelConfig, str]:
    """[model] and data.tokens of a pretrain recipe. Raises RecipeError."""
    try:
        tree = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {recipe} is not valid TOML: {error}") from error
    if "model" not in tree:
        raise RecipeError(f"recipe {recipe} has no [model] section; give a pretrain recipe or the folder of a run")
    return from_tree(tree["model"], ModelConfig, "model."), str(tree.get("data", {}).get("tokens", ""))


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
