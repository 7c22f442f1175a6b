"""Networks from a speckle frame to an image: the linear floor, a hybrid of connected and local paths, a dense U-Net.

All take a frame divided by its own mean and return logits. Those with a linear path hold the ridge solution in buffers;
a training pair brings its own leave-one-out prediction instead, since the ridge has seen the answer. The connected path
multiplies through `isoflop.numerics`, like the layers of a language model.
Shapes: B samples, Y X pixels of the frame or the image, P = Y X of the frame, F channels.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import RecipeError
from isoflop.imaging.ridge import Ridge
from isoflop.numerics.linear import Linear
from isoflop.recipe import NotNegativeInt, Range, check_ranges


@dataclass(frozen=True)
class NetworkSection:
    """What turns a frame into an image."""

    kind: Literal["ridge", "hnn", "unet-dense"] = "hnn"
    """ridge: linear, not trained by steps; hnn: connected and convolutional paths; unet-dense: 2-D throughout."""
    width: NotNegativeInt = 1024
    """Of the connected path (hnn); 0 leaves it out."""
    depth: Annotated[int, Range(at_least=1, at_most=8)] = 2
    """Hidden layers of the connected path (hnn)."""
    channels: Annotated[int, Range(at_least=1, at_most=256)] = 16
    """Of the convolutions that refine (hnn) or of the first level (unet-dense)."""
    refinements: Annotated[int, Range(at_least=1, at_most=16)] = 3
    """3x3 convolutions between the sum of the paths and the image (hnn)."""
    levels: Annotated[int, Range(at_least=1, at_most=4)] = 3
    """Times the U-Net halves the image."""
    growth: Annotated[int, Range(at_least=1, at_most=128)] = 16
    """Channels that each of the 4 layers of a dense block adds (code of Optica 5, 1181: 16)."""
    dropout: Annotated[float, Range(at_least=0, below=1)] = 0.0
    """Share of activations left out (code of Optica 5, 1181: 0.5 in dense blocks)."""


class LinearPath(nn.Module):
    """The ridge solution in buffers: part of the checkpoint, not of what is trained."""

    def __init__(self, frame_px: int, object_px: int):
        super().__init__()
        self.object_px = object_px
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(object_px**2, frame_px**2))
        self.register_buffer("bias", torch.zeros(object_px**2))

    def take(self, ridge: Ridge) -> None:
        """Copy a solution in."""
        self.weight.copy_(ridge.weight)
        self.bias.copy_(ridge.bias)

    def forward(self, frames_BYX: Tensor) -> Tensor:
        image_BP = F.linear(frames_BYX.flatten(1), self.weight, self.bias)
        return image_BP.unflatten(1, (self.object_px, self.object_px))


class RidgeNetwork(nn.Module):
    """Only the linear path: nothing of it is trained by steps."""

    def __init__(self, frame_px: int, object_px: int):
        super().__init__()
        self.linear = LinearPath(frame_px, object_px)

    def image(self, frames_BYX: Tensor) -> Tensor:
        """The linear reconstruction as it is, neither clamped nor squashed."""
        return self.linear(frames_BYX)


class Hybrid(nn.Module):
    """Connected and convolutional paths from the frame, their sum and the linear path refined by convolutions."""

    def __init__(self, section: NetworkSection, frame_px: int, object_px: int):
        super().__init__()
        self.object_px = object_px
        self.linear = LinearPath(frame_px, object_px)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(frame_px, frame_px))
        self.register_buffer("mean", torch.ones(frame_px, frame_px))
        self.mean: Tensor
        width, planes = section.width, 2
        self.connected = nn.ModuleList()
        if width:
            sizes = [frame_px**2, *[width] * section.depth, planes * object_px**2]
            self.connected.extend(Connected(a, b) for a, b in itertools.pairwise(sizes))
        self.local = nn.Conv2d(1, section.channels, 5, stride=2, padding=2)
        self.spread = Connected(section.channels * 16, object_px**2)
        self.dropout = nn.Dropout(section.dropout)
        self.refine = nn.ModuleList()
        inputs = 3 + (planes if width else 0)
        for index in range(section.refinements):
            size = 5 if index == 0 else 3
            self.refine.append(
                nn.Conv2d(inputs if index == 0 else section.channels, section.channels, size, padding=size // 2)
            )
        self.last = nn.Conv2d(section.channels, 1, 3, padding=1)

    def forward(self, frames_BYX: Tensor, given_BYX: Tensor | None = None) -> Tensor:
        linear_BYX = self.linear(frames_BYX)
        if given_BYX is not None:  # NaN where the pair was not part of the fit
            linear_BYX = torch.where(given_BYX.isnan(), linear_BYX, given_BYX)
        x_BYX = (frames_BYX - self.mean) / self.scale
        local_BFYX = F.adaptive_avg_pool2d(F.relu(self.local(x_BYX.unsqueeze(1))), 4)
        shape = (-1, self.object_px, self.object_px)
        local_BYX = self.spread(local_BFYX.flatten(1)).unflatten(1, shape[1:])
        inputs = [linear_BYX, linear_BYX.clamp(0, 1), local_BYX]
        logits_BYX = 4 * linear_BYX - 2 + local_BYX  # an image in 0 to 1 becomes logits of -2 to 2
        if self.connected:
            hidden = x_BYX.flatten(1)
            for layer in self.connected[:-1]:
                hidden = self.dropout(F.relu(layer(hidden)))
            planes_BFYX = self.connected[-1](hidden).unflatten(1, (-1, *shape[1:]))
            inputs.extend(planes_BFYX.unbind(1))
            logits_BYX = logits_BYX + planes_BFYX[:, 0]
        refined = torch.stack([part.to(logits_BYX.dtype) for part in inputs], 1)
        for layer in self.refine:
            refined = F.relu(layer(refined))
        return logits_BYX + self.last(refined).squeeze(1)


class Connected(nn.Module):
    """A `Linear` of isoflop.numerics with a bias."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.product = Linear(d_in, d_out)
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y + self.bias.to(y.dtype)


