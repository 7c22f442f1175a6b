"""A resolved recipe of alignment as a model on its device, ready to be trained; and what the run leaves at its end."""

import logging
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from isoflop.alignment.adapters import add_adapters, merged_weights
from isoflop.alignment.recipe import MICRO_TOKENS, Recipe
from isoflop.alignment.start import MERGED, Start, save_tokenizer
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.noise import NoiseKey
from isoflop.recipe import write_recipe
from isoflop.run import file_sha256
from isoflop.training import checkpoint
from isoflop.training.device import choose_device, choose_dtype
from isoflop.training.saturation import watch_clipping
from isoflop.training.step_hooks import NoiseHook, StepHook

log = logging.getLogger(__name__)

BEFORE = "before.json"
"""In the run folder: what the model scored and said at step 0."""


def prepare(recipe: Recipe, start: Start) -> tuple[Transformer, torch.dtype, list[StepHook]]:
    """The model of the run it starts from, on the device, with adapters and number formats where asked for.

    Also returns the dtype of its activations, and the hooks around its steps.

    Raises:
        RecipeError: a device that is not there, adapter targets or number formats that match no layer.
    """
    t = recipe.train
    if t.threads:
        torch.set_num_threads(t.threads)
    device = choose_device(t.device)
    dtype = choose_dtype(t.precision, device)
    model = Transformer(start.config, dtype).to(device)
    checkpoint.load(start.checkpoint, model, None)
    hooks: list[StepHook] = []
    if recipe.numerics is not None:
        noise_key = NoiseKey(t.seed, recipe.numerics.seed)
        assign(model, recipe.numerics, noise_key)
        hooks = [*watch_clipping(model), NoiseHook(noise_key)]
    if recipe.adapter is not None:
        names = add_adapters(model, recipe.adapter, torch.Generator().manual_seed(t.seed))
        n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        log.info("adapters on %d layers: %d parameters are trained", len(names), n_trained)
    if t.compile:
        for block in model.all_blocks():
            block.compile(dynamic=False)
    return model, dtype, hooks


def micro_tokens(recipe: Recipe) -> int:
    """Tokens of a forward pass."""
    return recipe.train.micro_tokens or MICRO_TOKENS


def write_merged(run_dir: Path, start: Start, model: Transformer) -> Path:
    """RUN/merged: the whole model as a run of its own, which export, evaluation and the next stage read.

    Written once the run has finished; the folder appears when it is complete.
    """
    folder = run_dir / MERGED
    if (folder / "recipe.toml").is_file():
        return folder
    state = {name: tensor.cpu().contiguous() for name, tensor in merged_weights(model).items()}

    def write(path: Path) -> str:
        save_file(state, path)
        return file_sha256(path)

    checkpoints = folder / "checkpoints"
    if (checkpoints / "step_00000000").exists():  # half written before a crash
        shutil.rmtree(checkpoints / "step_00000000")
    checkpoint.adopt(checkpoints, write, state={"merged_from": start.model_sha256})
    save_tokenizer(start, folder)
    write_recipe(folder / "recipe.toml", {"model": start.config}, header=f"adapters of {run_dir.name} merged")
    return folder
