"""The adapters of a run -> a folder that `peft` loads on top of the exported base.

Our adapters lie beside stacked layers, theirs beside each part: A is copied to every part, B is cut into the parts'
rows, and rows of rotary channels are reordered as the weight's own rows are (`layout.py`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.alignment.recipe import AdapterSection
from isoflop.errors import CheckpointError
from isoflop.interop.formats import derived_format
from isoflop.interop.layout import layout, to_theirs
from isoflop.interop.tensors import new_folder
from isoflop.model.config import ModelConfig
from isoflop.recipe import from_tree, read_tree, write_json
from isoflop.training import checkpoint

PREFIX = "base_model.model."


def export_peft(run: Path, out: Path, *, base: str = "") -> dict[str, Any]:
    """Write `out` from the newest checkpoint of an adapter run; `base` is what the folder names as its base model.

    Raises:
        CheckpointError: a run without adapters or checkpoint, or an `out` that has files.
    """
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise CheckpointError(f"{recipe} does not exist; give the folder of an adapter run")
    tree = read_tree(recipe)
    if "adapter" not in tree:
        raise CheckpointError(f"{recipe} has no [adapter]: {run} trained all weights; export it with isoflop export")
    found = checkpoint.newest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run / 'checkpoints'} holds no checkpoint; let the run save one first")
    config = from_tree(tree["model"], ModelConfig, "model.")
    section = from_tree(tree["adapter"], AdapterSection, "adapter.")
    with new_folder(out) as work:
        tensors = peft_tensors(load_file(found / "model.safetensors"), config)
        save_file(tensors, work / "adapter_model.safetensors", metadata={"format": "pt"})
        modules = sorted({name.split(".")[-3] for name in tensors})
        write_json(work / "adapter_config.json", peft_config(section, modules, base))
    step = json.loads((found / "state.json").read_text(encoding="utf-8"))["step"]
    return {"folder": str(out), "target_modules": modules, "tensors": len(tensors), "step": step, "base": base}


def peft_config(section: AdapterSection, modules: list[str], base: str) -> dict[str, Any]:
    """What adapter_config.json says."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": section.rank,
        "lora_alpha": section.alpha,
        "lora_dropout": 0.0,
        "use_rslora": section.rslora,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def peft_tensors(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors by peft's names, from the state of our adapters.

    Raises:
        CheckpointError: no adapters, or such that peft would put elsewhere.
    """
    found = {}
    format = derived_format(config)
    for target in layout(config, format):
        layer = target.name.removesuffix(".weight")
        if f"{layer}.lora_a" not in state:
            continue
        if format != "llama" and ".mlp." in layer:
            raise CheckpointError(
                f"{layer} is adapted, but peft takes every MLP of {format} for routed experts, which transformers "
                "stores fused; adapt attention only (adapter.targets), or export the merged model: RUN/merged"
            )
        a, b = state[f"{layer}.lora_a"], state[f"{layer}.lora_b"]
        for piece in target.pieces:
            rows = to_theirs(b[piece.first_row : piece.first_row + piece.n_rows], piece.rotary)
            name = f"{PREFIX}{piece.name.removesuffix('.weight')}"
            found[f"{name}.lora_A.weight"] = a.clone().to(torch.float32).contiguous()
            found[f"{name}.lora_B.weight"] = rows.clone().to(torch.float32).contiguous()
    if not found:
        raise CheckpointError("the checkpoint holds no adapters; give the folder of an adapter run")
    return found
