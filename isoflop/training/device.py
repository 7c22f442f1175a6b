"""Which device a run is on, and in which format it computes there."""

import torch

from isoflop.errors import RecipeError
from isoflop.training.pretrain.recipe import check_device


def choose_device(name: str, key: str = "train.device") -> torch.device:
    """auto, cpu, cuda, cuda:1 ... as a device that is there. Raises RecipeError naming `key`."""
    check_device(name, key)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{key} = {name!r} but PyTorch sees no GPU here; use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"{key} = {name!r} but PyTorch sees {torch.cuda.device_count()} GPU(s), from cuda:0 on")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(f"{key} = {name!r} but PyTorch sees no Apple GPU here; use auto or cpu")
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of activations and products: auto is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
