"""One page about an imaging study: what was seen, how much light and how many pixels it took, and the controls.

In: a folder with `records.jsonl`, `sweep.toml` and `runs/`. Out: `report.html`, self-contained, and its figures.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from isoflop.errors import DataError
from isoflop.imaging import figure as drawn
from isoflop.imaging.sweep import ImagingSweep, read_records
from isoflop.pages.html import page
from isoflop.pages.plot import save, svg_text
from isoflop.recipe import load_recipe, write_text

LABELS = {
    "gallery": "Speckle, reconstructions and truth of test objects",
    "crops": "Reconstructions from smaller and smaller parts of the pattern",
    "crop_curve": "Correlation against pixels",
    "photon_curve": "Correlation against photons per pixel",
    "histogram": "Brightness of the pixels behind the slab",
}
Record = Mapping[str, Any]


def write_report(folder: Path, *, title: str = "Seeing through a scattering slab") -> Path:
    """Write `folder`/report.html and `folder`/figures, and return the page.

    Raises: DataError when the folder holds no finished run.
    """
    records = read_records(folder / "records.jsonl")
    if not records:
        raise DataError(f"{folder} has no records.jsonl with finished runs; run isoflop imaging sweep or demo first")
    recipe = load_recipe(folder / "sweep.toml", ImagingSweep)
    by_crop, by_photons, rest = sort_records(records)
    galleries = {
        math.isqrt(r["camera_px"]): load_file(folder / "runs" / r["run_id"] / "gallery.safetensors") for r in by_crop
    }
    whole = galleries[max(galleries)]
    figures = {"gallery": drawn.gallery_figure(whole)}
    if len(by_crop) > 1:
        figures["crops"] = drawn.crops_figure(galleries, whole["test.frame"][0])
        figures["crop_curve"] = drawn.crop_curve(by_crop)
    if len(by_photons) > 1:
        figures["photon_curve"] = drawn.photon_curve(by_photons)
    frames = np.concatenate([whole[name] for name in ("test.frame", "unseen.frame") if name in whole])
    contrast = float((frames.std(axis=(1, 2)) / frames.mean(axis=(1, 2))).mean())
    figures["histogram"] = drawn.histogram_figure(frames, contrast)
    for name, figure in figures.items():
        for ending in ("svg", "png"):
            save(figure, folder / "figures" / f"{name}.{ending}")
    text = page(
        "imaging/report.html",
        title=title,
        recipe=recipe,
        by_crop=by_crop,
        crop_scores=_scores(by_crop, "camera_px"),
        photon_scores=_scores(by_photons, "photons"),
        controls=_controls(by_crop, rest),
        clipped=max(r["clipped_share"] for r in (*by_crop, *by_photons)),
        twins=[r for r in by_crop if r["twin_held_out"] is not None],
        files=[Path(path).name for path in (recipe.objects.digits, recipe.objects.letters) if path],
        runs=[*by_crop, *(r for r in by_photons if r not in by_crop), *rest],
        pictures={name: svg_text(figure, name, LABELS[name]) for name, figure in figures.items()},
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def sort_records(records: Sequence[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """(by crop, by photons at the largest crop, all others), the first two with the same network and pairs."""
    first = records[0]
    plain = [r for r in records if not r["shuffled"] and r["network"] == first["network"]]
    plain = [r for r in plain if r["n_pairs"] == first["n_pairs"]]
    by_crop = [r for r in plain if r["photons"] == first["photons"]]
    by_photons = [r for r in plain if r["camera_px"] == first["camera_px"]]
    used = {r["run_id"] for r in (*by_crop, *by_photons)}
    return by_crop, by_photons, [r for r in records if r["run_id"] not in used]


def _scores(records: Sequence[Record], key: str) -> list[dict[str, Any]]:
    """A row per run and kind of object, by what was varied."""
    return [
        {
            **scores,
            "varied": "no noise" if key == "photons" and not r[key] else r[key],
            "objects": drawn.KINDS[kind],
            "ridge": r["ridge"][kind]["pcc"],
            "mean_image": r["mean_image_pcc"][kind],
        }
        for r in sorted(records, key=lambda r: r[key])
        for kind, scores in r["scores"].items()
    ]


def _controls(by_crop: Sequence[Record], rest: Sequence[Record]) -> list[dict[str, Any]]:
    """What must be no better than the mean image: another slab, and shuffled pairs."""
    asked = [("another slab", r, r["other_medium_pcc"]) for r in by_crop]
    asked += [
        ("shuffled pairs", r, {kind: scores["pcc"] for kind, scores in r["scores"].items()})
        for r in rest
        if r["shuffled"]
    ]
    return [
        {
            "control": f"{name}, {r['camera_px']:,} pixels",
            "objects": drawn.KINDS[kind],
            "pcc": pcc,
            "mean_image": r["mean_image_pcc"][kind],
        }
        for name, r, scores in asked
        for kind, pcc in scores.items()
    ]
