"""A run folder -> the model and the tokenizer that an engine needs."""

import logging
from pathlib import Path

import torch

from isoflop.errors import DataError, RecipeError
from isoflop.model.transformer import Transformer
from isoflop.serving.vocabulary import ForeignTokenizer, load_tokenizer
from isoflop.tokens.bpe import Tokenizer
from isoflop.training.device import choose_device
from isoflop.training.load_run import find_trained, load_model, require_tokenizer_of

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    run: Path, *, device: str = "auto", dtype: str = "auto", tokens: Path | None = None
) -> tuple[Transformer, Tokenizer | ForeignTokenizer | None, Path | None]:
    """The newest checkpoint of a run, and its tokenizer with the folder it lies in, if one is found.

    It is that of `tokens`, the run's own, or that of the tokens folder it was trained on.

    Raises:
        CheckpointError, RecipeError, DataError: no such run, device or tokens folder, or a damaged one.
    """
    trained = find_trained(run)
    where = choose_device(device, key="--device")
    model = load_model(trained, device=where, dtype=choose_dtype(dtype, where))
    folder = tokens or _tokenizer_folder(run, trained.tokens)
    tokenizer = load_tokenizer(folder) if folder else None
    n_rows = model.config.vocab_size
    if isinstance(tokenizer, Tokenizer):
        fits, has = tokenizer.vocab_size == n_rows, tokenizer.vocab_size
    else:
        fits, has = tokenizer is None or tokenizer.n_tokens <= n_rows, tokenizer.n_tokens if tokenizer else 0
    if not fits:
        raise DataError(
            f"the tokenizer has a vocabulary of {has}, the model of {run} {n_rows}; give the tokens folder that it was "
            "trained on with --tokens DIR"
        )
    if folder is not None and folder != run / "tokenizer":
        found_sha256 = tokenizer.sha256 if isinstance(tokenizer, Tokenizer) else ""
        require_tokenizer_of(run, found_sha256, folder, "give the tokenizer that it was trained with: --tokens DIR")
    return model, tokenizer, folder


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU, float32 on a CPU, which is the exact reference.

    Raises:
        RecipeError: another name, or bfloat16 on a processor without instructions for it.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise RecipeError(f"--dtype = {name!r} must be one of auto, {', '.join(_DTYPES)}")
    if name == "bfloat16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RecipeError("--dtype bfloat16 is slow here: this processor has no instructions for it; use float32")
    return _DTYPES[name]


def _tokenizer_folder(run: Path, trained_on: str) -> Path | None:
    for folder in (run / "tokenizer", Path(trained_on) if trained_on else None):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return folder
    log.warning("%s: no tokenizer in %s; prompts must be token ids, or give --tokens DIR", run, trained_on or "it")
    return None
