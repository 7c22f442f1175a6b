"""A run of `isoflop reward` -> a Hugging Face folder with one output, and the proof that it gives the same scores.

`AutoModelForSequenceClassification` reads the last token that is no padding, ours the last token of a conversation. So
padding must not be what ends one: the folder names begin of text as its padding token, which stands first or nowhere.
Adapters are merged. Weights do not stream: the model is held whole, in float32.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from isoflop.alignment.adapters import merged_weights
from isoflop.alignment.packing import Packed, pack, with_last_read
from isoflop.alignment.reward_model import RewardModel, load_reward_model
from isoflop.errors import CheckpointError, DataError
from isoflop.interop import tokenizer as tokenizer_files
from isoflop.interop.formats import ARCHITECTURES, check_fits, derived_format, to_config
from isoflop.interop.layout import ROUTER_BIAS, layout, to_theirs
from isoflop.interop.parity import PASSAGE, TOLERANCE, WRONG
from isoflop.interop.tensors import new_folder
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import read_tree, write_json
from isoflop.run import commit, now
from isoflop.tokens.chat import Row
from isoflop.training import checkpoint

HEAD = "score.weight"
N_TEXTS = 8
"""Beginnings of the passage that are scored for the report."""


def is_reward_run(run: Path) -> bool:
    """Whether the folder is one of `isoflop reward`."""
    recipe = run / "recipe.toml"
    return recipe.is_file() and "reward" in read_tree(recipe)


def export_reward(
    run: Path,
    out: Path,
    *,
    format: str = "",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    tokenizer: Path | None = None,
    parity: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write the folder `out` from the newest checkpoint, then the parity report; returns what both say.

    Raises:
        CheckpointError: no trained reward model, no tokenizer, or an `out` that exists.
        RecipeError: a model that the format cannot say.
    """
    trained = load_reward_model(run)
    config = trained.transformer.config
    format = format or derived_format(config)
    check_fits(config, format)
    folder = tokenizer or run / "tokenizer"
    if tokenizer_files.find(folder) is None:
        raise CheckpointError(f"{folder} holds no {tokenizer_files.MAIN}; give --tokenizer DIR")
    stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    plain = _rounded(trained, config, stored)
    architecture = ARCHITECTURES[format].replace("ForCausalLM", "ForSequenceClassification")
    with new_folder(out) as work:
        tensors = _tensors(plain, config, format, stored)
        save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
        bos, eos = tokenizer_files.special_ids(folder)
        tree = to_config(config, format, bos=bos, eos=eos, dtype=str(stored).removeprefix("torch."))
        tree |= {"architectures": [architecture], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
        tree["pad_token_id"] = bos if bos != eos else None
        write_json(work / "config.json", tree)
        tokenizer_files.write(folder, work, seq_len=config.seq_len)
        _name_padding(work / tokenizer_files.CONFIG, has_padding=tree["pad_token_id"] is not None)
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None  # it was loaded
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    found = {
        "folder": str(out),
        "architecture": architecture,
        "total_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "dtype": tree["torch_dtype"],
        "merged": "adapter" in read_tree(run / "recipe.toml"),
        "step": state["step"],
        "commit": commit(),
        "written_at": now(),
    }
    if parity:
        found["parity"] = compare_scores(out, trained, plain, device=device)
    return found


def compare_scores(folder: Path, trained: RewardModel, plain: RewardModel, *, device: str = "cpu") -> dict[str, Any]:
    """Scores of texts of different lengths in transformers and in ours, written to parity.json.

    `trained` is the run's model; `plain` has the weights as they are in the folder: merged, and in its number format.

    Raises:
        CheckpointError: transformers is there but cannot read the folder.
    """
    report: dict[str, Any] = {"status": "skipped"}
    try:
        import transformers
    except ImportError:
        report["reason"] = "transformers is not installed: pip install 'isoflop[interop]', then export again"
        write_json(folder / "parity.json", report)
        return report
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture,) = tree["architectures"]
    if not hasattr(transformers, architecture):
        report["reason"] = f"transformers {transformers.__version__} has no {architecture}; leave out --format"
        write_json(folder / "parity.json", report)
        return report
    texts = _texts(folder, plain.transformer.config, tree["eos_token_id"])
    ours = scores_of(plain.to(device), texts)
    try:
        theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"transformers {transformers.__version__} cannot read {folder}: {error}") from error
    theirs = theirs.to(device).eval()
    with torch.no_grad():
        found = [theirs(torch.tensor([ids], device=device)).logits.item() for ids in texts]
        if tree["pad_token_id"] is not None:  # one batch too, filled up at the end
            width = max(map(len, texts))
            padded = [[*ids, *[tree["pad_token_id"]] * (width - len(ids))] for ids in texts]
            mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts], device=device)
            batch = theirs(torch.tensor(padded, device=device), attention_mask=mask_BT).logits[:, 0].tolist()
            found, ours = [*found, *batch], [*ours, *ours]
    largest = max(1.0, *map(abs, ours))
    gap = max(abs(a - b) for a, b in zip(ours, found, strict=True)) / largest
    before = scores_of(trained.to(device), texts)
    report |= {
        "status": "passed" if gap <= TOLERANCE else "close" if gap <= WRONG else "failed",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "device": device,
        "texts": len(texts),
        "tokens": [len(ids) for ids in texts],
        "relative_difference": gap if math.isfinite(gap) else None,
        "largest_score": largest,
        "rounding": max(abs(a - b) for a, b in zip(before, ours, strict=False)),
        "tolerance": TOLERANCE,
    }
    if not math.isfinite(gap):
        report["status"] = "failed"
    write_json(folder / "parity.json", report)
    return report


