"""Rules to layers: `assign(model, section, noise_key)` puts formats in place and says which layer got which."""

import difflib
import logging
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn

from isoflop.errors import RecipeError
from isoflop.numerics.cast import CastProduct
from isoflop.numerics.fp8_block import Fp8BlockProduct
from isoflop.numerics.fp8_whole import Fp8WholeProduct
from isoflop.numerics.linear import MatmulBackend
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.photonic import ErrorLine, PhotonicProduct
from isoflop.numerics.section import Format, NumericsSection, check_numerics, core_of

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One layer of the table that `assign` gives back."""

    module: str
    shape: tuple[int, ...]
    format: str
    rule: int | None
    """Index of the rule that decided; None: no rule names it."""


def assignable(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that can take a format, by name: those with a `numerics` attribute."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "numerics")}


def assign(model: nn.Module, section: NumericsSection, noise_key: NoiseKey | None = None) -> list[Row]:
    """Give every layer the format of the last rule that matches its name; logs the table and returns it.

    Call it when the model is on its device. `noise_key` is what the run sets before each micro-batch; formats without
    noise do without. Parameters, optimizer, checkpoints and exports stay as they are.

    Raises:
        RecipeError: a pattern that matches no layer, values outside their range.
    """
    layers = assignable(model)
    decided = match_rules(layers, section)
    photonic = [number for number, name in enumerate(layers) if _format(section, decided, name) == "photonic"]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    made = _Maker(section, noise_key or NoiseKey(section.seed), max(photonic, default=0), device)
    rows = []
    for number, (name, module) in enumerate(layers.items()):
        format = _format(section, decided, name)
        setattr(module, "numerics", None if format is None else made.product(format, number, name, module))  # noqa: B010 - typed
        shapes = [tuple(p.shape) for p in module.parameters(recurse=False)]
        rows.append(Row(name, shapes[0], format or "as activations", decided.get(name)))
    for line in table(rows):
        log.info("numerics  %s", line)
    return rows


def take_off(model: nn.Module) -> None:
    """Every layer computes in the dtype of the activations again, as one that no rule names."""
    for module in assignable(model).values():
        setattr(module, "numerics", None)  # noqa: B010 - typed


def match_rules(layers: Collection[str], section: NumericsSection) -> dict[str, int]:
    """Name of a layer -> index of the last rule that matches it.

    Raises:
        RecipeError: a pattern that matches no layer, values outside their range.
    """
    check_numerics(section)
    decided: dict[str, int] = {}
    for index, rule in enumerate(section.rules):
        matched = [name for name in layers if fnmatchcase(name, rule.modules)]
        if not matched:
            wholes = {f"{name.partition('.')[0]}.*" for name in layers if "." in name}
            close = difflib.get_close_matches(rule.modules, [*sorted(wholes), *layers], n=1, cutoff=0.3)
            hint = f"did you mean {close[0]!r}?" if close else "'*' is all of them"
            raise RecipeError(
                f"numerics.rules[{index}].modules = {rule.modules!r} matches none of the {len(layers)} layers; {hint}"
            )
        decided |= dict.fromkeys(matched, index)
    return decided


def table(rows: list[Row]) -> list[str]:
    """The assignment as lines of text; layers that differ in nothing but their numbers share one."""
    grouped: dict[tuple[str, tuple[int, ...], str], int] = {}
    for row in rows:
        kind = ".".join("*" if part.isdigit() else part for part in row.module.split("."))
        grouped[kind, row.shape, row.format] = grouped.get((kind, row.shape, row.format), 0) + 1
    width = max(len(kind) for kind, _, _ in grouped)
    return [
        f"{count:4d} x  {kind:{width}s}  {'x'.join(map(str, shape)):>14s}  {format}"
        for (kind, shape, format), count in grouped.items()
    ]


def _format(section: NumericsSection, decided: dict[str, int], name: str) -> Format | None:
    return section.rules[decided[name]].format if name in decided else None


class _Maker:
    """Builds the product of a layer."""

    def __init__(self, section: NumericsSection, noise_key: NoiseKey, last: int, device: torch.device):
        self.section, self.noise_key, self.last, self.device = section, noise_key, last, device
        self.line, self.core = ErrorLine(), core_of(section.photonic)
        self.makers: dict[str, Callable[[int], MatmulBackend]] = {
            "float32": lambda _: CastProduct(torch.float32),
            "bfloat16": lambda _: CastProduct(torch.bfloat16),
            "fp8_block": lambda _: Fp8BlockProduct(
                section.fp8_block.block, power_of_two_scales=section.fp8_block.power_of_two_scales
            ),
            "fp8_rowwise": lambda _: Fp8WholeProduct(per_row=True),
            "fp8_tensorwise": lambda _: Fp8WholeProduct(per_row=False),
            "photonic": self._photonic,
        }

    def product(self, format: str, layer: int, name: str, module: nn.Module) -> MatmulBackend:
        fan_in = max(parameter.shape[-1] for parameter in module.parameters(recurse=False))
        if format == "photonic" and fan_in > self.core.max_fan_in and not self.core.tile_fan_in:
            raise RecipeError(
                f"numerics.photonic: fan-in {fan_in} of {name} is beyond max_fan_in = {self.core.max_fan_in}; set "
                f"numerics.photonic.core.tile_fan_in = true to sum tiles digitally, or leave the layer out of the rules"
            )
        return self.makers[format](layer)

    def _photonic(self, layer: int) -> MatmulBackend:
        return PhotonicProduct(
            self.core,
            self.noise_key,
            layer,
            backward=self.section.photonic.backward,
            line=self.line,
            is_last=layer == self.last,
            device=self.device,
        )
