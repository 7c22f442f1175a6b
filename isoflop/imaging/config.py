"""The recipe of an imaging run: sections as TOML has them, and the rules between them."""

from dataclasses import dataclass, field
from typing import Literal

from isoflop.errors import RecipeError
from isoflop.imaging.network import NetworkSection
from isoflop.imaging.objects import ObjectsSection
from isoflop.imaging.score import LOSSES
from isoflop.optics.camera import CameraSection
from isoflop.optics.medium import MediumSection


@dataclass(frozen=True)
class TwinSection:
    """A model of the medium learned from the same pairs, to train on distorted objects without measuring more."""

    iterations: int = 0
    """Alternations per start; 0: no twin, train on the measured pairs alone."""
    restarts: int = 4
    """Of the pixels that ended in a wrong minimum, 0 or above."""
    least_share: float = 5e-3
    """Directions of the objects weaker than this share of the strongest are left out, above 0 and below 1."""
    simulated: float = 1.0
    """Share of every batch that the twin makes, 0 to 1."""
    wild: float = 0.3
    """Share of those whose objects are distorted beyond recognition, for kinds of object never seen, 0 to 1."""

    def check(self) -> None:
        """Raises RecipeError naming key, value and rule."""
        if self.iterations < 0 or self.restarts < 0:
            raise RecipeError(
                f"twin.iterations = {self.iterations} and twin.restarts = {self.restarts} must be 0 or above"
            )
        for name in ("simulated", "wild"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"twin.{name} = {getattr(self, name)} must be in 0 to 1")
        if not 0 < self.least_share < 1:
            raise RecipeError(f"twin.least_share = {self.least_share} must be above 0 and below 1, for example 0.005")


@dataclass(frozen=True)
class FitSection:
    """How the network is trained."""

    n_samples: int = 200_000
    """Samples, repeats counted, at least one batch."""
    batch_samples: int = 128
    """Per optimizer step, at least 1."""
    learning_rate: float = 1.5e-3
    """Peak rate, above 0 (assumption)."""
    warmup_steps: int = 100
    cooldown_fraction: float = 0.7
    """Share of the steps in which the rate falls to 0, above 0 to 1 (assumption)."""
    weight_decay: float = 1e-3
    """0 or above."""
    clip_norm: float = 1.0
    """Above 0."""
    loss: dict[str, float] = field(default_factory=lambda: {"bce": 1.0, "npcc": 1.0})
    """Weights of bce, mse, npcc, tv."""
    shuffled: bool = False
    """Give every frame another object's image: a control that must end at the level of the mean image."""
    seed: int = 0
    """Of the weights, the batches and the twin."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products; auto is bfloat16 where the processor multiplies it natively."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""

    def check(self) -> None:
        """Raises RecipeError naming key, value and rule."""
        if self.batch_samples < 1 or self.n_samples < self.batch_samples:
            raise RecipeError(
                f"train.n_samples = {self.n_samples} must be at least one batch of train.batch_samples = "
                f"{self.batch_samples}, which must be at least 1"
            )
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"train.{name} = {getattr(self, name)} must be above 0")
        if not 0 < self.cooldown_fraction <= 1:
            raise RecipeError(f"train.cooldown_fraction = {self.cooldown_fraction} must be above 0 and at most 1")
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
    for section in (recipe.objects, recipe.network, recipe.twin, recipe.train):
        section.check()
    if recipe.twin.iterations:
        if (
            recipe.medium.kind in ("memory", "dynamic", "family")
            or recipe.medium.polarised < 1
            or recipe.camera.binning > 1
        ):
            raise RecipeError(
                "twin.iterations needs one coherent field per pixel: a static medium of kind tm, structured or "
                "multislice, medium.polarised = 1 and camera.binning = 1; set twin.iterations = 0"
            )
        if recipe.train.shuffled:
            raise RecipeError("train.shuffled is a control without a twin; set twin.iterations = 0")
