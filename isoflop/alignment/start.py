"""What a run of alignment begins with: sizes, weights, tokenizer and chat template of another run."""

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import tokenizers

from isoflop.alignment.recipe import StartSection
from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.model.config import ModelConfig
from isoflop.recipe import read_tree, write_text
from isoflop.tokens.chat import CONFIG, MAIN, TEMPLATE, ChatTemplate, load_template, read_config
from isoflop.training import checkpoint
from isoflop.training.load_run import find_trained, require_tokenizer_of

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer"
"""Folder of a run with its tokenizer and chat template, as imports have it."""
MERGED = "merged"
"""Folder of an adapter run: the whole model as a run of its own."""


class Start(NamedTuple):
    """The beginning of a run."""

    run: Path
    config: ModelConfig
    checkpoint: Path
    model_sha256: str
    tokenizer: Path
    tokenizer_sha256: str
    template: ChatTemplate
    n_known: int
    """Rows of the vocabulary that mean something; those behind are padding."""


def open_start(section: StartSection, template: str = "", *, train_blank: bool = False) -> Start:
    """Find and check the run that `[initial]` names.

    Raises:
        CheckpointError: no run, no undamaged checkpoint, or not the weights that a resolved recipe was made for.
        DataError: no tokenizer, one without an end of sequence, or one that is not the run's.
    """
    run = Path(section.run)
    if _has_adapter(run):
        if not (run / MERGED / "recipe.toml").is_file():
            raise CheckpointError(
                f"initial.run = {section.run!r} holds adapters without their base and no {MERGED} folder; let it "
                "finish with adapter.merge = true, or give a run of a whole model"
            )
        log.info("%s holds adapters; starting from the whole model in %s", run, run / MERGED)
        run = run / MERGED
    trained = find_trained(run)
    found = Path(section.checkpoint) if section.checkpoint else trained.checkpoint
    if problem := checkpoint.damage(found):
        raise CheckpointError(f"initial.checkpoint: {problem}; train that run again, or give another one")
    sha256 = json.loads((found / "state.json").read_text(encoding="utf-8"))["sha256"]["model.safetensors"]
    if section.model_sha256 and section.model_sha256 != sha256:
        raise CheckpointError(
            f"initial.checkpoint = {found} has weights {sha256[:12]}, initial.model_sha256 asks for "
            f"{section.model_sha256[:12]}; give the run that the recipe was resolved for"
        )
    folder = _tokenizer_of(run, trained.tokens, section.tokenizer)
    held = read_config(folder).get("tokenizer_sha256", "")
    require_tokenizer_of(run, str(held), folder, "give initial.tokenizer = FOLDER with the right one")
    loaded = load_template(folder, template, trains_blank=train_blank)
    n_known = 1 + max(_vocabulary(folder).values())
    if n_known > trained.config.vocab_size:
        raise DataError(
            f"initial.tokenizer: {folder} has {n_known} tokens, {run} was trained with a vocabulary of "
            f"{trained.config.vocab_size}: another tokenizer; leave initial.tokenizer out to use the run's own"
        )
    text = (folder / MAIN).read_bytes()
    return Start(run, trained.config, found, sha256, folder, hashlib.sha256(text).hexdigest(), loaded, n_known)


def save_tokenizer(start: Start, run_dir: Path) -> None:
    """The tokenizer and the template that was trained with, where exporting and the next stage look for them."""
    out = run_dir / TOKENIZER
    if (out / TEMPLATE).is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in (MAIN, CONFIG, "special_tokens_map.json", "generation_config.json"):
        if (start.tokenizer / name).is_file():
            shutil.copyfile(start.tokenizer / name, out / name)
    write_text(out / TEMPLATE, start.template.source)


def _has_adapter(run: Path) -> bool:
    recipe = run / "recipe.toml"
    with contextlib.suppress(RecipeError):  # find_trained says what is wrong
        return recipe.is_file() and "adapter" in read_tree(recipe)
    return False


def _tokenizer_of(run: Path, tokens: str, given: str) -> Path:
    places = [run / TOKENIZER, *([Path(tokens)] if tokens else [])]
    own = next((place for place in places if (place / MAIN).is_file()), None)
    if given:
        folder = Path(given)
        if not (folder / MAIN).is_file():
            raise DataError(f"initial.tokenizer = {given!r} holds no {MAIN}; give a tokenizer's folder")
        if own is not None and _vocabulary(folder) != _vocabulary(own):
            raise DataError(
                f"initial.tokenizer = {given!r} is another tokenizer than {own}, which {run} was trained with; leave "
                "it out to use the run's own"
            )
        return folder
    if own is None:
        raise DataError(f"{run} has no tokenizer ({places[0]} is missing); give initial.tokenizer = FOLDER")
    return own


def _vocabulary(folder: Path) -> dict[str, int]:
    try:
        return tokenizers.Tokenizer.from_file(str(folder / MAIN)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{folder / MAIN} is not a tokenizer ({error}); get the file again") from error
