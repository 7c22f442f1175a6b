"""LoRA: a frozen base with two narrow matrices beside each adapted one, y = W x + s B A x.

s is alpha / rank, or alpha / sqrt(rank) for rank-stabilised adapters; A is drawn, B starts at zero, so an adapted model
begins as exactly its base. Base parameters ask for no gradient, and what asks for none is neither in the optimizer nor
in a checkpoint (`training/optim`, `training/checkpoint`): a run holds the adapters, and names its base by hash.

Our layers are stacked (queries, keys and values; gate and up): one A, and rows of B for each part, which is a LoRA of
each part that shares A. Sources: arXiv 2106.09685 (LoRA), arXiv 2312.03732 (rank-stabilised); peft for names and the
draw of A.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.alignment.recipe import AdapterSection
from isoflop.errors import RecipeError
from isoflop.model.transformer import Transformer
from isoflop.numerics.linear import Linear

ALL = "all"


class AdaptedLinear(Linear):
    """A frozen layer and what is trained beside it; the layer's weight keeps its name and its number format."""

    def __init__(self, base: Linear, rank: int, scale: float):
        nn.Module.__init__(self)
        self.weight, self.numerics, self.held = base.weight, base.numerics, base.held
        self.weight.requires_grad_(False)
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, base.weight.shape[1], device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.weight.shape[0], rank, device=device))
        self.scale, self.enabled = scale, True

    def forward(self, x: Tensor, part: int = 0) -> Tensor:
        base = super().forward(x, part)
        if not self.enabled:
            return base
        # as a layer of its own: products in the dtype of the activations
        return base + self.scale * F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))

    def delta(self) -> Tensor:
        """What merging adds to the weight, float32."""
        return self.scale * (self.lora_b @ self.lora_a)


def add_adapters(model: Transformer, section: AdapterSection, generator: torch.Generator) -> list[str]:
    """Freeze the model and put adapters beside the target layers; returns their names.

    Raises:
        RecipeError: a target that matches no layer, or a rank above the sizes of one.
    """
    model.requires_grad_(False)
    found = {
        name: layer
        for name, layer in model.blocks.named_modules(prefix="blocks")
        if isinstance(layer, Linear) and not isinstance(layer, AdaptedLinear)
    }
    kinds = sorted({name.rpartition(".")[2] for name in found})
    for target in section.targets:
        if target != ALL and target not in kinds:
            raise RecipeError(f"adapter.targets: {target!r} matches no layer; there are: {', '.join((ALL, *kinds))}")
    if not section.targets:
        raise RecipeError(f"adapter.targets is empty; name layers ({', '.join(kinds)}) or use all")
    wanted = {name for name in found if ALL in section.targets or name.rpartition(".")[2] in section.targets}
    for name in sorted(wanted):
        if section.rank > (most := max(found[name].weight.shape)):
            raise RecipeError(f"adapter.rank = {section.rank} is above the {most} rows or columns of {name}; give less")
        adapted = AdaptedLinear(found[name], section.rank, section.scale)
        bound = 1 / math.sqrt(adapted.lora_a.shape[1])  # Kaiming-uniform with a = sqrt 5, as in peft
        drawn = torch.empty(adapted.lora_a.shape, device=generator.device)
        with torch.no_grad():
            adapted.lora_a.copy_(drawn.uniform_(-bound, bound, generator=generator))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapted)
    return sorted(wanted)


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """By the name of the layer."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, AdaptedLinear)}


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model, for as long as the context lasts: the reference of DPO where adapters began as new ones."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@torch.no_grad()
def merged_weights(model: Transformer) -> dict[str, Tensor]:
    """State of a plain model that computes the same: W + s B A in float32 in place of each adapted layer."""
    layers = adapted_layers(model)
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, last = name.rpartition(".")
        if last in ("lora_a", "lora_b"):
            continue
        state[name] = tensor + layers[layer].delta() if last == "weight" and layer in layers else tensor
    return state
