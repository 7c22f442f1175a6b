"""Which program multiplies in a model that is only asked: the fastest one there is, or one that keeps shapes fixed."""

import math

from torch import float32

from isoflop.model.experts import Experts
from isoflop.model.transformer import Transformer
from isoflop.numerics.cpu import CpuProduct, has_onednn
from isoflop.numerics.linear import Linear
from isoflop.numerics.tiled import TiledProduct
from isoflop.run import processor

EXPERT_TILE = 16
"""Rows of an expert's products in the fixed-shape mode (assumption: a tensor core's, and cheap where memory binds)."""

LAID_OUT_WEIGHTS = 2**16
"""Weights of a product below which it is left to PyTorch (measured, docs/serving.md)."""
ONEDNN_WEIGHTS = 2**17
"""The same of one row through oneDNN, whose start costs more."""

HELD_BYTES = 2**32
"""Weights of a model up to which a copy of them is kept, laid out for products (assumption)."""


def prepare(model: Transformer, *, fixed: bool) -> None:
    """Give products without a number format of their own their program.

    Latent attention folds `kv_up` into its queries only where that layer is plain, so it stays so. With `fixed`,
    experts compute in tiles: they get as many rows as routing gives them, and a row's bits must not hang on that.
    """
    is_intel = "Intel" in processor()  # MKL reads one row's weights at the memory's rate there (docs/serving.md)
    on_cpu = model.embedding.weight.device.type == "cpu" and model.dtype == float32 and has_onednn()
    for name, module in model.named_modules():
        if not isinstance(module, (Linear, Experts)) or module.numerics is not None or name.endswith("kv_up"):
            continue
        largest = max(math.prod(parameter.shape[-2:]) for parameter in module.parameters(recurse=False))
        if isinstance(module, Experts) and fixed:
            module.numerics = TiledProduct(EXPERT_TILE)
        elif on_cpu and largest >= LAID_OUT_WEIGHTS:
            module.numerics = CpuProduct(leaves_rows=is_intel or largest < ONEDNN_WEIGHTS)
    hold_weights(model)


def hold_weights(model: Transformer) -> None:
    """Let products keep what they make of the weights as these are now; to be called again when they change.

    A model of more than HELD_BYTES is not kept twice.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    if sum(layer.weight.nbytes for layer in layers) > HELD_BYTES:
        return
    for layer in layers:
        if isinstance(layer.numerics, CpuProduct):
            layer.numerics.hold(layer.weight, False)
