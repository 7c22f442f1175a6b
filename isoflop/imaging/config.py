"""The recipe of an imaging run: sections as TOML has them, and the rules between them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from isoflop.errors import RecipeError
from isoflop.imaging.network import NetworkSection
from isoflop.imaging.objects import ObjectsSection
from isoflop.imaging.score import LOSSES
from isoflop.optics.camera import CameraSection
from isoflop.optics.medium import MediumSection
from isoflop.recipe import (
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Processes,
    Range,
    Seed,
    Share,
    check_ranges,
)


@dataclass(frozen=True)
class TwinSection:
    """A model of the medium learned from the same pairs, to train on distorted objects without measuring more."""

    iterations: NotNegativeInt = 0
    """Alternations per start; 0: no twin, train on the measured pairs alone."""
    restarts: NotNegativeInt = 4
    """Of the pixels that ended in a wrong minimum."""
    least_share: Annotated[float, Range(above=0, below=1)] = 5e-3
    """Directions of the objects weaker than this share of the strongest are left out."""
    simulated: Share = 1.0
    """Share of every batch that the twin makes."""
    wild: Share = 0.3
    """Share of those whose objects are distorted beyond recognition, for kinds of object never seen."""


@dataclass(frozen=True)
class FitSection:
    """How the network is trained."""

    n_samples: PositiveInt = 200_000
    """Samples, repeats counted."""
    batch_samples: PositiveInt = 128
    """Per optimizer step."""
    learning_rate: Positive = 1.5e-3
    """Peak rate (assumption)."""
    warmup_steps: NotNegativeInt = 100
    """Steps in which the rate rises from 0."""
    cooldown_fraction: Annotated[float, Range(above=0, at_most=1)] = 0.7
    """Share of the steps in which the rate falls to 0 (assumption)."""
    weight_decay: NotNegative = 1e-3
    """Of AdamW, on matrices, times the learning rate."""
    clip_norm: Positive = 1.0
    """Longest gradient, over all weights together; a longer one is scaled down."""
    loss: dict[str, NotNegative] = field(default_factory=lambda: {"bce": 1.0, "npcc": 1.0})
    """Weights of bce, mse, npcc, tv."""
    shuffled: bool = False
    """Give every frame another object's image: a control that must end at the level of the mean image."""
    seed: Seed = 0
    """Of the weights, the batches and the twin."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products; auto is bfloat16 where the processor multiplies it natively."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: Processes = 0
    """CPU threads; 0 leaves PyTorch's choice."""

    def check(self) -> None:
        """Raises RecipeError naming key, value and rule."""
        check_ranges(self, "train.")
        if self.n_samples < self.batch_samples:
            raise RecipeError(
                f"train.n_samples = {self.n_samples} must be at least one batch of train.batch_samples = "
                f"{self.batch_samples}"
            )
        unknown = sorted(set(self.loss) - set(LOSSES))
        if unknown or not any(weight > 0 for weight in self.loss.values()):
            raise RecipeError(
                f"train.loss = {self.loss} must weigh at least one of {', '.join(LOSSES)} above 0"
                + (f"; it does not know {unknown[0]!r}" if unknown else "")
            )


@dataclass(frozen=True)
class ImagingRecipe:
    """One run: a slab, a camera, objects, a network."""

    medium: MediumSection = field(default_factory=MediumSection)
    camera: CameraSection = field(default_factory=CameraSection)
    objects: ObjectsSection = field(default_factory=ObjectsSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    twin: TwinSection = field(default_factory=TwinSection)
    train: FitSection = field(default_factory=FitSection)

    def n_steps(self) -> int:
        """Optimizer steps."""
        return 0 if self.network.kind == "ridge" else self.train.n_samples // self.train.batch_samples


def check(recipe: ImagingRecipe) -> None:
    """All rules that need no data. Raises RecipeError."""
    try:
        recipe.medium.check()
        recipe.camera.check()
    except ValueError as error:
        raise RecipeError(str(error)) from error
    recipe.objects.check()
    check_ranges(recipe.network, "network.")
    check_ranges(recipe.twin, "twin.")
    recipe.train.check()
    if recipe.twin.iterations:
        moves = recipe.medium.kind in ("memory", "dynamic", "family")
        if moves or recipe.medium.polarised < 1 or recipe.camera.binning > 1:
            raise RecipeError(
                "twin.iterations needs one coherent field per pixel: a static medium of kind tm, structured or "
                "multislice, medium.polarised = 1 and camera.binning = 1; set twin.iterations = 0"
            )
        if recipe.train.shuffled:
            raise RecipeError("train.shuffled is a control without a twin; set twin.iterations = 0")
