"""The tokenizer of a folder: the run's own files, with what other software needs and they don't say.

A chat template, and the rule that a text begins with BOS: transformers no longer reads `add_bos_token`, it wants the
rule inside tokenizer.json. Importing takes that rule out of our own tokenizers again, so that their hash stays theirs.

The template is that of `tokens/chat.py`: the folder's own, or else DeepSeek LLM's or DeepSeek-V3's layout. A model that
was only pre-trained has never seen it.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from isoflop.errors import CheckpointError, DataError
from isoflop.recipe import write_text
from isoflop.tokens.bpe import BOS, EOS, Tokenizer
from isoflop.tokens.chat import load_template, read_template, template_source

log = logging.getLogger(__name__)

CONFIG, MAIN = "tokenizer_config.json", "tokenizer.json"
FILES = (MAIN, CONFIG, "special_tokens_map.json", "chat_template.jinja")
_OURS = "tokenizer_sha256"
"""A key that only our tokenizers have: the hash without what an export adds."""


def find(folder: Path) -> Path | None:
    """The folder itself where it holds a tokenizer."""
    return folder if (folder / MAIN).is_file() else None


def load(folder: Path) -> tokenizers.Tokenizer:
    """Any tokenizer.json, ours or not. Raises CheckpointError."""
    try:
        return tokenizers.Tokenizer.from_str((folder / MAIN).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{folder / MAIN} is not a tokenizer ({error}); get the file again") from error


def sha256_of(folder: Path) -> str:
    """The hash by which runs know one of our tokenizers; empty for others and where there is none."""
    return str(_config(folder).get(_OURS, ""))


def special_ids(folder: Path) -> tuple[int | None, int | None]:
    """Ids of the begin and end of a text, as tokenizer_config.json names them."""
    backend, config = load(folder), _config(folder)
    found = []
    for key in ("bos_token", "eos_token"):
        name = config.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        found.append(backend.token_to_id(name) if isinstance(name, str) else None)
    return found[0], found[1]


def stop_ids(folder: Path, eos: int | None) -> int | list[int] | None:
    """What ends an answer, for generation_config.json; a chat template may end one with another token."""
    if read_template(folder) is None:
        return eos
    try:
        found = set(load_template(folder).stop_ids) | ({eos} if eos is not None else set())
    except DataError as error:
        log.warning("stop tokens of the chat template are not known: %s", error)
        return eos
    return sorted(found) if len(found) > 1 else next(iter(found), None)


def bring_in(source: Path, out: Path) -> None:
    """All tokenizer files of a folder that is imported; one that we exported becomes what it was.

    Raises:
        CheckpointError: files that are not a tokenizer.
    """
    backend, config = load(source), _config(source)
    _copy(source, out)
    padded = config.get("padded_vocab_size")
    if isinstance(padded, int) and None not in (backend.token_to_id(BOS), backend.token_to_id(EOS)):
        backend.post_processor = None  # type: ignore[assignment]
        before = Tokenizer(backend, padded)
        if before.sha256 == config.get(_OURS):
            write_text(out / MAIN, before.to_json())


def write(source: Path, out: Path, *, seq_len: int) -> None:
    """Copy the tokenizer of `source` to `out`; ours gets its BOS rule, any gets a chat template if it has none.

    Raises:
        CheckpointError: files that are not a tokenizer.
    """
    backend, config = load(source), _config(source)
    _copy(source, out)
    bos_id = backend.token_to_id(BOS)
    if _OURS in config and config.get("add_bos_token") and backend.post_processor is None and bos_id is not None:
        backend.post_processor = TemplateProcessing(  # type: ignore[assignment]
            single=f"{BOS}:0 $A:0", pair=f"{BOS}:0 $A:0 $B:1", special_tokens=[(BOS, bos_id)]
        )
        write_text(out / MAIN, backend.to_str(pretty=True) + "\n")
    config.pop("split_special_tokens", None)  # the marks of a chat template are special tokens spelled in its text
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    config.setdefault("model_max_length", seq_len)
    if "chat_template" not in config and not (source / "chat_template.jinja").is_file():
        config["chat_template"] = template_source(backend)
    write_text(out / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def _copy(source: Path, out: Path) -> None:
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_table(path) if path.is_file() else {}


def read_table(path: Path, way_out: str = "get the file again") -> dict[str, Any]:
    """A JSON object of a folder. Raises CheckpointError: not there (then `way_out` is said), or something else."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {way_out}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have left a byte order mark
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); get the file again") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is not a table; get the file again")
    return tree