class DenseBlock(nn.Module):
    """Four layers, each adding `growth` channels computed from all before it; 5x5 kernels spread over 9 pixels.

    Source: public code of Li, Xue, Tian, Optica 5, 1181 (2018): 4 layers, growth 16, dilation 2, dropout 0.5.
    """

    def __init__(self, channels: int, out: int, growth: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels + index * growth, growth, 5, padding=4, dilation=2) for index in range(4)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.join = nn.Conv2d(channels + 4 * growth, out, 1)

    def forward(self, x_BFYX: Tensor) -> Tensor:
        for layer in self.layers:
            x_BFYX = torch.cat((x_BFYX, self.dropout(F.relu(layer(x_BFYX)))), 1)
        return F.relu(self.join(x_BFYX))


class DenseUNet(nn.Module):
    """A U-Net of dense blocks on the frame's own grid, resized to the image at the end."""

    def __init__(self, section: NetworkSection, frame_px: int, object_px: int):
        super().__init__()
        if frame_px % 2**section.levels:
            raise RecipeError(
                f"network.levels = {section.levels} needs frames of a multiple of {2**section.levels} pixels, this "
                f"camera has {frame_px}; lower network.levels"
            )
        self.object_px = object_px
        sizes = [section.channels * 2**level for level in range(section.levels + 1)]
        grown = (section.growth, section.dropout)
        self.down = nn.ModuleList(DenseBlock(a, b, *grown) for a, b in zip([1, *sizes[:-1]], sizes, strict=True))
        self.up = nn.ModuleList(
            DenseBlock(below + beside, beside, *grown)
            for below, beside in zip(sizes[:0:-1], sizes[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(sizes[0], 1, 3, padding=1)

    def forward(self, frames_BYX: Tensor, given_BYX: Tensor | None = None) -> Tensor:
        x_BFYX = frames_BYX.unsqueeze(1) - 1
        beside = []
        for block in self.down:
            x_BFYX = block(F.avg_pool2d(x_BFYX, 2) if beside else x_BFYX)
            beside.append(x_BFYX)
        beside.pop()
        for block in self.up:
            x_BFYX = block(torch.cat((F.interpolate(x_BFYX, scale_factor=2.0), beside.pop()), 1))
        return self.last(F.interpolate(x_BFYX, size=(self.object_px, self.object_px), mode="area")).squeeze(1)


Network = RidgeNetwork | Hybrid | DenseUNet


def build_network(section: NetworkSection, frame_px: int, object_px: int) -> Network:
    """The network of a section, without values: see `initialise`."""
    check_ranges(section, "network.")
    if section.kind == "ridge":
        return RidgeNetwork(frame_px, object_px)
    return (Hybrid if section.kind == "hnn" else DenseUNet)(section, frame_px, object_px)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Weights uniform within 1/sqrt(fan-in), biases 0, and 0 for what is added to the first guess."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Conv2d, Linear)) and isinstance(weight, Tensor):
            bound = math.sqrt(3 / weight[0].numel())
            weight.uniform_(-bound, bound, generator=generator)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.zero_()
    if isinstance(network, Hybrid):
        network.last.weight.zero_()
        network.spread.product.weight.zero_()


def reconstruct(network: nn.Module, frames_BYX: Tensor, batch: int = 256) -> Tensor:
    """Images [B, Y, X] in the order of the frames; the linear one may leave 0 to 1, the others can't."""
    network.eval()
    with torch.inference_mode():
        parts = frames_BYX.split(batch)
        if isinstance(network, RidgeNetwork):
            return torch.cat([network.image(part) for part in parts])
        return torch.cat([network(part).float().sigmoid() for part in parts])
