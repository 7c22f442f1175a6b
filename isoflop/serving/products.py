"""Which program multiplies in a model that is only asked: the fastest one there is, or one that keeps shapes fixed."""

from torch import float32

from isoflop.model.experts import Experts
from isoflop.model.transformer import Transformer
from isoflop.numerics.linear import Linear
from isoflop.numerics.onednn import OneDnnProduct, has_onednn
from isoflop.numerics.tiled import TiledProduct
from isoflop.run import processor

EXPERT_TILE = 16
"""Rows of an expert's products in the fixed-shape mode (assumption: a tensor core's, and cheap where memory binds)."""

ONEDNN_WEIGHTS = 2**17
"""Weights of a product below which oneDNN's start costs more than it saves (measured, docs/serving.md)."""


HELD_BYTES = 2**32
"""Weights of a model up to which oneDNN keeps a copy of its own of them (assumption)."""


def prepare(model: Transformer, *, fixed: bool) -> None:
    """Give products without a number format of their own their program.

    Latent attention folds `kv_up` into its queries only where that layer is plain, so it stays so. With `fixed`,
    experts compute in tiles: they get as many rows as routing gives them, and a row's bits must not hang on that.
    """
    is_intel = "Intel" in processor()  # MKL reads one row's weights at the memory's rate there (docs/serving.md)
    onednn = model.embedding.weight.device.type == "cpu" and model.dtype == float32 and has_onednn()
    for name, module in model.named_modules():
        if isinstance(module, Experts) and module.numerics is None and fixed:
            module.numerics = TiledProduct(EXPERT_TILE)
        elif isinstance(module, (Linear, Experts)) and module.numerics is None and onednn:
            largest = max(
                parameter[0].numel() if parameter.ndim > 2 else parameter.numel()
                for parameter in module.parameters(recurse=False)
            )
            if largest >= ONEDNN_WEIGHTS and not name.endswith("kv_up"):
                module.numerics = OneDnnProduct(leaves_rows=is_intel)
    hold_weights(model)


def hold_weights(model: Transformer) -> None:
    """Let products keep what they make of the weights as these are now; to be called again when they change.

    A model of more than HELD_BYTES is not kept twice.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    if sum(layer.weight.nbytes for layer in layers) > HELD_BYTES:
        return
    for layer in layers:
        if isinstance(layer.numerics, OneDnnProduct):
            layer.numerics.hold(layer.weight, False)
