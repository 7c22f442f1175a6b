"""Which tensors take the kernels of `isoflop.numerics.kernels`, and how one is launched."""

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor


def has_kernels(x: Tensor, *, wide: bool = False, integers: bool = False) -> bool:
    """Whether kernels stand in for the plain form of this operand: on an NVIDIA GPU, run eagerly.

    Those of a training step take bf16, those of a decoding step, which are `wide`, float32 too, few `integers`.
    """
    fits = x.dtype in ((torch.int64,) if integers else (torch.bfloat16, torch.float32) if wide else (torch.bfloat16,))
    return not torch.compiler.is_compiling() and x.is_cuda and fits and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None


@functools.cache
def block_kernels() -> Any:
    return importlib.import_module("isoflop.numerics.kernels.block")


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any, **settings: Any) -> None:
    """Run a kernel on the device of `x`, which is also its first argument; an empty `x` runs nothing."""
    if x.numel():
        with torch.cuda.device_of(x):
            kernel[grid](x, *arguments, **settings)


def power_of_two(size: int) -> int:
    """The next one, at least 16."""
    return 1 << max(4, (size - 1).bit_length())


def warps_of(n_lanes: int) -> int:
    """For a program of so many elements: eight a thread, at most four warps. Small programs run more at a time."""
    return max(1, min(4, n_lanes // 256))


@functools.cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
