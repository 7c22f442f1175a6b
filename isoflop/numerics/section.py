"""What a recipe may say about number formats: `[numerics]`, rules by module name, the settings of each format.

    [numerics]
    rules = [{ modules = "blocks.*", format = "fp8_block" }, { modules = "blocks.0.*", format = "bfloat16" }]

A later rule goes before an earlier one. Modules that no rule names compute in the dtype of the activations, as a recipe
without the section does. Plain data only: this file never imports torch, so that ladders and plans can read it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from isoflop.errors import RecipeError
from isoflop.optics.config import CoreConfig, OpticsError, load_preset
from isoflop.recipe import PositiveInt, Range, Seed, WrittenAs, check_ranges

Format = Literal["float32", "bfloat16", "fp8_block", "fp8_rowwise", "fp8_tensorwise", "photonic"]


@dataclass(frozen=True)
class Rule:
    """Which layers compute how."""

    modules: str
    """Pattern of module names with * and ?, for example "blocks.*" or "blocks.?.mlp.down"; it must match some."""
    format: Format
    """Number format of their products, forward and backward."""


@dataclass(frozen=True)
class Fp8Section:
    """Blockwise-scaled E4M3 (DeepSeek-V3, arXiv 2412.19437, section 3.3)."""

    block: PositiveInt = 128
    """Values that share a scale: 1 x block of activations and gradients, block x block of weights (paper: 128)."""
    power_of_two_scales: bool = False
    """Scales rounded up to a power of two, as the released kernels offer."""


@dataclass(frozen=True)
class PhotonicSection:
    """A simulated time-multiplexed photonic tensor core, see docs/numerics.md and docs/optics.md."""

    preset: str = "lin2024"
    """Name of a preset of isoflop.optics: lin2024, lin2023, ideal ..."""
    core: Annotated[dict[str, Any], WrittenAs(CoreConfig)] = field(default_factory=dict)
    """Fields of the core that go before those of the preset, for example { power_mw = 0.1, adc_bits = 6 }."""
    backward: Literal["ste", "core", "dx_core", "dfa"] = "ste"
    """ste: digital, from the operands as encoded; core: both gradients on the core; dx_core: only the gradient of the
    input; dfa: fixed random feedback from the error of the last photonic layer."""


@dataclass(frozen=True)
class NumericsSection:
    """Number formats by module."""

    rules: tuple[Rule, ...]
    """Later ones go before earlier ones."""
    seed: Seed = 0
    """Of the noise, beside train.seed; formats without noise ignore it."""
    until: Annotated[float, Range(above=0, at_most=1)] | None = None
    """Share of the optimizer steps after which every product is computed in train.precision again, in pre-training;
    left out or 1: never. At 1 - train.cooldown_fraction the formats end where constant_cooldown begins to fall."""
    fp8_block: Fp8Section = Fp8Section()
    photonic: PhotonicSection = PhotonicSection()

    def plain_from(self, n_steps: int) -> int | None:
        """First of `n_steps` steps whose products are plain again, counted as a cooldown's; None: no step's are."""
        n_plain = round(n_steps * self.plain_share())
        return n_steps - n_plain if n_plain else None

    def plain_share(self) -> float:
        """Share of the steps after `until`, free of the rounding of 1 - 0.8."""
        return 0.0 if self.until is None else round(1.0 - self.until, 12)


def check_numerics(section: NumericsSection) -> None:
    """Rules between keys. Raises RecipeError naming the key, the value, the rule and a way out."""
    if not section.rules:
        raise RecipeError(
            "numerics.rules = [] must name at least one rule; leave the section out for none, or give for example "
            '{ modules = "blocks.*", format = "fp8_block" }'
        )
    for index, rule in enumerate(section.rules):
        if not rule.modules:
            raise RecipeError(f'numerics.rules[{index}].modules = "" must be a pattern of module names: "*" is all')
    check_ranges(section, "numerics.")
    core_of(section.photonic)


def refuse_until(section: NumericsSection | None) -> None:
    """Raises RecipeError where the formats are given up before the end: only pre-training does that."""
    if section is not None and section.plain_share():
        raise RecipeError(
            f"numerics.until = {section.until:g} must be 1 here: only pre-training (isoflop train, extend, sweep) goes "
            f"back to plain products before its end; leave the key out"
        )


def core_of(section: PhotonicSection) -> CoreConfig:
    """The core as the section describes it. Raises RecipeError naming the field and its range."""
    try:
        return load_preset(section.preset, **section.core)
    except OpticsError as error:
        raise RecipeError(f"numerics.photonic: {error}") from error


def numerics_text(section: NumericsSection | None, base: str = "") -> str:
    """One line for records and verdicts: "photonic lin2024, adc_bits 6, ste on blocks.*; else float32"."""
    if section is None:
        return base
    until = f" until {100 * section.until:g}%" if section.until and section.plain_share() else ""
    said = [f"{_format_text(section, rule.format)} on {rule.modules}{until}" for rule in section.rules]
    return "; ".join([*said, *([f"else {base}"] if base else [])])


def by_rule(text: str) -> str:
    """What a text of `numerics_text` says of rules: "" for plain float32 or bfloat16."""
    return text.rpartition("; else ")[0] if "; else " in text else ("" if " on " not in text else text)


def _format_text(section: NumericsSection, format: Format) -> str:
    if format == "fp8_block":
        settings = section.fp8_block
        return f"fp8_block {settings.block}" + (", power-of-two scales" if settings.power_of_two_scales else "")
    if format == "photonic":
        settings = section.photonic
        changed = "".join(f", {key} {value}" for key, value in sorted(settings.core.items()))
        return f"photonic {settings.preset}{changed}, {settings.backward}"
    return format