@torch.no_grad()
def scores_of(model: RewardModel, texts: list[list[int]]) -> list[float]:
    """Our score at the last token of each text."""
    found, seq_len = [], model.transformer.config.seq_len
    for ids in texts:
        row = Row(np.array(ids, np.int32), np.zeros(len(ids), dtype=bool))
        packed = pack(with_last_read([row]), seq_len=seq_len)
        found += model(Packed(*(part.to(model.score.device) for part in packed)), 1).tolist()
    return found


def _texts(folder: Path, config: ModelConfig, eos: int | None) -> list[list[int]]:
    """Beginnings of the passage, each with the token that ends an answer."""
    ids = tokenizer_files.load(folder).encode(PASSAGE, add_special_tokens=True).ids
    longest = min(len(ids), 256, config.seq_len - 1)
    if longest < N_TEXTS:
        raise DataError(f"{folder}: a context of {config.seq_len} tokens is too short for a parity report; --no-parity")
    return [ids[: longest * n // N_TEXTS] + ([eos] if eos is not None else []) for n in range(1, N_TEXTS + 1)]


def _rounded(trained: RewardModel, config: ModelConfig, dtype: torch.dtype) -> RewardModel:
    """The model without adapters, its weights as a folder in `dtype` has them, in float32."""
    plain = RewardModel(Transformer(config))
    state = {f"transformer.{name}": value for name, value in merged_weights(trained.transformer).items()}
    state["score"] = trained.score.detach()
    plain.load_state_dict({n: v if n.endswith("router.bias") else v.to(dtype).float() for n, v in state.items()})
    return plain.eval()


def _tensors(model: RewardModel, config: ModelConfig, format: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything by the names of transformers."""
    state, found = model.transformer.state_dict(), {HEAD: model.score.detach().to(dtype).contiguous()}
    for target in layout(config, format):
        if target.name == "head.weight":
            continue
        for piece in target.pieces:
            columns = piece.shape[-1] if len(piece.shape) > 1 else 1
            if target.name:
                rows = state[target.name].reshape(-1, columns)[piece.first_row : piece.first_row + piece.n_rows]
                rows = to_theirs(rows, piece.rotary) * piece.factor
            else:
                rows = torch.zeros(piece.n_rows, columns)
            kept = torch.float32 if piece.name.endswith(ROUTER_BIAS) else dtype
            found[piece.name] = rows.reshape(piece.shape).to(kept).clone().contiguous()
    return found


def _name_padding(path: Path, *, has_padding: bool) -> None:
    """The padding token of the tokenizer, so that a batch is filled with what the model overlooks."""
    tree = tokenizer_files.read_table(path)
    tree["pad_token"] = tree["bos_token"] if has_padding else None
    tree["padding_side"] = "right"
    write_json(path, tree)
