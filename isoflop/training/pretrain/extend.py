"""Context extension as a stage of its own: a trained run and a longer length in, a pretrain recipe out.

The recipe names where its weights come from, carries YaRN and the longer length in its sizes, and is run by the same
loop into the same kind of folder: it resumes, can be scored and exported, and can be extended again. A second phase
keeps the length that the rotary pairs were first trained for (`original_seq_len`), as both published phases do.

Source: arXiv 2412.19437, section 4.3: 4K to 32K to 128K, factor 40 in both, 1000 steps each, constant rate 7.3e-6.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.accounting import count_parameters, flops_per_token, inspect
from isoflop.model.config import ModelConfig, YarnConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.section import NumericsSection
from isoflop.recipe import NotNegative, Positive, PositiveInt
from isoflop.training import checkpoint
from isoflop.training.load_run import find_trained, read_sizes
from isoflop.training.pretrain.recipe import (
    CheckpointSection,
    DataSection,
    InitialSection,
    PretrainRecipe,
    TrainSection,
    ValidateSection,
    check,
)


@dataclass(frozen=True)
class ExtendSection:
    """What is extended, and how far."""

    run: str
    """Folder of a finished train, extend or import; for a dry run also the TOML file of a pretrain recipe."""
    seq_len: PositiveInt
    """New context in tokens."""
    factor: NotNegative = 0.0
    """How many times slower the slow rotary pairs turn; 0: seq_len over the original length. Paper: 40."""
    beta_fast: Positive = 32.0
    """Pairs that turn more often than this in the original context stay as they are (paper)."""
    beta_slow: Positive = 1.0
    """Pairs that turn less often than this are slowed by the whole factor (paper)."""
    mscale: NotNegative = 1.0
    """Softmax scale times (0.1 mscale ln factor + 1)^2; 0 leaves it. Paper: 1."""


@dataclass(frozen=True)
class ExtendRecipe:
    """What `isoflop extend` reads: as a pretrain recipe, with the run to extend in place of [model]."""

    extend: ExtendSection
    data: DataSection
    train: TrainSection
    validate: ValidateSection = field(default_factory=ValidateSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    numerics: NumericsSection | None = None
    """As in a pretrain recipe; not taken over from the run."""


def extended_sizes(config: ModelConfig, section: ExtendSection) -> ModelConfig:
    """The model at the longer context.

    Raises:
        RecipeError: a context that is not longer, or further than the factor reaches.
    """
    original = config.yarn.original_seq_len if config.yarn else config.seq_len
    if section.seq_len <= config.seq_len:
        raise RecipeError(
            f"extend.seq_len = {section.seq_len} must be longer than the run's context of {config.seq_len}; "
            f"for example {2 * config.seq_len}"
        )
    factor = section.factor or section.seq_len / original
    if factor * original < section.seq_len:
        raise RecipeError(
            f"extend.factor = {factor:g} reaches {factor * original:g} tokens from the original {original}, less than "
            f"extend.seq_len = {section.seq_len}; give at least {section.seq_len / original:g}, or 0"
        )
    yarn = YarnConfig(
        factor=factor,
        original_seq_len=original,
        beta_fast=section.beta_fast,
        beta_slow=section.beta_slow,
        mscale=section.mscale,
    )
    return dataclasses.replace(config, seq_len=section.seq_len, yarn=yarn)


def extension(recipe: ExtendRecipe) -> PretrainRecipe:
    """The pretrain recipe of an extension: sizes and origin of the weights filled in.

    Where extend.run is a recipe file, there are no weights: such a recipe can be counted, not run.

    Raises:
        CheckpointError: no trained run at extend.run.
        RecipeError: values that contradict each other.
    """
    source = Path(recipe.extend.run)
    initial = None
    if source.is_file():
        config, tokens = read_sizes(source)
    else:
        trained = find_trained(source)
        config, tokens = trained.config, trained.tokens
        state = json.loads((trained.checkpoint / "state.json").read_text(encoding="utf-8"))
        initial = InitialSection(str(trained.checkpoint), state["sha256"]["model.safetensors"])
    data = recipe.data if recipe.data.tokens else dataclasses.replace(recipe.data, tokens=tokens)
    made = PretrainRecipe(
        model=extended_sizes(config, recipe.extend),
        data=data,
        train=recipe.train,
        validate=recipe.validate,
        checkpoint=recipe.checkpoint,
        numerics=recipe.numerics,
        initial=initial,
    )
    check(made)
    return made


def dry_run(recipe: PretrainRecipe) -> dict[str, Any]:
    """Steps, FLOPs and memory of an extension; the model is built on the meta device and counted there too."""
    with torch.device("meta"):
        built = Transformer(recipe.model)
    n_built = sum(tensor.numel() for tensor in built.state_dict().values())  # routers' biases included, as counted
    count = count_parameters(recipe.model)
    counted = count.n_params_total + count.n_params_mtp
    assert n_built == counted, f"{n_built} parameters built, {counted} counted"
    t, yarn = recipe.train, recipe.model.yarn
    assert yarn is not None
    return {
        "steps": recipe.n_steps(),
        "batch_sequences": t.batch_tokens // recipe.model.seq_len,
        "seq_len": recipe.model.seq_len,
        "original_seq_len": yarn.original_seq_len,
        "factor": yarn.factor,
        "total_flops_exact": flops_per_token(recipe.model, "exact") * t.n_tokens,
        **recipe.formats(),
        **inspect(
            recipe.model, micro_batch=t.micro_batch or t.batch_tokens // recipe.model.seq_len, **recipe.computed_as()
        ),
    }


def require_weights(recipe: PretrainRecipe, source: str) -> None:
    """Raises CheckpointError where the extension has no weights to start from."""
    if recipe.initial is None:
        raise CheckpointError(
            f"extend.run = {source!r} is a recipe, which has no weights; give the folder of its finished run, "
            f"or add --dry-run"
        )
    if problem := checkpoint.damage(Path(recipe.initial.checkpoint)):
        raise CheckpointError(f"the extension cannot start: {problem}; train that run again")
