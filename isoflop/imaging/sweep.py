"""Many imaging runs as one study: crops, photons, pairs, networks; one record per run, resumable, then a page.

A sweep file holds the sections of a run and a section [sweep]. Cells are runs in OUT/runs/ID; `records.jsonl` gets one
line when a cell is finished, so that any table reader (`isoflop fit --law power`, a notebook) can take it from there.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from isoflop.errors import DataError, RecipeError
from isoflop.imaging.config import FitSection, ImagingRecipe, TwinSection, check
from isoflop.imaging.network import NetworkSection
from isoflop.imaging.objects import ObjectsSection
from isoflop.imaging.reconstruct import run_imaging
from isoflop.optics.camera import CameraSection
from isoflop.optics.medium import MediumSection
from isoflop.recipe import NotNegative, NotNegativeInt, PositiveInt, write_recipe
from isoflop.run import append_json_line, latest_of_each_run, read_json_lines


@dataclass(frozen=True)
class SweepSection:
    """What is varied; every list is crossed with the first value of the others, not with all of them."""

    study: str = "imaging"
    """Name of the study, in every record."""
    crops_px: tuple[PositiveInt, ...] = ()
    """Sides of the crop; empty: that of [camera]."""
    photons: tuple[NotNegative, ...] = ()
    """Photons per pixel, at the largest crop; 0: no photon noise."""
    pairs: tuple[PositiveInt, ...] = ()
    """Numbers of measured pairs, at the largest crop."""
    networks: tuple[Literal["ridge", "hnn", "unet-dense"], ...] = ()
    """Kinds of network, at the largest crop."""
    twin_max_px: NotNegativeInt = 1024
    """Frames of more pixels are learned from the measured pairs alone, without twin and connected path."""
    control: bool = True
    """Add a run on shuffled pairs, at the smallest crop."""


@dataclass(frozen=True)
class ImagingSweep:
    """A study of imaging runs."""

    sweep: SweepSection = field(default_factory=SweepSection)
    medium: MediumSection = field(default_factory=MediumSection)
    camera: CameraSection = field(default_factory=CameraSection)
    objects: ObjectsSection = field(default_factory=ObjectsSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    twin: TwinSection = field(default_factory=TwinSection)
    train: FitSection = field(default_factory=FitSection)


def cells(recipe: ImagingSweep) -> dict[str, ImagingRecipe]:
    """Run id -> recipe, largest crop first. Raises RecipeError when a cell is no valid run."""
    s = recipe.sweep
    base = ImagingRecipe(recipe.medium, recipe.camera, recipe.objects, recipe.network, recipe.twin, recipe.train)
    whole = recipe.camera.crop_px or recipe.medium.frame_px
    crops = sorted(s.crops_px or (whole,), reverse=True)
    if crops[0] > recipe.medium.frame_px or crops[-1] < 1:
        raise RecipeError(f"sweep.crops_px = {list(crops)} must be in 1 to medium.frame_px = {recipe.medium.frame_px}")

    def cell(crop_px: int, **changes: Any) -> ImagingRecipe:
        made = dataclasses.replace(base, camera=dataclasses.replace(base.camera, crop_px=crop_px))
        if (crop_px // base.camera.binning) ** 2 > s.twin_max_px:
            made = dataclasses.replace(
                made,
                twin=dataclasses.replace(base.twin, iterations=0),
                network=dataclasses.replace(base.network, width=0),
            )
        for section, values in changes.items():
            made = dataclasses.replace(made, **{section: dataclasses.replace(getattr(made, section), **values)})
        return made

    found = {f"crop{crop}": cell(crop) for crop in crops}
    for photons in s.photons:
        if photons != recipe.camera.photons:
            found[f"crop{crops[0]}-photons{photons:g}"] = cell(crops[0], camera={"photons": photons})
    for pairs in s.pairs:
        if pairs != recipe.objects.n_train:
            found[f"crop{crops[0]}-pairs{pairs}"] = cell(crops[0], objects={"n_train": pairs})
    for kind in s.networks:
        if kind != recipe.network.kind:
            found[f"crop{crops[0]}-{kind}"] = cell(crops[0], network={"kind": kind}, twin={"iterations": 0})
    if s.control:
        found[f"crop{crops[-1]}-shuffled"] = cell(crops[-1], train={"shuffled": True}, twin={"iterations": 0})
    for run_id, made in found.items():
        try:
            check(made)
        except RecipeError as error:
            raise RecipeError(f"cell {run_id}: {error}") from error
    return found


def run_sweep(
    recipe: ImagingSweep,
    out: Path,
    *,
    on_stage: Callable[[str, float, float], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Run the cells that have no record yet; returns the records in the order of the cells.

    Raises: RecipeError, DataError for bad values; KeyboardInterrupt when asked to stop, with all that is finished kept.
    """
    planned = cells(recipe)
    path = out / "records.jsonl"
    records = {record["run_id"]: record for record in read_records(path)}
    write_recipe(out / "sweep.toml", recipe, header="the sweep of this study")
    for index, (run_id, made) in enumerate(planned.items()):

        def shown(stage: str, done: float, total: float, run_id: str = run_id, index: int = index) -> None:
            if on_stage is not None:
                on_stage(f"{run_id}: {stage}", index + 0.5 * done / max(total, 1e-9), len(planned))

        def training(progress: Any, index: int = index, run_id: str = run_id) -> None:
            if on_stage is not None:
                share = progress.step / progress.n_steps
                on_stage(f"{run_id}: training", index + 0.5 + 0.5 * share, len(planned))

        if should_stop():
            raise KeyboardInterrupt
        result = run_imaging(made, out / "runs" / run_id, on_stage=shown, on_progress=training, should_stop=should_stop)
        if result["status"] == "interrupted":
            raise KeyboardInterrupt
        if run_id not in records or records[run_id]["identity"] != result["identity"]:
            records[run_id] = {"study": recipe.sweep.study, "run_id": run_id, **result}
            append_json_line(path, records[run_id])
    if on_stage is not None:
        on_stage("sweep", len(planned), len(planned))
    return [records[run_id] for run_id in planned]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The finished runs of a study, the latest line of each; a torn last line is ignored, a damaged one refused.

    Raises:
        DataError: a damaged line, or records of something else, such as a sweep of language models.
    """
    records = latest_of_each_run(read_json_lines(path)) if path.is_file() else []
    for record in records:
        missing = [key for key in ("run_id", "identity", "camera_px", "scores") if key not in record]
        if missing:
            raise DataError(f"{path} has a record without {missing[0]}, none of imaging: give the folder of a study")
    return records
